"""The C file and its header, written from stages and the plan of their memory."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from bnew.deploy.c99.memory import Memory, window_numbers, window_words
from bnew.deploy.c99.stages import AFFINE, Span, Stage, Value


def header(
    name: str, output: Value, image: Value, arena: int, classes: Sequence[str], exponent: int | None
) -> str:
    """The header: sizes as macros, and the functions; with an ``exponent``, those of fixed point."""
    big, (channels, height, width) = name.upper(), image.shape
    lines = [
        f"/* {name}: a network, written by `bnew export --format c`. */",
        "",
        f"#ifndef {big}_H",
        f"#define {big}_H",
        "",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"#define {big}_CHANNELS {channels}",
        f"#define {big}_HEIGHT {height}",
        f"#define {big}_WIDTH {width}",
        f"#define {big}_OUTPUTS {math.prod(output.shape)}",
        f"#define {big}_ARENA {arena} /* bytes of static memory, shared: one call at a time */",
        *_number(name, exponent),
        "",
        "/* Computes the network for an image: HEIGHT rows of WIDTH pixels of CHANNELS bytes. Writes OUTPUTS",
        "   numbers. Returns 0, or -1 if a pointer is NULL. */",
        f"int {name}_run(const uint8_t* image, {name}_number* out);",
        "",
    ]
    if output.shape[1:] == (1, 1):
        lines += [
            "/* The number of the largest output, from 0 on; -1 if the pointer is NULL. */",
            f"int {name}_predict(const uint8_t* image);",
            "",
        ]
    if classes:
        lines += [f"extern const char* const {name}_classes[{big}_OUTPUTS];", ""]
    return "\n".join([*lines, "#ifdef __cplusplus", "}", "#endif", "", "#endif", ""])


def _number(name: str, exponent: int | None) -> Iterator[str]:
    if exponent is not None:
        yield f"#define {name.upper()}_EXPONENT {exponent} /* a number q of the result is q / 2^EXPONENT */"
    yield ""
    yield f"typedef {'float' if exponent is None else 'int16_t'} {name}_number;"


def source(name: str, stages: Sequence[Stage], output: Value, memory: Memory, classes: Sequence[str]) -> str:
    """The C file: the kernels that the stages need, their constants, and the calls."""
    writer = _Writer(stages, memory)
    needs = {stage.kind.upper() for stage in stages} | {"FIXED" if memory.is_fixed else "FLOAT"}
    arena = [
        "/* Numbers and bits of all values that are needed at the same time. */",
        "static struct {",
        f"    number reals[{max(memory.reals, 1)}];",
        f"    uint32_t bits[{max(memory.words, 1)}];",
        "} arena;",
    ]
    parts = [
        f'/* {name}: a network, written by `bnew export --format c`. */\n\n#include "{name}.h"\n',
        kernels(needs),
        f"/* {'network':->98} */\n",
        "\n".join(arena) + "\n",
        *("\n".join(writer.stage(s)) + "\n" for s in range(len(stages))),
        "\n".join(writer.compute()) + "\n",
        "\n".join(_functions(name, writer.value(output), output)) + "\n",
    ]
    if classes:
        names = ",\n    ".join(text(each) for each in classes)
        parts.append(f"const char* const {name}_classes[{len(classes)}] = {{\n    {names},\n}};\n")
    return "\n".join(parts)


def kernels(needs: set[str]) -> str:
    """The text of kernels.c without the parts that are not needed, which may lie within others."""
    part = re.compile(r"#ifdef NEEDS_(\w+)\n(.*?)#endif /\* NEEDS_\1 \*/\n(\n?)", re.DOTALL)

    def kept(code: str) -> str:
        return part.sub(lambda found: kept(found[2]) + found[3] if found[1] in needs else "", code)

    return kept(files(__package__).joinpath("kernels.c").read_text("utf-8"))


def text(value: str) -> str:
    """A string literal of C; what is not plain ASCII is escaped, so that no trigraph arises."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in value.encode("utf-8", "replace")
    )
    return f'"{plain}"'


