"""What runs: stages, each of them an operator with its epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, int, int]
Rows: TypeAlias = tuple[int, int]
"""The first row, and the one after the last."""


@dataclass(frozen=True)
class Value:
    """A result of a stage, or the image: (C, H, W), real or bits."""

    name: str
    shape: Shape
    is_bits: bool = False


@dataclass(frozen=True)
class Epilogue:
    """The steps that ride along with an operator, see ``struct epilogue`` in kernels.c."""

    scale: Floats | None = None
    shift: Floats | None = None
    other: Value | None = None
    multiply: bool = False
    activation: str = "none"
    slope: Floats | None = None
    bounds: tuple[float, float] = (0.0, 0.0)
    scale_out: Floats | None = None
    shift_out: Floats | None = None
    sign_scale: Floats | None = None
    sign_shift: Floats | None = None

    BYTES: ClassVar = 68
    """Of the struct, on a chip of 32 bits."""
    ARRAYS: ClassVar = ("scale", "shift", "slope", "scale_out", "shift_out", "sign_scale", "sign_shift")

    def fields(self) -> Iterator[tuple[str, object]]:
        """Its fields in C, but for those that are addresses."""
        if self.other is not None:
            yield "multiply", int(self.multiply)
        yield "activation", self.activation.upper()
        if self.activation == "clamp":
            yield "low", np.float32(self.bounds[0])
            yield "high", np.float32(self.bounds[1])


AFFINE = np.dtype([("add", np.int32), ("times", np.int16), ("by", np.uint8)], align=True)
"""``struct affine`` of kernels.c."""


@dataclass(frozen=True)
class FixedEpilogue:
    """The same in 16-bit fixed point; arrays are of :data:`AFFINE`, but for those of the sign.

    ``exponent`` is that of numbers from ``other`` to ``activation``.
    """

    exponent: int
    sums: Array | None = None
    scale: Array | None = None
    other: Value | None = None
    multiply: bool = False
    other_times: int = 1
    other_by: int = 0
    activation: str = "none"
    slope: Array | None = None
    bounds: tuple[int, int] = (0, 0)
    sixth: Array | None = None
    scale_out: Array | None = None
    sign_scale: npt.NDArray[np.int8] | None = None
    sign_shift: npt.NDArray[np.int32] | None = None

    BYTES: ClassVar = 84
    ARRAYS: ClassVar = ("sums", "scale", "slope", "scale_out", "sign_scale", "sign_shift")

    def fields(self) -> Iterator[tuple[str, object]]:
        """Its fields in C, but for those that are addresses."""
        yield "exponent", self.exponent
        if self.other is not None:
            yield "multiply", int(self.multiply)
            yield "other_times", self.other_times
            yield "other_by", self.other_by
        yield "activation", self.activation.upper()
        if self.activation == "clamp":
            yield "low", self.bounds[0]
            yield "high", self.bounds[1]
        if self.sixth is not None:
            yield "sixth", self.sixth[0]


@dataclass(frozen=True)
class Window:
    """A window that slides over an image; ``pad`` is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int, int, int]

    def rows(self, y: int) -> Rows:
        """The input rows that output row ``y`` reads, also those in the padding."""
        first = y * self.stride[0] - self.pad[0]
        return first, first + (self.kernel[0] - 1) * self.dilation[0] + 1


@dataclass(frozen=True)
class Span:
    """The places ``first`` to ``last`` - 1 of a pool's window, and its factor of the divisor of a mean."""

    first: int
    last: int
    places: int


STRUCTS = {"image": 4, "conv": 52, "binary_conv": 60, "pool": 24, "pointwise": 4, "flatten": 12}
"""The kernels, and the bytes of their structs in kernels.c without epilogues; of images, without scales."""


@dataclass(frozen=True)
class Stage:
    """What runs: one operator with its epilogue. Fields that an operator does not have are as by default."""

    name: str
    kind: str
    """One of :data:`STRUCTS`."""
    shape: Shape
    source: Value | None = None
    end: Epilogue | FixedEpilogue = field(default_factory=Epilogue)
    real: Value | None = None
    signs: Value | None = None
    macs: int = 0
    weights: Array | None = None
    window: Window | None = None
    groups: int = 1
    pad_value: int = 0
    mean: bool = False
    dilation: tuple[int, int] = (1, 1)
    spans: tuple[tuple[Span, ...], tuple[Span, ...]] = ((), ())

    @property
    def results(self) -> tuple[Value, ...]:
        """The values that it writes."""
        return tuple(value for value in (self.real, self.signs) if value)

    @property
    def height(self) -> int:
        """The number of rows that it is called for."""
        return self.shape[1]

    def reads(self, y: int) -> Rows:
        """The rows of ``source`` that row ``y`` needs."""
        assert self.source is not None
        height = self.source.shape[1]
        if self.window:
            first, last = self.window.rows(y)
            return max(first, 0), min(last, height)
        if self.spans[0]:
            return self.spans[0][y].first, self.spans[0][y].last
        return (0, height) if self.kind == "flatten" else (y, y + 1)

    @property
    def has_epilogue(self) -> bool:
        """Whether its kernel ends with steps."""
        return self.kind not in ("image", "flatten")

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Its constants by name."""
        for name in self.end.ARRAYS:
            if (numbers := getattr(self.end, name)) is not None:
                yield name, numbers
        if self.weights is not None:
            yield "weights", self.weights

    @property
    def constants(self) -> int:
        """The bytes of its constants in flash, on a chip of 32 bits."""
        arrays = [array for _, array in self.arrays()]
        bytes_ = sum(array.nbytes for array in arrays) + 8 * sum(map(len, self.spans))
        ends = self.end.BYTES if self.has_epilogue else 4 * len(arrays)
        return bytes_ + STRUCTS[self.kind] + ends + 16 * len(self.results)
