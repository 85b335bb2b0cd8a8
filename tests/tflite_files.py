"""Small .tflite files, as tests write them: TensorFlow Lite's operators and Larq Compute Engine's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
import tflite
from flatbuffers import flexbuffers

Array = npt.NDArray[Any]
TYPES = {
    np.dtype(np.float32): tflite.TensorType.FLOAT32,
    np.dtype(np.float16): tflite.TensorType.FLOAT16,
    np.dtype(np.int32): tflite.TensorType.INT32,
    np.dtype(np.int8): tflite.TensorType.INT8,
    np.dtype(np.bool_): tflite.TensorType.BOOL,
}
SAME, VALID = 0, 1
RELU, RELU1, RELU6 = 1, 2, 3
OPERATORS = {name: number for number, name in tflite.BUILTIN_OPCODE2NAME.items()}


class File:
    """A graph that grows operator by operator. Methods return the index of a tensor; 0 is the image."""

    def __init__(
        self, shape: Sequence[int], seed: int = 0, dtype: Any = np.float32, signature: Sequence[int] = ()
    ) -> None:
        self.signature = signature  # of the image, with −1 for a length that the file leaves open
        self.random = np.random.default_rng(seed)
        self.tensors: list[tuple[str, tuple[int, ...], np.dtype[Any], bytes]] = []
        self.operators: list[tuple[str, list[int], list[int], Any]] = []
        self.tensor("x", shape, dtype)
        self.inputs = [0]

    def tensor(self, name: str, shape: Sequence[int], dtype: Any = np.float32, content: bytes = b"") -> int:
        self.tensors.append((name, tuple(shape), np.dtype(dtype), content))
        return len(self.tensors) - 1

    def number(self, values: Any, dtype: Any = np.float32) -> int:
        array = np.asarray(values, dtype)
        return self.tensor(f"c{len(self.tensors)}", array.shape, dtype, array.tobytes())

    def normal(self, *shape: int) -> int:
        return self.number(self.random.normal(size=shape))

    def signs(self, *shape: int) -> int:
        """Packed weights of Larq: OHWI, 32 of the channels in a word, a set bit for −1."""
        return self.number(packed(self.random.choice([-1.0, 1.0], shape)), np.int32)

    def op(
        self,
        kind: str,
        inputs: Sequence[int],
        *shapes: Sequence[int],
        dtype: Any = np.float32,
        **options: Any,
    ) -> int:
        """An operator with results of these shapes. ``options`` are the schema's, of the table ``table``."""
        name = f"{kind}_{len(self.operators)}"
        outputs = [self.tensor(f"{name}.{i}", shape, dtype) for i, shape in enumerate(shapes)]
        self.operators.append((kind, list(inputs), outputs, options))
        return outputs[0]

    def conv(self, x: int, weight: int, bias: int, shape: Sequence[int], **options: Any) -> int:
        given = {"Padding": SAME, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
        return self.op("CONV_2D", [x, weight, bias], shape, table="Conv2DOptions", **given | options)

    def quantize(self, x: int) -> int:
        shape = self.tensors[x][1]
        return self.op("LceQuantize", [x], [*shape[:-1], -(-shape[-1] // 32)], dtype=np.int32)

    def bconv(
        self,
        bits: int,
        weight: int,
        numbers: Sequence[int],
        shape: Sequence[int],
        channels: int,
        **options: Any,
    ) -> int:
        """A binary convolution; ``numbers`` are multiplier and bias, or the thresholds."""
        given = {
            "channels_in": channels, "dilation_height_factor": 1, "dilation_width_factor": 1,
            "fused_activation_function": 0, "pad_values": 0, "padding": SAME, "stride_height": 1,
            "stride_width": 1,
        }  # fmt: skip
        inputs = [bits, weight, *numbers, -1] if len(numbers) == 2 else [bits, weight, -1, -1, *numbers]
        dtype = np.float32 if len(numbers) == 2 else np.int32
        return self.op("LceBconv2d", inputs, shape, dtype=dtype, **given | options)

    def content(self, *outputs: int) -> bytes:
        """The file."""
        b = flatbuffers.Builder(1024)
        names: list[str] = []
        for kind, *_ in self.operators:
            names += [] if kind in names else [kind]
        codes = [self._code(b, name) for name in names]
        buffers = [self._buffer(b, b"")] + [self._buffer(b, each[3]) for each in self.tensors]
        tensors = [self._tensor(b, index, *each[:3]) for index, each in enumerate(self.tensors)]
        operators = [self._operator(b, names.index(each[0]), *each) for each in self.operators]
        lists = [_offsets(b, tensors), _numbers(b, self.inputs), _numbers(b, outputs), _offsets(b, operators)]
        tflite.SubGraphStart(b)
        for add, each in zip(
            (
                tflite.SubGraphAddTensors,
                tflite.SubGraphAddInputs,
                tflite.SubGraphAddOutputs,
                tflite.SubGraphAddOperators,
            ),
            lists,
            strict=True,
        ):
            add(b, each)
        graphs = _offsets(b, [tflite.SubGraphEnd(b)])
        code_list, buffer_list = _offsets(b, codes), _offsets(b, buffers)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        tflite.ModelAddOperatorCodes(b, code_list)
        tflite.ModelAddSubgraphs(b, graphs)
        tflite.ModelAddBuffers(b, buffer_list)
        b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
        return bytes(b.Output())

    def write(self, path: Path, *outputs: int) -> bytes:
        content = self.content(*outputs)
        path.write_bytes(content)
        return content

    def _code(self, b: Any, name: str) -> int:
        number = OPERATORS.get(name, tflite.BuiltinOperator.CUSTOM)
        custom = None if name in OPERATORS else b.CreateString(name)
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(number, 127))
        tflite.OperatorCodeAddBuiltinCode(b, number)
        tflite.OperatorCodeAddVersion(b, 1)
        if custom is not None:
            tflite.OperatorCodeAddCustomCode(b, custom)
        return int(tflite.OperatorCodeEnd(b))

    def _buffer(self, b: Any, content: bytes) -> int:
        data = None
        if content:
            b.StartVector(1, len(content), 16)
            b.head -= len(content)
            b.Bytes[b.head : b.head + len(content)] = content
            data = b.EndVector()
        tflite.BufferStart(b)
        if data is not None:
            tflite.BufferAddData(b, data)
        return int(tflite.BufferEnd(b))

    def _tensor(self, b: Any, index: int, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        called, lengths = b.CreateString(name), _numbers(b, shape)
        signature = _numbers(b, self.signature) if self.signature and index == 0 else None
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, lengths)
        tflite.TensorAddType(b, TYPES[dtype])
        tflite.TensorAddBuffer(b, index + 1)
        tflite.TensorAddName(b, called)
        if signature is not None:
            tflite.TensorAddShapeSignature(b, signature)
        tflite.TensorAddHasRank(b, True)
        return int(tflite.TensorEnd(b))

    def _operator(
        self, b: Any, code: int, kind: str, inputs: list[int], outputs: list[int], options: dict[str, Any]
    ) -> int:
        custom = table = None
        if kind not in OPERATORS and options:
            custom = b.CreateByteVector(bytes(flexbuffers.Dumps(options)))
        elif options:
            fields = {
                name: _numbers(b, value) if isinstance(value, list) else value
                for name, value in options.items()
                if name != "table"
            }
            getattr(tflite, f"{options['table']}Start")(b)
            for name, value in fields.items():
                getattr(tflite, f"{options['table']}Add{name}")(b, value)
            table = getattr(tflite, f"{options['table']}End")(b)
        taken, made = _numbers(b, inputs), _numbers(b, outputs)
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, code)
        tflite.OperatorAddInputs(b, taken)
        tflite.OperatorAddOutputs(b, made)
        if custom is not None:
            tflite.OperatorAddCustomOptions(b, custom)
        if table is not None:
            tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, options["table"]))
            tflite.OperatorAddBuiltinOptions(b, table)
        return int(tflite.OperatorEnd(b))


