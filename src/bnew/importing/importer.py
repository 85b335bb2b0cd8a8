"""import_onnx() and import_tflite(): the order of reading, comparing and packing others' networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnew.display import some
from bnew.errors import BnewError
from bnew.files import write_atomically
from bnew.importing.comparing import NodeCheck, PackedCheck, against_engine, against_runtime
from bnew.importing.graph import MOST_NUMBERS, Graph, read_graph
from bnew.importing.network import ImportedNetwork
from bnew.importing.tflite_file import is_tflite, read_tflite
from bnew.importing.tflite_runtime import against_tflite
from bnew.packing.file import PackedFile
from bnew.packing.packer import normalised, pack
from bnew.text import counted

_SHAPE = "input_shape (--input-shape)"  # in Python, and on the command line
_IMAGES = 8  # random ones, to compare with
_BATCH = 2  # of these at once, since every value of the network is kept


@dataclass(frozen=True)
class Imported:
    """A network of another framework as a packed file, and how it was checked; prints as lines.

    ``nodes`` and ``engine`` are None if the file's ``runtime`` and bnew-engine are not installed.
    """

    path: Path
    packed: PackedFile
    nodes: NodeCheck | None
    engine: PackedCheck | None
    runtime: str = "ONNX Runtime"

    @property
    def binary_layers(self) -> int:
        """How many convolutions and linear layers have weights of one bit."""
        return sum(node.op == "binary_conv" for node in self.packed.nodes)

    def __str__(self) -> str:
        real = sum(node.op == "conv" for node in self.packed.nodes)
        size, binary = f"{self.packed.file_bytes:,} bytes", counted(self.binary_layers, "binary layer")
        lines = [f"{self.path}: {binary}, {counted(real, 'real one')}, {size}"]
        if not self.binary_layers:
            reasons: dict[str, list[str]] = {}
            for layer, reason in self.packed.real_layers.items():
                reasons.setdefault(reason, []).append(layer)
            lines += [
                f"  {len(layers)}  stays real  {reason}:  {some(layers, 3)}"
                for reason, layers in reasons.items()
            ]
        if self.nodes is None:
            lines.append(f"not compared with {self.runtime}, which is not installed")
        else:
            described = counted(self.nodes.described, "is", "are")
            by_hand = f"; {described} {self.nodes.kinds}" if self.nodes.described else ""
            differ = counted(self.nodes.nodes, "node differs", "nodes differ")
            lines.append(
                f"{self.nodes.runtime}: {differ} by {self.nodes.difference:.1g} of the "
                f"root mean square at most{by_hand}"
            )
        if self.engine is None:
            lines.append("the packed file was not run, as bnew-engine is not installed")
        else:
            found = self.engine
            differ = "differs" if found.equal == 1 else "differ"
            lines.append(
                f"bnew-engine: {found.equal} of {found.images} random images {differ} by rounding only; "
                f"{found.median:.1g} in the median, {found.largest:.1g} at most"
            )
        return "\n".join(lines)


def import_onnx(
    file: str | Path,
    path: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    half: bool = False,
) -> Imported:
    """Write the network of an ONNX or QONNX file as a packed file, which ``bnew_engine.load`` runs.

    The graph becomes a module of PyTorch, and :func:`bnew.pack` packs it: a convolution or a matrix product
    is binary if its input comes from a sign and its weights have one magnitude per output channel.

    Before anything is written, each node is compared with ONNX Runtime on random images, and the packed file
    with the module.

    Args:
        file: the ONNX file. Weights may be in other files of its folder.
        path: the packed file to write.
        input_shape: the shape of one image, (C, H, W), (C, L) or (C); needed if the file does not say it.
        mean, std, resize, classes, half: as for :func:`bnew.pack`.

    Returns:
        The description of the packed file, and what the comparisons found.

    Raises:
        BnewError: onnx is not installed; the file is missing, broken or has operators that are not imported;
            ``input_shape`` is missing or not that of the file; a node differs from ONNX Runtime by more than
            rounding; or see :func:`bnew.pack`. Nothing is written.
    """
    options = {"mean": mean, "std": std, "resize": resize, "classes": classes, "half": half}
    return _imported(file, path, read_graph(Path(file)), against_runtime, input_shape, options)


def import_tflite(
    file: str | Path,
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    half: bool = False,
) -> Imported:
    """Write the network of a .tflite file, such as Larq Compute Engine's, as a packed file.

    The file takes images as (N, H, W, C), and the packed one takes them as (N, C, H, W), as all packed files.
    Each operator is compared with Larq Compute Engine's interpreter, or with LiteRT's if the file has no
    operators of Larq. For the rest see :func:`import_onnx`.

    Args:
        file: the .tflite file.
        path: the packed file to write.
        mean, std, resize, classes, half: as for :func:`bnew.pack`.

    Returns:
        The description of the packed file, and what the comparisons found.

    Raises:
        BnewError: tflite is not installed; the file is missing, broken, quantized or has operators that are
            not imported; an operator differs from the interpreter by more than rounding; or see
            :func:`bnew.pack`. Nothing is written.
    """
    options = {"mean": mean, "std": std, "resize": resize, "classes": classes, "half": half}
    found = _imported(file, path, read_tflite(Path(file)), against_tflite, None, options)
    return replace(found, runtime="Larq Compute Engine (for NumPy 1) or LiteRT")


def import_network(
    file: str | Path, path: str | Path, *, input_shape: Sequence[int] | None = None, **options: Any
) -> Imported:
    """:func:`import_tflite` or :func:`import_onnx`, as the file's first bytes say."""
    if not is_tflite(Path(file)):
        return import_onnx(file, path, input_shape=input_shape, **options)
    if input_shape is not None:
        raise BnewError(f"a .tflite file says the shape of its images: leave out {_SHAPE}")
    return import_tflite(file, path, **options)