class _Writer:
    """Writes stages as constants and calls; names of the file's own have two underscores."""

    def __init__(self, stages: Sequence[Stage], memory: Memory) -> None:
        self._stages, self._memory = stages, memory
        self._made = {value: stage for stage in stages for value in stage.results}

    def value(self, value: Value) -> str:
        """The name of a value's view."""
        return f"{self._made[value].name}__{'signs' if value.is_bits else 'result'}"

    def stage(self, s: int) -> Iterator[str]:
        """Its constants, the views of its results, and the struct that its kernel takes."""
        stage = self._stages[s]
        yield f"/* {stage.name} */"
        for kind, array in stage.arrays():
            of = TYPES[array.dtype]
            yield from _array(f"static const {of} {stage.name}__{kind}", map(literal, array.flat))
        for axis, spans in zip(("rows", "columns"), stage.spans, strict=True):
            if spans:
                yield from _array(f"static const struct span {stage.name}__{axis}", map(self._span, spans))
        for value in stage.results:
            kind, part = ("bits", "bits") if value.is_bits else ("real", "reals")
            place = f"arena.{part} + {self._memory.offsets[value]}, {self._memory.rows[value]}"
            view = f"{{{place}, {value.shape[2]}, {value.shape[0]}}}"
            yield f"static const struct {kind} {self.value(value)} = {view};"
        yield f"static const struct {stage.kind} {stage.name}__stage = {{"
        yield from (f"    .{field} = {value}," for field, value in self._fields(s))
        yield "};"

    def _fields(self, s: int) -> Iterator[tuple[str, object]]:
        stage = self._stages[s]
        if stage.kind in ("image", "flatten"):
            assert stage.real is not None
            yield from self._addresses(stage)
            yield "result", f"&{self.value(stage.real)}"
        if stage.source is not None:
            yield "in", f"&{self.value(stage.source)}"
            if stage.kind == "flatten":
                yield "height", stage.source.shape[1]
            if window := stage.window:
                numbers = (*window.kernel, *window.stride, *window.dilation, *window.pad[:2])
                yield "window", f"{{{stage.source.shape[1]}, {', '.join(map(str, numbers))}}}"
        if stage.weights is not None:
            yield "weights", f"{stage.name}__weights"
        if stage.kind == "conv":
            yield "groups", stage.groups
            if window_numbers(stage):
                yield "numbers", f"arena.reals + {self._memory.scratch[s][0]}"
        if stage.kind == "binary_conv":
            assert stage.weights is not None
            scratch = self._memory.scratch[s][1]
            yield "pad_value", stage.pad_value
            yield "words", stage.weights.shape[1]
            yield "bits", f"arena.bits + {scratch}"
            yield "inside", f"arena.bits + {scratch + stage.weights.shape[1]}"
        if stage.kind == "pool":
            yield "mean", int(stage.mean)
            yield "dilation_y", stage.dilation[0]
            yield "dilation_x", stage.dilation[1]
            yield "rows", f"{stage.name}__rows"
            yield "columns", f"{stage.name}__columns"
        if stage.has_epilogue:
            end = ", ".join(f".{field} = {value}" for field, value in self._end(s))
            yield "end", "\n".join(textwrap.wrap(f"{{{end}}}", 100, subsequent_indent=" " * 12))

    def _end(self, s: int) -> Iterator[tuple[str, object]]:
        stage = self._stages[s]
        yield from self._addresses(stage)
        if stage.end.other is not None:
            yield "other", f"&{self.value(stage.end.other)}"
        yield from ((name, literal(value)) for name, value in stage.end.fields())
        for field, value in (("result", stage.real), ("signs", stage.signs)):
            if value is not None:
                yield field, f"&{self.value(value)}"
        reals, words = self._memory.scratch[s]
        if not self._memory.is_fixed:
            yield "scratch", f"arena.reals + {reals + window_numbers(stage)}"
        else:
            yield "scratch", f"(accumulator*)(arena.bits + {words + 2 * window_words(stage)})"
        yield "channels", stage.shape[0]
        yield "width", stage.shape[2]

    @staticmethod
    def _addresses(stage: Stage) -> Iterator[tuple[str, str]]:
        for kind, _ in stage.arrays():
            if kind != "weights":
                yield kind, f"{stage.name}__{kind}"

    def _span(self, span: Span) -> str:
        places = span.places if self._memory.is_fixed else literal(np.float32(span.places))
        return f"{{{span.first}, {span.last}, {places}}}"

    def compute(self) -> Iterator[str]:
        """The function that calls all stages. One that feeds another is called when that needs its rows."""
        feeds = self._memory.feeds
        yield "static void compute(const uint8_t* image) {"
        yield f"    int {', '.join(['y', *(f'{self._stages[s].name}__next = 0' for s in sorted(feeds))])};"
        for s, stage in enumerate(self._stages):
            if s not in feeds:
                yield f"    for (y = 0; y < {stage.height}; ++y) {{"
                yield from textwrap.indent("\n".join(self._row(s, "y")), " " * 8).split("\n")
                yield "    }"
        yield "}"

    def _row(self, s: int, y: str) -> Iterator[str]:
        """Computes row ``y`` of a stage, and before that what it needs of the stages that feed it."""
        stage = self._stages[s]
        for feeder in (f for f, into in self._memory.feeds.items() if into == s):
            fed, next_row = self._stages[feeder], f"{self._stages[feeder].name}__next"
            last = self._last(stage, y) if stage.source in fed.results else f"{y} + 1"
            yield f"for (; {next_row} < {fed.height} && {next_row} < {last}; ++{next_row}) {{"
            yield from (f"    {line}" for line in self._row(feeder, next_row))
            yield "}"
        image = "image, " if stage.kind == "image" else ""
        yield f"{stage.kind}_row(&{stage.name}__stage, {image}{y});"

    @staticmethod
    def _last(stage: Stage, y: str) -> str:
        """The end of the rows that row ``y`` of a stage reads."""
        if window := stage.window:
            last = window.rows(0)[1]
            return (
                f"{y} * {window.stride[0]} + {last}" if last >= 0 else f"{y} * {window.stride[0]} - {-last}"
            )
        return f"{stage.name}__rows[{y}].last" if stage.kind == "pool" else f"{y} + 1"