def _numbers(b: Any, numbers: Sequence[int]) -> int:
    b.StartVector(4, len(numbers), 4)
    for number in reversed(numbers):
        b.PrependInt32(number)
    return int(b.EndVector())


def _offsets(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


# ------------------------------------------------------------------------ Larq's operators, on words of bits


def packed(signs: Array) -> Array:
    """(…, C) → (…, ⌈C / 32⌉) of int32: bit c is set where channel c is negative."""
    words = np.zeros((*signs.shape[:-1], -(-signs.shape[-1] // 32)), np.uint32)
    for channel in range(signs.shape[-1]):
        negative = (signs[..., channel] < 0).astype(np.uint32)
        words[..., channel // 32] |= negative << np.uint32(channel % 32)
    return words.view(np.int32)


def plain(words: Array, channels: int) -> Array:
    """(…, words) → (…, channels) of signs."""
    unsigned = words.view(np.uint32)
    bits = [unsigned[..., c // 32] >> np.uint32(c % 32) & np.uint32(1) for c in range(channels)]
    return (1 - 2 * np.stack(bits, -1).astype(np.float32)).astype(np.float32)


def _places(length: int, size: int, stride: int, dilation: int, padding: int) -> list[list[int]]:
    """For each place of the result, the rows of the image, of which some may lie outside."""
    reach = (size - 1) * dilation + 1
    count = -(-length // stride) if padding == SAME else -(-(length - reach + 1) // stride)
    before = max((count - 1) * stride + reach - length, 0) // 2 if padding == SAME else 0
    return [[place * stride - before + k * dilation for k in range(size)] for place in range(count)]


def bconv_reference(words: Array, weight: Array, channels: int, **options: int) -> Array:
    """How many products are −1, by XOR and counting bits, and how many there are: (…, O, 2)."""
    padding, ones = options.get("padding", SAME), options.get("pad_values", 0)
    rows, columns = (
        _places(
            length, size, options.get(f"stride_{side}", 1), options.get(f"dilation_{side}_factor", 1), padding
        )
        for length, size, side in zip(words.shape[1:3], weight.shape[1:3], ("height", "width"), strict=True)
    )
    groups = words.shape[3] // weight.shape[3]
    each = weight.shape[0] // groups
    result = np.zeros((len(words), len(rows), len(columns), weight.shape[0], 2), np.int64)
    for n, i, j, o in np.ndindex(result.shape[:4]):
        part = slice(o // each * weight.shape[3], (o // each + 1) * weight.shape[3])
        for (a, y), (b, x) in ((p, q) for p in enumerate(rows[i]) for q in enumerate(columns[j])):
            inside = 0 <= y < words.shape[1] and 0 <= x < words.shape[2]
            if not inside and not ones:
                continue
            seen = words[n, y, x, part] if inside else np.zeros(weight.shape[3], np.int32)
            differing = np.unpackbits((seen ^ weight[o, a, b]).view(np.uint8)).sum()
            result[n, i, j, o] += int(differing), channels // groups
    return result


def bmaxpool_reference(words: Array, size: tuple[int, int], stride: tuple[int, int], padding: int) -> Array:
    """The largest sign of each window: a bit is set only where it is in all."""
    rows, columns = (_places(*each, 1, padding) for each in zip(words.shape[1:3], size, stride, strict=True))
    result = np.zeros((len(words), len(rows), len(columns), words.shape[3]), np.int32)
    for n, i, j in np.ndindex(result.shape[:3]):
        seen = [
            words[n, y, x]
            for y in rows[i]
            for x in columns[j]
            if 0 <= y < words.shape[1] and 0 <= x < words.shape[2]
        ]
        result[n, i, j] = np.bitwise_and.reduce(seen)
    return result
