"""A .tflite file as the same plain data as an ONNX file, checked: TensorFlow Lite's and Larq's operators.

TensorFlow Lite orders an image as (N, H, W, C). Here every tensor of four dimensions is (N, C, H, W): the
constants are turned when they are read, and the operators (``tflite_operators``) count axes accordingly.
Packed signs are the signs themselves (``tflite_binary``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnew.errors import BnewError, first_line
from bnew.importing.graph import MOST_NUMBERS, Array, Graph, Node
from bnew.importing.tflite_binary import with_signs
from bnew.text import elided

TFLITE = "tflite"  # stands before the names of all operators of such files
# Larq's operators: whether the first input is packed signs, and the types of the result.
_LCE = {
    "LceQuantize": (False, ("INT32",)),
    "LceDequantize": (True, ("FLOAT32", "BOOL")),
    "LceBconv2d": (True, ("INT32", "FLOAT32")),
    "LceBMaxPool2d": (True, ("INT32",)),
}
_TYPES = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """What the file says of a tensor: its type by name, and its shape in TensorFlow's order.

    ``bits`` are those of Larq: the last length counts words of 32 channels.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bits: bool


@dataclass(frozen=True)
class TfliteFile:
    """A file's content, the numbers of its tensors by their names, and what it says of them."""

    content: bytes
    numbers: Mapping[str, int]
    tensors: Mapping[str, TensorInfo]


def is_tflite(path: Path) -> bool:
    """Whether a file says at its beginning that it is one of TensorFlow Lite."""
    if not path.is_file():
        return path.suffix == ".tflite"
    with path.open("rb") as file:
        return file.read(8)[4:] == b"TFL3"


def read_tflite(path: Path) -> Graph:
    """The graph of a .tflite file, of TensorFlow Lite or Larq Compute Engine.

    Raises:
        BnewError: tflite is not installed; the file is missing, broken, quantized, or has several graphs or
            inputs, or an input that is no batch of float32 images or vectors.
    """
    try:
        import tflite
    except ImportError as error:
        raise BnewError(f"importing needs tflite ({error}): pip install 'bnew[tflite]'") from None
    if not path.is_file():
        raise BnewError(f"there is no file {path}")
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise BnewError(f"{path} is no .tflite file: it does not begin as one")
    try:
        return _Reader(path, content, tflite).graph()
    except BnewError:
        raise
    except Exception as error:  # a broken file may raise anything
        raise BnewError(f"{path} is no .tflite file, or is broken: {first_line(error)}") from error