def _functions(name: str, value: str, output: Value) -> Iterator[str]:
    channels, height, width = output.shape
    yield f"int {name}_run(const uint8_t* image, {name}_number* out) {{"
    yield "    int c, y, x;"
    yield "    if (!image || !out) return -1;"
    yield "    compute(image);"
    yield f"    for (c = 0; c < {channels}; ++c)"
    yield f"        for (y = 0; y < {height}; ++y)"
    yield f"            for (x = 0; x < {width}; ++x) *out++ = pixel(&{value}, y, x)[c];"
    yield "    return 0;"
    yield "}"
    if (height, width) == (1, 1):
        yield ""
        yield f"int {name}_predict(const uint8_t* image) {{"
        yield f"    const number* v = {value}.data;"
        yield "    int c, best = 0;"
        yield "    if (!image) return -1;"
        yield "    compute(image);"
        yield f"    for (c = 1; c < {channels}; ++c)"
        yield "        if (v[c] > v[best]) best = c;"
        yield "    return best;"
        yield "}"


def _array(declaration: str, elements: Iterable[str]) -> Iterator[str]:
    """An array's definition, in lines of moderate length."""
    numbers = list(elements)
    yield f"{declaration}[{len(numbers)}] = {{"
    yield from textwrap.wrap(", ".join(numbers), 110, initial_indent="    ", subsequent_indent="    ")
    yield "};"


TYPES = {
    np.dtype(np.float32): "float",
    np.dtype(np.uint32): "uint32_t",
    np.dtype(np.int32): "int32_t",
    np.dtype(np.int16): "int16_t",
    np.dtype(np.int8): "int8_t",
    AFFINE: "struct affine",
}
"""The types of constants in C."""


def literal(number: Any) -> str:
    """A constant in C; a float32 by its shortest literal, which reads as the same number."""
    if isinstance(number, np.void):
        return f"{{{', '.join(map(str, number.item()))}}}"
    if isinstance(number, np.uint32):
        return f"0x{int(number):08x}"
    if not isinstance(number, np.float32):
        return str(number)
    if math.isinf(number):
        return "1.0f / 0.0f" if number > 0 else "-1.0f / 0.0f"
    return f"{number!s}f"
