"""How an image becomes a network's input: plain data that is stored with a run; no torch."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnew.errors import BnewError, unknown


@dataclass(frozen=True)
class Preparation:
    """The classes of a network, and how an image becomes its input.

    An image is scaled until it just covers ``resize`` pixels, its centre is cropped to ``size``, and a pixel
    value v in [0, 1] becomes (v − mean) / std, per channel. Augmentation belongs to training only.

    Raises:
        BnewError: an impossible value; the message names the field, the value and what is allowed.
    """

    classes: tuple[str, ...]
    """The classes' names, in the order of the network's outputs."""
    size: tuple[int, int, int]
    """(C, H, W) of an input image."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, int] | None = None
    """(H, W) to cover before the centre is cropped; None: those of ``size``."""

    def __post_init__(self) -> None:
        for name in ("classes", "size", "mean", "std", "resize"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        self._check("classes", self._names(), "the different names of at least one class")
        self._check("size", _integers(self.size, 3), "three positive whole numbers: channels, height, width")
        channels = self.size[0]
        self._check("mean", _numbers(self.mean, channels), f"one number for each of {channels} channels")
        positive = _numbers(self.std, channels) and min(self.std) > 0
        self._check("std", positive, f"one positive number for each of {channels} channels")
        covers = self.resize is None or (
            _integers(self.resize, 2) and all(a >= b for a, b in zip(self.resize, self.size[1:], strict=True))
        )
        self._check("resize", covers, f"null, or a height and a width of at least {list(self.size[1:])}")

    def _check(self, name: str, right: bool, what: str) -> None:
        if not right:
            raise BnewError(f"{name} is {getattr(self, name)!r:.200}, but must be {what}")

    def _names(self) -> bool:
        names = self.classes
        strings = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        return strings and 0 < len(names) == len(set(names))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Preparation:
        """The inverse of :meth:`to_dict`.

        Raises:
            BnewError: a field is missing or unknown, or a value is impossible.
        """
        if not isinstance(data, Mapping):
            raise BnewError(f"the preparation is {data!r:.200}, but must be an object")
        fields = typing.get_type_hints(cls)
        for name in data:
            if name not in fields:
                raise unknown("field of a preparation", name, fields)
        for name in fields:
            if name not in data:
                raise BnewError(f"the preparation has no {name}")
        return cls(**data)


def _integers(values: Any, count: int) -> bool:
    """Whether ``values`` is a tuple of ``count`` positive whole numbers."""
    return (
        isinstance(values, tuple) and len(values) == count and all(type(v) is int and v > 0 for v in values)
    )


def _numbers(values: Any, count: int) -> bool:
    """Whether ``values`` is a tuple of ``count`` finite numbers."""
    numbers = isinstance(values, tuple) and all(type(v) in (int, float) for v in values)
    return numbers and len(values) == count and all(abs(v) <= sys.float_info.max for v in values)