class _Reader:
    def __init__(self, path: Path, content: bytes, tflite: Any) -> None:
        self.path, self.content, self.tflite = path, content, tflite
        self.model = tflite.Model.GetRootAs(content, 0)
        graphs = self._count(self.model.SubgraphsLength())
        if graphs != 1:
            raise BnewError(f"{path} has {graphs} graphs, and a file with one is imported")
        self.main = self.model.Subgraphs(0)
        self.names = self._names()
        self.infos: dict[int, TensorInfo] = {}
        self.constants: dict[str, Array] = {}
        self._operators = [self.main.Operators(i) for i in range(self._count(self.main.OperatorsLength()))]

    def _count(self, number: int) -> int:
        """A number of things, which a file of this size can hold."""
        if not 0 <= number <= len(self.content):
            raise BnewError(f"{self.path} is broken: it counts {number} things in {len(self.content)} bytes")
        return number

    def _names(self) -> list[str]:
        """The tensors' names, each once."""
        seen: set[str] = set()
        names = []
        for index in range(self._count(self.main.TensorsLength())):
            name = (self.main.Tensors(index).Name() or b"").decode("utf-8", "backslashreplace")
            names.append(name if name and name not in seen else f"{name}#{index}")
            seen.add(names[-1])
        if len(seen) < len(names):
            raise BnewError(f"{self.path} has tensors that are called alike")
        return names

    def graph(self) -> Graph:
        kinds = [self._kind(operator) for operator in self._operators]
        larq = [operator for kind, operator in zip(kinds, self._operators, strict=True) if kind in _LCE]
        made = {index for operator in larq for index in _whole(operator.OutputsAsNumpy())}
        self.bits = {index for index in made if self._tensor_type(index) == "INT32"}
        inputs, outputs = _whole(self.main.InputsAsNumpy()), _whole(self.main.OutputsAsNumpy())
        if len(inputs) != 1:
            names = elided([self.names[index] for index in inputs])
            raise BnewError(
                f"{self.path} has {len(inputs)} inputs ({names}), but a packed file takes one image"
            )
        if not outputs:
            raise BnewError(f"{self.path} has no result")
        for index in outputs:
            if self._info(index).type != "FLOAT32":
                raise BnewError(f"the result '{self.names[index]}' of {self.path} is not float32")
        image = self._info(inputs[0])
        if image.type != "FLOAT32" or len(image.shape) not in (2, 4) or 0 in image.shape:
            raise BnewError(
                f"the input '{image.name}' of {self.path} is no batch of float32 images (N, H, W, C) or "
                f"vectors (N, C), but {image.type.lower()} of {len(image.shape)} dimensions"
            )
        if any(length < 0 for length in _whole(self._tensor(inputs[0]).ShapeSignatureAsNumpy())[1:]):
            raise BnewError(f"{self.path} leaves the size of its images open: convert it for one size")
        batch = image.shape[0]
        nodes = tuple(self._nodes(kinds, batch))
        infos = {info.name: info for info in self.infos.values()}
        return Graph(
            nodes=nodes,
            constants=self.constants,
            input=image.name,
            shape=(image.shape[3], *image.shape[1:3]) if len(image.shape) == 4 else image.shape[1:],
            batch=batch,
            outputs=tuple(self.names[index] for index in outputs),
            model=TfliteFile(self.content, {name: i for i, name in enumerate(self.names)}, infos),
        )

    def _kind(self, operator: Any) -> str:
        """An operator's name; a custom one says it itself."""
        index = operator.OpcodeIndex()
        if not 0 <= index < self._count(self.model.OperatorCodesLength()):
            raise BnewError(f"{self.path} is broken: it has no operator code {index}")
        code = self.model.OperatorCodes(index)
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        names: dict[int, str] = self.tflite.BUILTIN_OPCODE2NAME
        if number == self.tflite.BuiltinOperator.CUSTOM:
            custom: bytes = code.CustomCode() or b"CUSTOM"
            name = custom.decode("utf-8", "backslashreplace")
            return f"custom {name}" if name in names.values() else name
        return names.get(number, f"operator {number}")

    def _tensor_type(self, index: int) -> str:
        number: int = self._tensor(index).Type()
        known = vars(self.tflite.TensorType).items()
        return next((name for name, value in known if value == number), f"type {number}")

    def _tensor(self, index: int) -> Any:
        if not 0 <= index < len(self.names):
            raise BnewError(f"{self.path} is broken: it has no tensor {index}")
        return self.main.Tensors(index)

    def _info(self, index: int) -> TensorInfo:
        if index not in self.infos:
            tensor = self._tensor(index)
            name, type_ = self.names[index], self._tensor_type(index)
            shape = _whole(tensor.ShapeAsNumpy())
            if any(length < 0 for length in shape) or math.prod(shape) > MOST_NUMBERS or len(shape) > 6:
                raise BnewError(
                    f"the tensor '{name}' of {self.path} has the shape {shape}, which is too large"
                )
            self.infos[index] = TensorInfo(name, type_, tuple(shape), index in self.bits)
        return self.infos[index]

    def _nodes(self, kinds: Sequence[str], batch: int) -> Iterator[Node]:
        made, fixed = set(_whole(self.main.InputsAsNumpy())), set[str]()
        for kind, operator in zip(kinds, self._operators, strict=True):
            inputs, outputs = _whole(operator.InputsAsNumpy()), _whole(operator.OutputsAsNumpy())
            first = self.names[outputs[0]] if outputs and 0 <= outputs[0] < len(self.names) else kind
            where = f"{kind} '{first}'"
            for index in (*inputs, *outputs):
                if index != -1:
                    self._checked(where, index)
            for index in inputs:
                if index != -1 and index not in made:
                    self._hold(where, index)
            self._check_bits(where, kind, inputs, outputs)
            if made.intersection(outputs) or any(self.names[index] in self.constants for index in outputs):
                raise BnewError(f"{self.path} is broken: two operators compute '{first}'")
            made.update(outputs)
            names = tuple(None if index == -1 else self.names[index] for index in inputs)
            held = [name in self.constants or name in fixed for name in names]
            fixed.update(self.names[index] for index in outputs if all(held))
            attributes = self._attributes(where, kind, operator)
            attributes |= {"results": [self._info(index) for index in outputs], "held": held}
            node = Node(
                kind=f"{TFLITE}.{kind}",
                name=first,
                inputs=names,
                outputs=tuple(self.names[index] for index in outputs),
                attributes=attributes,
                opset=operator.OpcodeIndex(),
                batch=batch,
                protos=(),
            )
            larq = kind == "LceBconv2d"
            yield with_signs(node, outputs[0] in self.bits, self.constants) if larq else node
        for index in _whole(self.main.OutputsAsNumpy()):
            if index not in made:
                self._hold("a result", index)

    def _checked(self, where: str, index: int) -> None:
        """Refuses numbers that are quantized, sparse or kept between images."""
        info, tensor = self._info(index), self._tensor(index)
        if info.type not in _TYPES:
            raise BnewError(
                f"{where} is not imported: '{info.name}' is {info.type.lower()}, and quantized files are not "
                "imported: convert the network without quantization"
            )
        if tensor.Sparsity() is not None or tensor.IsVariable():
            raise BnewError(f"{where} is not imported: '{info.name}' is sparse, or is kept between images")

    def _check_bits(self, where: str, kind: str, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Refuses packed signs where an operator takes numbers, and numbers where it takes packed signs."""
        first, types = _LCE.get(kind, (False, ()))
        for place, index in enumerate(inputs):
            if (index in self.bits) != (first and place == 0):
                what = "no packed signs" if place == 0 and first else "bits"
                name = "nothing" if index == -1 else f"'{self.names[index]}'"
                raise BnewError(f"{where} is not imported: it computes with {name}, which is {what}")
        if kind in _LCE and (len(outputs) != 1 or self._info(outputs[0]).type not in types):
            raise BnewError(f"{where} is not imported: its result is not {' or '.join(types).lower()}")

    def _hold(self, where: str, index: int) -> None:
        """The numbers of a constant, in our order of axes."""
        info = self._info(index)
        if info.name in self.constants:
            return
        number = self._tensor(index).Buffer()
        if not 0 <= number < self._count(self.model.BuffersLength()):
            raise BnewError(f"{self.path} is broken: it has no buffer {number}")
        buffer = self.model.Buffers(number)
        start = int(buffer.Offset())
        if start > 1:  # the numbers of a large file lie behind its tables
            data = np.frombuffer(self.content[start : start + int(buffer.Size())], np.uint8)
        else:
            found = buffer.DataAsNumpy()
            data = np.empty(0, np.uint8) if isinstance(found, int) else found
        size, dtype = math.prod(map(int, info.shape)), np.dtype(_TYPES[info.type])
        if size and not data.size:
            raise BnewError(f"{where} is not imported: nothing computes '{info.name}' before it")
        if data.size != size * dtype.itemsize:
            raise BnewError(
                f"{self.path} is broken: the {data.size} bytes of '{info.name}' are not of its shape"
            )
        array = np.frombuffer(data.tobytes(), dtype).reshape(info.shape)
        turned = array.ndim == 4 and array.dtype.kind in "fb"
        self.constants[info.name] = np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if turned else array

    def _attributes(self, where: str, kind: str, operator: Any) -> dict[str, Any]:
        """All options of an operator, called as in the schema."""
        if kind in _LCE:
            return self._flexible(where, operator)
        number = operator.BuiltinOptionsType()
        names = {value: key for key, value in vars(self.tflite.BuiltinOptions).items()}
        table = operator.BuiltinOptions()
        if number == 0 or table is None:
            return {}
        options = getattr(self.tflite, str(names.get(number)), None)
        if options is None:
            raise BnewError(f"{where} is not imported: its options are of a kind that is not known")
        given = options()
        given.Init(table.Bytes, table.Pos)
        found = {}
        for name, method in vars(options).items():
            if callable(method) and method.__code__.co_argcount == 1:  # has no argument but itself
                found[name] = getattr(given, name)()
        return found

    def _flexible(self, where: str, operator: Any) -> dict[str, Any]:
        """The options of Larq's operators, which lie in a buffer of their own kind."""
        from flatbuffers import flexbuffers

        found = operator.CustomOptionsAsNumpy()
        if isinstance(found, int) or not found.size:
            return {}
        options = flexbuffers.Loads(found.tobytes())
        if not isinstance(options, dict) or not all(isinstance(each, int) for each in options.values()):
            what = "its options are not those of Larq Compute Engine 0.5 and later"
            raise BnewError(f"{where} is not imported: {what}")
        return {str(name): value for name, value in options.items()}


def _whole(numbers: Any) -> list[int]:
    """A vector of the file as numbers; flatbuffers says 0 if it is not there."""
    return [] if isinstance(numbers, int) else [int(number) for number in numbers]