def _imported(
    file: str | Path,
    path: str | Path,
    graph: Graph,
    against: Callable[[ImportedNetwork, Sequence[Tensor]], NodeCheck | None],
    input_shape: Sequence[int] | None,
    options: dict[str, Any],
) -> Imported:
    """The graph compared, packed, and compared again."""
    source, target = Path(file), Path(path)
    if target.exists() and target.samefile(source):
        raise BnewError(f"{target} is the file that is imported: give the packed file another name")
    example = torch.zeros(1, *_shape(graph, file, input_shape))
    normalised(
        options["mean"], options["std"], example.shape[1]
    )  # refuses what is not one number per channel
    network = ImportedNetwork(graph).eval()
    with torch.no_grad():
        network(example)  # refuses what is not imported, by name
    batches = _random(graph, example, options["mean"], options["std"])
    nodes = against(network, batches)
    found: list[tuple[PackedFile, PackedCheck | None]] = []

    def write(beside: Path) -> None:
        packed = pack(network, example, beside, **options)
        found.append((packed, against_engine(network, beside, torch.cat(batches), options["half"])))

    write_atomically(target, write)
    ((packed, engine),) = found
    return Imported(target, replace(packed, path=target), nodes, engine)


def _shape(graph: Graph, file: str | Path, given: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one image, with every length known."""
    own = graph.shape
    known = "×".join("?" if length is None else str(length) for length in own)
    if given is None:
        lengths = [length for length in own if length is not None]
        if len(lengths) < len(own):
            raise BnewError(f"{file} takes images of {known} and leaves lengths open: give {_SHAPE}")
    else:
        lengths = [int(length) for length in given]
        fits = len(lengths) == len(own) and all(
            n > 0 and m in (None, n) for n, m in zip(lengths, own, strict=False)
        )
        if not fits:
            raise BnewError(f"{_SHAPE} is {lengths}, but {file} takes images of {known}")
    if math.prod(lengths) > MOST_NUMBERS:
        raise BnewError(f"images of {'×'.join(map(str, lengths))} are too large")
    return tuple(lengths)


def _random(
    graph: Graph, example: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[Tensor]:
    """Random images, in batches that the file takes: normalised bytes, or normal numbers."""
    generator = torch.Generator().manual_seed(0)
    size = graph.batch or _BATCH
    batches = []
    for _ in range(-(-_IMAGES // size)):
        shape = (size, *example.shape[1:])
        if mean is None or std is None:
            batches.append(torch.randn(shape, generator=generator))
        else:
            around = (-1, *(1,) * (example.dim() - 2))
            pixels = torch.randint(0, 256, shape, generator=generator) / 255
            batches.append((pixels - torch.tensor(mean).view(around)) / torch.tensor(std).view(around))
    return batches
