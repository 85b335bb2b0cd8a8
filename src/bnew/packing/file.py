"""Reads the header of a packed file, without torch. docs/format.md defines it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bnew.display import Fitting, Line, new_table
from bnew.errors import BnewError
from bnew.packing.checksum import is_whole
from bnew.packing.rows import Argument, Takes
from bnew.packing.sizes import settled
from bnew.packing.vocabulary import OPERATORS, STEPS
from bnew.text import counted, elided, percent, printable

VERSION = "1"
METADATA = {"format", "version", "graph", "crc32"}
BYTES = {"U32": 4, "F32": 4, "F16": 2}  # of one element
_FIELDS = {"op", "name", "input", "inputs", "then", "output", "sign"}  # that any node may have
# Exceptions that a header or a graph raises if it does not follow docs/format.md.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file. For binary weights, ``shape`` is that of their 32-bit words."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The size in bytes."""
        return self.size * BYTES[self.dtype]


@dataclass(frozen=True)
class NodeSummary:
    """A node of the graph: its steps, the ``shape`` (C, H, W) of its result, its weights and their bytes.

    A tensor that two nodes use counts in the first.
    """

    name: str
    op: str
    steps: str
    shape: tuple[int, int, int]
    binary_weights: int
    real_numbers: int
    bytes: int


