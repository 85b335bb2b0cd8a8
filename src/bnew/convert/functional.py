"""ReLUs that are function calls in a module's method, as a traced graph shows them, and in its source.

A call is known by the place in the source at which Python is when torch.fx records it.
"""

from __future__ import annotations

import ast
import functools
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

from torch import fx, nn

from bnew.convert.rewriting import (
    Edit,
    Place,
    Unclear,
    calls_in,
    codes_in,
    edited,
    end_of,
    identity,
    input_of,
    origin_of,
    source_of,
)


@dataclass(frozen=True)
class ReluCall:
    """A call of a ReLU in a method of the module ``owner``, which can be rewritten."""

    owner: nn.Module
    place: Place
    kind: str

    def order(self) -> tuple[tuple[str, ...], int, int]:
        """By method, and from its first line to its last."""
        return self.place.methods, self.place.line, self.place.column


def lower_bound(node: fx.Node) -> float | None:
    """The number below which a function or method cuts its input off; None if it does no such thing."""
    name = _name(node).replace("_", "")
    if name in ("relu", "relu6"):
        return 0.0
    if name in ("hardtanh", "clamp", "clip", "clampmin"):
        second = node.args[1] if len(node.args) > 1 else None
        bound = node.kwargs.get("min_val", node.kwargs.get("min", second))
        return float(bound) if isinstance(bound, int | float) else None
    return None


def is_in_place(node: fx.Node) -> bool:
    """Whether a function or method changes its first input."""
    name = _name(node)
    return (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True


def _name(node: fx.Node) -> str:
    """Of the function or method that is called."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return str(getattr(node.target, "__name__", node.target))


def calling_frame(frame: FrameType) -> FrameType | None:
    """The nearest frame that is not torch's."""
    found: FrameType | None = frame
    while found is not None and _is_of_torch(found.f_globals.get("__name__", "")):
        found = found.f_back
    return found


def position(frame: FrameType) -> tuple[int, int]:
    """Line and column of the end of the call that the frame makes right now."""
    _, line, _, column = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    return line or 0, column or 0  # Python may be told to keep none


def _is_of_torch(module: str) -> bool:
    return module.partition(".")[0] == "torch"


def find_call(frame: FrameType, node: fx.Node) -> ReluCall | str:
    """The call of a ReLU that ``frame`` makes right now and torch.fx records as ``node``.

    Where it cannot be rewritten, says so as a clause: "relu is called in Net.forward (net.py, line 3), …".
    """
    try:
        return _find_call(frame, node)
    except Unclear as why:
        code = frame.f_code
        where = f"{code.co_qualname} ({Path(code.co_filename).name}, line {frame.f_lineno})"
        return f"{_name(node)} is called in {where}, {why}"


def _find_call(frame: FrameType, node: fx.Node) -> ReluCall:
    outer = _frame_of_method(frame)
    self_name = outer.f_code.co_varnames[0]
    owner = outer.f_locals[self_name]
    if isinstance(owner, fx.GraphModule):
        raise Unclear("which torch.fx wrote: call binarize before the network is traced")
    methods, function = _method(owner, outer.f_code)
    nested = frame is not outer
    if nested and self_name in frame.f_code.co_varnames:
        raise Unclear(f"where {self_name} is not the module")
    call = _call(function, frame)
    of_value = node.op == "call_method"
    given = input_of(call, of_value)
    if given is None or not _calls(call.func, node.target, of_value, frame):
        raise Unclear("in a way that cannot be rewritten")
    place = Place(
        methods=methods,
        line=end_of(call)[0] - function.__code__.co_firstlineno,
        column=end_of(call)[1],
        text=ast.unparse(call),
        of_value=of_value,
        rebinds=is_in_place(node) and isinstance(given, ast.Name) and not nested,
    )
    try:
        edited(function, (Edit(place, "prelu"),))
    except SyntaxError:  # the variable of a comprehension cannot be assigned
        place = replace(place, rebinds=False)
    callee = f"Tensor.{node.target}" if of_value else ast.unparse(call.func)
    return ReluCall(owner, place, f"{callee} in {methods[0]}")


def _frame_of_method(frame: FrameType) -> FrameType:
    """The frame itself, or that of the method in which a lambda or comprehension stands."""
    outer: FrameType | None = frame
    while outer is not None:
        code = outer.f_code
        inside = code.co_argcount and frame.f_code in codes_in(code)
        if inside and isinstance(outer.f_locals.get(code.co_varnames[0]), nn.Module):
            return outer
        outer = outer.f_back
    raise Unclear("which is no method of a module")


def _method(owner: nn.Module, code: CodeType) -> tuple[tuple[str, ...], FunctionType]:
    """The method of the module that has this code, with its names."""
    origin, _ = origin_of(type(owner))
    found = {
        name: value
        for kind in origin.__mro__
        for name, value in vars(kind).items()
        if isinstance(value, FunctionType) and identity(value.__code__) == identity(code)
    }
    if not found:
        wrapped = inspect.getattr_static(origin, code.co_name, None) is not None
        raise Unclear("which a decorator wraps" if wrapped else "which is no method of a module")
    if any(inspect.getattr_static(origin, name) is not function for name, function in found.items()):
        raise Unclear("which a subclass overrides and calls by super()")
    bound = [v.__func__ for v in vars(owner).values() if isinstance(v, MethodType)]
    if found.keys() & vars(owner).keys() or any(identity(f.__code__) == identity(code) for f in bound):
        raise Unclear("which the module holds as an attribute of its own")
    if type(owner).__basicsize__ != nn.Module.__basicsize__:
        raise Unclear("whose class has __slots__")
    return tuple(sorted(found)), next(iter(found.values()))


def _call(function: FunctionType, frame: FrameType) -> ast.Call:
    """The call in the function's source that the frame makes right now."""
    call = calls_in(source_of(function)).get(position(frame))
    if call is None:
        raise Unclear("where the call cannot be found in the source")
    return call


def _calls(callee: ast.expr, target: Any, of_value: bool, frame: FrameType) -> bool:
    """Whether it is the ReLU itself that is called, and not a function, such as ``map``, that calls it."""
    if of_value:
        return isinstance(callee, ast.Attribute) and callee.attr == target
    value = _value(callee, frame)
    while isinstance(value, functools.partial) and not value.args:
        value = value.func
    return not isinstance(value, fx.Proxy) and bool(value == target)


def _value(name: ast.expr, frame: FrameType) -> Any:
    """What ``a`` or ``a.b.c`` is in the frame; None where it is nothing or another kind of expression."""
    if isinstance(name, ast.Name):
        builtins = frame.f_builtins
        return {**builtins, **frame.f_globals, **frame.f_locals}.get(name.id)
    return getattr(_value(name.value, frame), name.attr, None) if isinstance(name, ast.Attribute) else None
