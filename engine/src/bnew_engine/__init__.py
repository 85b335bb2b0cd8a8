"""Runs packed binary networks as real bits: ``load(file)`` → :class:`Model`, ``model(images)`` → logits.

The module needs only NumPy. ``bnew pack`` writes the file, and docs/format.md defines it.

The instruction set is detected at run time: AVX-512 VPOPCNTDQ, AVX2 or NEON, else plain C++. The environment
variable ``BNEW_ENGINE_ISA`` forces another one. The results are the same to the last bit for every
instruction set and every number of threads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from bnew_engine import _engine
from bnew_engine._arguments import array, path_bytes, text, two_sizes, unchanged, whole
from bnew_engine._engine import EngineError
from bnew_engine._images import are_paths, read_image
from bnew_engine._inputs import Input, batches, inputs_of, is_alone
from bnew_engine._outputs import Predictions, Result, likeliest, output_kind

__all__ = [
    "EngineError", "Input", "Model", "Predictions", "StageTime", "cmake_dir", "isa", "isas", "load",
    "networks", "register_peak",
]  # fmt: skip
__version__ = "0.1.0"
_NETWORKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "networks")
revision = _engine.revision
"""Grows with what packed files and bnew may ask of the engine, also within a version."""


@dataclass(frozen=True)
class StageTime:
    """A stage of a network, and its time in seconds."""

    name: str
    """The layer's place in the model."""
    op: str
    seconds: float


def isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run, the best first."""
    return tuple(_engine.instruction_sets())


def isa() -> str:
    """The instruction set that is used: the best, or the one that ``BNEW_ENGINE_ISA`` names.

    Raises:
        EngineError: ``BNEW_ENGINE_ISA`` names one that this machine cannot run.
    """
    return _engine.instruction_set()


def cmake_dir() -> str:
    """The folder that CMake needs to find the engine of this package, for programs in C++ and C.

    ``cmake -Dbnew_engine_DIR=$(python -c "import bnew_engine; print(bnew_engine.cmake_dir())")``; then
    ``find_package(bnew_engine)`` defines ``bnew::engine`` for C++ and ``bnew::c`` for C.
    """
    return os.path.join(os.path.dirname(os.path.abspath(_engine.__file__)), "lib", "cmake", "bnew_engine")


def register_peak(isa: str, seconds: float = 0.2) -> float:
    """Binary multiply-accumulates per second of ``isa`` in registers alone: the limit of its kernels.

    Raises:
        EngineError: this machine cannot run ``isa``.
    """
    return _engine.register_peak(isa, seconds)


def networks() -> dict[str, str]:
    """The trained networks that come with the engine, name → file; :func:`load` takes the names."""
    names = sorted(name for name in os.listdir(_NETWORKS) if name.endswith(".bnew"))
    return {name.removesuffix(".bnew"): os.path.join(_NETWORKS, name) for name in names}


def load(
    file: str | os.PathLike[str] | bytes | bytearray | memoryview,
    threads: SupportsIndex = 1,
    isa: str | None = None,
    max_macs: SupportsIndex | None = None,
    max_bytes: SupportsIndex | None = None,
    input_size: tuple[SupportsIndex, SupportsIndex] | None = None,
) -> Model:
    """Read a packed network.

    Args:
        file: the name of a ``.bnew`` file, or its content as bytes. A name is not bytes: ``os.fsdecode`` it.
            Also one of :func:`networks`, such as ``"digits"``, unless there is a file of this name.
        threads: the number of threads, including the caller's.
        isa: the instruction set to use, one of :func:`isas`. None: see :func:`isa`.
        max_macs: the most work for one image, in real multiply-accumulates. None: a limit that follows from
            the file's size and its input's shape (docs/format.md, "Limits").
        max_bytes: the most memory for the weights, and for computing an image, in bytes. None: likewise.
        input_size: (height, width) of images. None: the size for which the file was packed. Another size
            needs a file for any size (docs/format.md, "Other sizes").

    Raises:
        EngineError: the file is missing, damaged or of another version, asks for more than the limits, does
            not run for images of ``input_size``, or an argument has an impossible value.
    """
    options = (
        whole("threads", threads, 1024),
        text("isa", "" if isa is None else isa),
        0 if max_macs is None else whole("max_macs", max_macs, _LARGEST_LIMIT),
        0 if max_bytes is None else whole("max_bytes", max_bytes, _LARGEST_LIMIT),
        (0, 0) if input_size is None else two_sizes("input_size", input_size),
    )
    if isinstance(file, bytes | bytearray | memoryview):
        content = bytes(file)
        if int.from_bytes(content[:8], "little") > len(content) - 8:
            raise EngineError(
                f"the {len(content)} bytes given are not the content of a packed file, or it is cut short: "
                "give all of it, or the file's name as a str or an os.PathLike"
            )
        return Model(_engine.Model.from_content(content, *options), lambda: content, options)
    if isinstance(file, str) and not os.path.exists(file):
        file = networks().get(file, file)
    path = path_bytes(file)
    engine = _engine.Model(path, *options)
    found = os.path.abspath(path)  # the process may change its folder before the file is read again
    return Model(engine, lambda: unchanged(found, engine.checksum), options)


class Model:
    """A packed network, see :func:`load`. Calls may come from several Python threads at once.

    A model can be pickled and copied, for example for worker processes. The pickle holds the content of the
    file, so the copy is the same network on every machine. A model that was loaded by the name of a file
    reads the file again for this, and raises :class:`EngineError` if it is missing or has changed. If the
    file may change, load its content as bytes: the model then keeps it in memory, beside its own weights.
    """

    def __new__(cls, engine: object = None, *rest: object) -> Model:  # noqa: D102
        if not isinstance(engine, _engine.Model):
            raise EngineError("a Model is not made directly: call bnew_engine.load")
        return super().__new__(cls)

    def __init__(
        self,
        engine: _engine.Model,
        content: Callable[[], bytes],
        options: tuple[int, str, int, int, tuple[int, int]],
    ) -> None:
        self._engine = engine
        self._content = content
        self._options = options

    def __reduce__(self) -> tuple[Any, ...]:
        *options, size = self._options
        return load, (self._content(), *(option or None for option in options), size if any(size) else None)

    def at(self, height: SupportsIndex, width: SupportsIndex) -> Model:
        """The same network for images of another size, as :func:`load` makes it with ``input_size``.

        Raises:
            EngineError: as :func:`load`.
        """
        threads, isa, max_macs, max_bytes, _ = self._options
        limits = (max_macs or None, max_bytes or None)
        return load(self._content(), threads, isa or None, *limits, input_size=(height, width))

    def __call__(self, *images: Any, **named: Any) -> Any:
        """The network's results for a batch: logits, if it is a classifier.

        Args:
            images: float32 (N, C, H, W), normalised as in training, (N, C, L) if the width is 1, or (N, C)
                if the input is a vector; or uint8 images (N, H, W, C), which the model normalises. Of several
                inputs, one such array each, in the order of :attr:`inputs`, or all in a dict by their names.
            named: the same by name: ``model(image=x, metadata=y)``.

        Returns:
            float32 (N, classes), or (N, ...) as the network returns it; int64 where it returns whole
            numbers. Of several results, a dict by their names, in the network's order, or a list if they have
            none.

        Raises:
            EngineError: the images have another shape or type, or numbers that are not finite; an input is
                missing, unknown, or has another number of images than the first.
        """
        numbers = self._engine.run(batches(self.inputs, images, named))
        results, begin = [], 0
        for each in self._outputs:
            result = numbers[:, begin : begin + each.numbers].reshape(len(numbers), *each.size)
            results.append(np.rint(result).astype(np.int64) if each.integers else result)
            begin += each.numbers
        names = [each.name for each in self._outputs]
        if names[0]:
            return dict(zip(names, results, strict=True))
        return results[0] if len(results) == 1 else results

    def predict(self, images: Any, top: SupportsIndex = 5) -> Predictions:
        """The likeliest classes of images, and their probabilities.

        Args:
            images: a batch as :meth:`__call__` takes it, or one image of a batch; or the name of an image
                file, or a list of names. A file is read with Pillow, turned upright and scaled until it just
                covers :attr:`resize` pixels; then its centre is cropped to the input's size.
            top: the number of classes per image, or all classes if there are fewer.

        Returns:
            Names and probabilities, (N, top) each. :attr:`output_kind` tells the kind of probabilities.

        Raises:
            EngineError: as :meth:`__call__`; or the output is no probability of classes, the network takes
                several inputs, a file cannot be read, or Pillow is not installed.
        """
        count, only, kind = whole("top", top, 2**31 - 1), self._input, self._kind
        if are_paths(images):
            paths = [images] if isinstance(images, str | os.PathLike) else list(images)
            parts = [paths[start : start + _FILES] for start in range(0, len(paths), _FILES)]
            results = [self(np.stack([self._read(path) for path in part])) for part in parts]
            outputs = np.concatenate(results)
        else:
            batch = array("images", images)
            outputs = self(batch[None] if is_alone(only, batch) else batch)
        return likeliest(outputs, kind, self.classes, count)

    @property
    def output_kind(self) -> str:
        """The kind of probabilities that :meth:`predict` returns.

        ``softmax``: they sum to 1 over all classes. ``sigmoid``: they are independent of each other.
        ``logistic``: the network has one output v, and 1 / (1 + exp(−v)) is the probability of its one class.

        Raises:
            EngineError: the output is no probability of classes.
        """
        return self._kind.removeprefix("own ")

    @cached_property
    def _kind(self) -> str:
        if len(self._outputs) > 1 or self._outputs[0].name:
            raise EngineError(
                "the network returns several results, or named ones, and no classes: call the model that "
                "bnew_engine.load returns, for these numbers"
            )
        if self._outputs[0].integers:
            raise EngineError(
                "the network returns whole numbers, such as the number of a class, and no probabilities: "
                "call the model that bnew_engine.load returns, for these numbers"
            )
        return output_kind(self.graph, self._engine.shapes)

    @cached_property
    def _outputs(self) -> list[Result]:
        return [Result(*each) for each in self._engine.outputs]

    def _read(self, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
        if not isinstance(path, str | os.PathLike):
            raise EngineError(f"images has {type(path).__name__} among names of files: give names, or arrays")
        return read_image(path, self.input_shape, self.resize)

    def values(self, *images: Any, **named: Any) -> dict[str, NDArray[np.float32]]:
        """Every named value for a batch, as :meth:`__call__` takes it; bits as −1 and +1. Slow: for checks.

        Raises:
            EngineError: as :meth:`__call__`; or the values take more than the ``max_bytes`` of :func:`load`.
        """
        given = batches(self.inputs, images, named)
        found = [
            dict(self._engine.values([images[i : i + 1] for images in given])) for i in range(len(given[0]))
        ]
        return (
            {name: np.concatenate([values[name] for values in found]) for name in found[0]} if found else {}
        )

    def convolve(self, name: str, signs: NDArray[Any]) -> NDArray[np.int32]:
        """The integers that a binary convolution computes, before its steps. Slow: for checks.

        Args:
            name: the node's name; its op is binary_conv.
            signs: (N, C_in, H, W) of −1 and +1.

        Returns:
            (N, C_out, H_out, W_out).

        Raises:
            EngineError: there is no such node, or ``signs`` has another shape or other numbers.
        """
        name = text("name", name)
        signs = array("signs", signs, np.float32)
        if signs.ndim != 4:
            raise EngineError(f"signs has shape {signs.shape}, but must be (N, C, H, W)")
        signs = np.require(signs, np.float32, ["C", "ALIGNED"])
        parts = [self._engine.convolve(name, image[None]) for image in signs]
        if not parts:
            raise EngineError("signs is empty")
        return np.concatenate(parts).astype(np.int32)

    def profile(self, image: Any, repeats: SupportsIndex | None = None) -> list[StageTime]:
        """Median time of each stage for one image.

        Args:
            image: a batch of one image, as :meth:`__call__` takes it; of several inputs, a tuple or a dict.
            repeats: how often the image is computed. None: 100 times, but no more than 2⁴⁰
                multiply-accumulates in total (about a minute), and at least once.

        Raises:
            EngineError: the image has another shape or type; ``repeats`` is below 1, or several repeats
                together take more than 2⁴⁸ multiply-accumulates.
        """
        count = self._repeats(repeats)
        given = batches(self.inputs, (image,), {})
        if len(given[0]) != 1:
            raise EngineError(f"image has shape {given[0].shape}: give one image")
        return [StageTime(*row) for row in self._engine.profile(given, count)]

    def _repeats(self, repeats: SupportsIndex | None) -> int:
        macs = max(1, int(self._engine.macs))
        if repeats is None:
            return max(1, min(_PROFILE_REPEATS, _PROFILE_MACS // macs))
        count = whole("repeats", repeats, 2**31 - 1)
        most = max(1, _MOST_PROFILE_MACS // macs)
        if count > most:
            raise EngineError(
                f"repeats is {count}, but an image takes {macs // 10**6} million multiply-accumulates: ask "
                f"for at most {most}"
            )
        return count

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs, in the order in which the model takes them."""
        return tuple(inputs_of(self.graph, self._engine.inputs))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image.

        Raises:
            EngineError: the network takes several inputs; so also :attr:`mean`, :attr:`std`, :attr:`resize`.
        """
        return self._input.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if the file has none."""
        return tuple(self._engine.classes)

    @property
    def mean(self) -> tuple[float, ...] | None:
        """The mean per channel, for pixel values in [0, 1]; None if the file does not have it."""
        return self._input.mean

    @property
    def std(self) -> tuple[float, ...] | None:
        """The standard deviation per channel, for pixel values in [0, 1]; None as for :attr:`mean`."""
        return self._input.std

    @property
    def resize(self) -> tuple[int, int]:
        """(height, width) that an image file is scaled to cover before its centre is cropped.

        For another ``input_size`` than the file's, it changes in proportion, and is rounded up.
        """
        given = self.input_shape[1:]
        packed = self.graph["input"]["shape"][1:]
        cover = self.graph["input"].get("resize", packed)
        height, width = (-(-c * g // p) for c, g, p in zip(cover, given, packed, strict=True))
        return height, width

    @property
    def _input(self) -> Input:
        """The only input.

        Raises:
            EngineError: there are several.
        """
        if len(self.inputs) > 1:
            names = ", ".join(one.name for one in self.inputs)
            raise EngineError(
                f"the network takes several inputs ({names}), and not one image: call the model that "
                "bnew_engine.load returns with all of them"
            )
        return self.inputs[0]

    @property
    def graph(self) -> dict[str, Any]:
        """The graph as docs/format.md describes it."""
        graph: dict[str, Any] = json.loads(self._engine.graph)
        return graph

    def __repr__(self) -> str:
        """One line: ``<bnew_engine.Model: 3×32×32 → 10 classes, 24 nodes, avx2, 1 thread>``."""
        results = []
        for each in self._outputs:
            many = "×".join(map(str, each.size)) or "a"
            whole_numbers = f" whole number{'s' * (each.numbers > 1)}"
            kind = whole_numbers if each.integers else " number" if not each.size else ""
            results.append(many + kind)
        result = " and ".join(results)
        if len(results) == 1 and result.isdecimal():
            result += " class" if result == "1" else " classes"
        nodes, threads = (
            f"{n} {what}{'s' * (n != 1)}"
            for n, what in ((len(self.graph["nodes"]), "node"), (self.threads, "thread"))
        )
        shape = " and ".join("×".join(map(str, one.shape)) for one in self.inputs)
        return f"<bnew_engine.Model: {shape} → {result}, {nodes}, {self.isa}, {threads}>"

    @property
    def threads(self) -> int:
        """The number of threads."""
        return self._engine.threads

    @property
    def isa(self) -> str:
        """The instruction set of this model's kernels."""
        return self._engine.isa


_LARGEST_LIMIT = 2**60
_FILES = 64  # image files that are read at once
_PROFILE_REPEATS, _PROFILE_MACS, _MOST_PROFILE_MACS = 100, 2**40, 2**48