@dataclass(frozen=True, eq=False, repr=False)
class PackedFile(Line):
    """Header of a packed file; prints as a line, and as tables by rich.

    ``real_layers`` says why layers were packed with real weights, by their nodes' names; only
    :func:`bnew.pack` knows it.
    """

    path: Path
    graph: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    header_bytes: int
    real_layers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> PackedFile:
        """Read the header of a packed file, and compare the file's checksum if it has one.

        Raises:
            BnewError: the file is missing, damaged, not a packed file, or of another version.
        """
        path = Path(path)
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = path.stat().st_size
                if length > size - 8:
                    raise ValueError("it is cut short, or something else")
                header = json.loads(file.read(length))
            metadata = header.pop("__metadata__")
            if metadata["format"] != "bnew":
                raise ValueError(f"its format is '{metadata['format']}'")
        except OSError as error:
            raise BnewError(f"cannot read '{path}': {error.strerror}") from None
        except _DAMAGE as error:
            why = error if type(error) is ValueError else "its header is not that of one"
            raise BnewError(f"'{path}' is no packed file: {why}; make one with `bnew pack`") from None
        if metadata.get("version") != VERSION:
            raise BnewError(
                f"'{path}' is of version {metadata.get('version')} and this is bnew for version {VERSION}: "
                "pack the network again"
            )
        try:
            tensors = {name: StoredTensor(t["dtype"], tuple(t["shape"])) for name, t in header.items()}
            packed = cls(path, json.loads(metadata["graph"]), tensors, 8 + length)
            complete = packed.file_bytes == size and min(packed.output_shape) > 0
            for name in packed.graph.get("classes", []):
                _text(name)
        except BnewError:
            raise
        except _DAMAGE as error:
            raise BnewError(f"'{path}' is damaged ({error!r}): pack the network again") from None
        if not complete:
            raise BnewError(
                f"'{path}' is damaged, or was cut short while it was copied: pack the network again"
            )
        unknown = sorted(set(metadata) - METADATA)
        if unknown:
            raise BnewError(f"'{path}' is damaged, its header has {unknown[0]!r}: pack the network again")
        if "crc32" in metadata and not is_whole(path, 8 + length, metadata["crc32"]):
            raise BnewError(
                f"'{path}' is damaged, its bytes do not have the checksum that its header says: "
                "copy it again, or pack the network again"
            )
        return packed

    @property
    def tensor_bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        """The size of the file in bytes."""
        return self.header_bytes + self.tensor_bytes

    @property
    def inputs(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of an image for each input, by its name."""
        return {_text(entry["name"]): (c, h, w) for entry in self._inputs for c, h, w in [entry["shape"]]}

    @property
    def _inputs(self) -> list[Mapping[str, Any]]:
        """What the file says of each input."""
        if "inputs" not in self.graph:
            return [self.graph["input"]]
        entries: list[Mapping[str, Any]] = self.graph["inputs"]
        if "input" in self.graph or len({entry["name"] for entry in entries}) != max(len(entries), 2):
            raise ValueError("its 'inputs' must be two or more, with different names, and no 'input' beside")
        return entries

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image.

        Raises:
            BnewError: the network takes several inputs.
        """
        (shape, *others) = self.inputs.values()
        if others:
            raise BnewError(
                f"'{self.path}' takes several inputs ({', '.join(self.inputs)}), and not one image"
            )
        return shape

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first result; (classes, 1, 1) of a classifier."""
        return self._nodes_and_shapes[1][self.output_values[0]]

    @property
    def output_values(self) -> list[str]:
        """The names of the values that are the results."""
        if "output" in self.graph:
            return [self.graph["output"]]
        return [output["value"] for output in self.graph["outputs"]]

    @property
    def half(self) -> bool:
        """Whether real numbers are stored as float16."""
        return any(tensor.dtype == "F16" for tensor in self.tensors.values())

    @property
    def nodes(self) -> tuple[NodeSummary, ...]:
        """A row per node."""
        return self._nodes_and_shapes[0]

    @property
    def _weights(self) -> tuple[int, int]:
        """The number of binary weights, and of real numbers."""
        return sum(row.binary_weights for row in self.nodes), sum(row.real_numbers for row in self.nodes)

    @cached_property
    def _nodes_and_shapes(self) -> tuple[tuple[NodeSummary, ...], dict[str, tuple[int, int, int]]]:
        """A row per node, and the shape of every value."""
        shapes = self.inputs
        counted = set[str]()
        rows = []
        for node in self.graph["nodes"]:
            if unknown := _unknown(node):
                raise BnewError(
                    f"'{self.path}' has the {unknown}, which this version of bnew does not know: update bnew"
                )
            inputs = [shapes[name] for name in _inputs(node)]
            shape = OPERATORS[node["op"]].shape(settled(node, inputs, shapes), inputs)
            steps = [f"{kind} {of}" if _has(kind, Argument.VALUE) else kind for kind, of in _steps(node)]
            if "sign" in node:
                shapes[node["sign"]["output"]] = shape
                steps.append("→ bits")
            if "output" in node:
                shapes[node["output"]] = shape
            new = {name for name in _tensor_names(node) if name in self.tensors} - counted
            counted |= new
            words = {name for name in new if self.tensors[name].dtype == "U32"}
            weights = math.prod((node["channels"][0] // node["groups"], *node["kernel"])) if words else 0
            row = NodeSummary(
                name=_text(node["name"]),
                op=_text(node["op"]),
                steps=" ".join(steps),
                shape=shape,
                binary_weights=sum(weights * self.tensors[name].shape[0] for name in words),
                real_numbers=sum(self.tensors[name].size for name in new - words),
                bytes=sum(self.tensors[name].bytes for name in new),
            )
            rows.append(row)
        return tuple(rows), shapes

    def __repr__(self) -> str:
        """One line: name, input and output, nodes, weights and size."""
        *inputs, result = ("×".join(map(str, s)) for s in (*self.inputs.values(), self.output_shape))
        binary, real = self._weights
        return printable(
            f"<PackedFile '{self.path}': {' and '.join(inputs)} → {result.removesuffix('×1×1')}, "
            f"{counted(len(self.nodes), 'node')}, "
            f"{binary:,} binary weights, {real:,} real numbers, {self.file_bytes:,} bytes>"
        )

    def __rich__(self) -> Group:
        binary, real = self._weights
        facts = Table.grid(padding=(0, 2))
        for entry in self._inputs:
            what = "×".join(map(str, entry["shape"]))
            what += ", or another size" if "any_size" in entry else ""
            what += ", or images of bytes" if "mean" in entry else ""
            facts.add_row("input" + f" '{printable(entry['name'])}'" * ("inputs" in self.graph), what)
        if "classes" in self.graph:
            facts.add_row(
                "classes", Text(f"{len(self.graph['classes'])}: {printable(elided(self.graph['classes']))}")
            )
        facts.add_row("real numbers", "float16" if self.half else "float32")
        facts.add_row("binary share", f"{percent(binary / max(binary + real, 1), 1)} of all weights")
        facts.add_row("tensors", f"{self.tensor_bytes:,} bytes")
        facts.add_row("header", f"{self.header_bytes:,} bytes")
        as_float = 4 * (binary + real)
        times = f", {as_float / self.file_bytes:.1f} times smaller than in float32" if as_float else ""
        facts.add_row("file", f"{self.file_bytes:,} bytes{times}")
        ways = (self._table(), self._table(joined=True), self._table(joined=True, counts=False))
        return Group(Fitting(*ways), "", facts)

    def _table(self, joined: bool = False, counts: bool = True) -> Table:
        """A row per node; ``joined``: what it is and what follows in one column, which wraps."""
        texts = ["node", *(["is, then"] if joined else ["is", "then"])]
        table = new_table(*texts, numbers=("result", *(["binary", "real"] if counts else []), "bytes"))
        if joined:
            table.columns[1].max_width = 26
        for row in self.nodes:
            does = [f"{row.op}, {row.steps}" if row.steps else row.op] if joined else [row.op, row.steps]
            numbers = (*([row.binary_weights, row.real_numbers] if counts else []), row.bytes)
            words = (Text(printable(word)) for word in (row.name, *does))
            table.add_row(*words, "×".join(map(str, row.shape)), *(f"{n:,}" if n else "" for n in numbers))
        table.add_section()
        totals = (*(self._weights if counts else ()), self.tensor_bytes)
        table.add_row("total", *[""] * len(texts), *(f"{n:,}" for n in totals))
        return table


def read_packed(path: str | Path) -> PackedFile:
    """The old name of :meth:`PackedFile.read`, for one release."""
    warnings.warn("read_packed(path) is written PackedFile.read(path) now", DeprecationWarning, stacklevel=2)
    return PackedFile.read(path)


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name")
    return name


def _unknown(node: Mapping[str, Any]) -> str | None:
    """An operator, step or field of a node that is not in the vocabulary; None if all are.

    Raises:
        LookupError: a field is missing.
    """
    row = OPERATORS.get(_text(node["op"]))
    if row is None:
        return f"operator '{node['op']}'"
    fields = {*row.fields, *row.tensors}
    if missing := fields - set(node):
        raise LookupError(f"'{node['name']}' has no field '{min(missing)}'")
    found = [f"step '{kind}'" for kind, _ in _steps(node) if kind not in STEPS]
    known = fields | {*row.optional} | _FIELDS
    found += [f"field '{field}' in an operator '{node['op']}'" for field in set(node) - known]
    return min(found, default=None)


def _inputs(node: Mapping[str, Any]) -> list[str]:
    match OPERATORS[node["op"]].takes:
        case Takes.NOTHING:
            return []
        case Takes.LIST:
            return list(node["inputs"])
        case Takes.REAL | Takes.BITS:
            return [node["input"]]


def _steps(node: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((kind, of) for step in node.get("then", ()) for kind, of in step.items())


def _has(kind: str, argument: Argument) -> bool:
    return STEPS[kind].argument is argument


def _tensor_names(node: Mapping[str, Any]) -> list[str]:
    """All tensors that a node names."""
    fields = [node[field] for field in OPERATORS[node["op"]].tensors if field in node]
    steps = [of for kind, of in _steps(node) if _has(kind, Argument.NUMBERS)]
    sign = node.get("sign", {})
    return [*fields, *steps, *(sign[key] for key in ("scale", "shift") if key in sign)]
