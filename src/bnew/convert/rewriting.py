"""A module's methods, rewritten: modules take the place of calls in their source.

A method is compiled from its own file with some calls changed, so that line numbers, globals, closures and
``super()`` stay. Only one module gets it: its class becomes a subclass of its own class, under the same name,
which pickles as that class and its edits.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import itertools
import linecache
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter, or_
from types import CodeType, FunctionType
from typing import Any, SupportsIndex

from torch import nn

from bnew.errors import BnewError


@dataclass(frozen=True)
class Place:
    """Where a method calls a ReLU.

    Attributes:
        methods: the names of the method in its class.
        line: of the call's end, counted from the first line of the method.
        column: of the call's end, in bytes of UTF-8, as Python counts it.
        text: the call's source.
        of_value: whether the ReLU is a method of its input, as in ``x.relu()``.
        rebinds: whether the call changes a variable in place, to which the result must then be assigned.
    """

    methods: tuple[str, ...]
    line: int
    column: int
    text: str
    of_value: bool
    rebinds: bool


@dataclass(frozen=True)
class Edit:
    """The module called ``name`` takes the place of the call."""

    place: Place
    name: str


class Unclear(Exception):
    """Why a call cannot be rewritten, as the end of "is called in Net.forward, …"."""


# ------------------------------------------------------------------------------------------ source and code


@functools.lru_cache(maxsize=256)
def source_of(function: FunctionType) -> str:
    """The whole file, after a check that the function was compiled from it."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    source = "".join(linecache.getlines(code.co_filename, function.__globals__))
    if not source:
        raise Unclear("whose source is not available")
    try:
        if _compiled(source, code) == code:
            return source
    except SyntaxError:
        pass
    raise Unclear("whose source is not what runs, as its file has changed or a tool changes its code")


@functools.lru_cache(maxsize=8)
def calls_in(source: str) -> dict[tuple[int, int], ast.Call]:
    """The calls of a file by their ends; nobody may change them."""
    return {end_of(node): node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}


# What ``from __future__ import …`` changes; a notebook has it from another cell.
_FEATURES = functools.reduce(
    or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


def _compiled(source: str | ast.Module, code: CodeType) -> CodeType | None:
    """The code of the same function, as compiled from its whole file; None if there is not one such."""
    features = code.co_flags & _FEATURES
    module = compile(source, code.co_filename, "exec", features, dont_inherit=True)
    same = [found for found in codes_in(module) if identity(found) == identity(code)]
    return same[0] if len(same) == 1 else None


@functools.lru_cache(maxsize=256)
def edited(function: FunctionType, edits: tuple[Edit, ...]) -> FunctionType:
    """The function with other calls; all else of it is the same."""
    code = function.__code__
    ends = {(code.co_firstlineno + edit.place.line, edit.place.column): edit for edit in edits}
    changes = _Changes(ends, self_name=code.co_varnames[0])
    new = _compiled(changes.visit(ast.parse(source_of(function))), code)
    if new is None or changes.done != set(edits):
        raise Unclear("whose source has changed")
    # A variable of the enclosing scope that only the ReLU used is no longer needed.
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in new.co_freevars)
    result = FunctionType(new, function.__globals__, function.__name__, function.__defaults__, closure)
    for name in ("__module__", "__qualname__", "__doc__", "__annotations__", "__kwdefaults__"):
        setattr(result, name, getattr(function, name))
    result.__dict__.update(function.__dict__)
    return result


class _Changes(ast.NodeTransformer):
    """Puts a module in place of each call; ``done`` are the edits whose call was there."""

    def __init__(self, edits: dict[tuple[int, int], Edit], self_name: str) -> None:
        self.edits, self.self_name = edits, self_name
        self.done = set[Edit]()

    def visit_Call(self, call: ast.Call) -> ast.expr:
        edit = self.edits.get(end_of(call))
        as_written = edit is not None and ast.unparse(call) == edit.place.text
        self.generic_visit(call)
        if edit is None or not as_written:
            return call
        given = input_of(call, edit.place.of_value)
        assert given is not None
        self.done.add(edit)
        module = ast.Attribute(ast.Name(self.self_name, ast.Load()), edit.name, ast.Load())
        new: ast.expr = ast.Call(module, [given], [])
        if edit.place.rebinds:
            assert isinstance(given, ast.Name)
            new = ast.NamedExpr(ast.Name(given.id, ast.Store()), new)
        return _located(new, call)


def _located(new: ast.expr, old: ast.Call) -> ast.expr:
    """The new nodes have the old call's place in the file; what goes into it keeps its own."""
    for node in ast.walk(new):
        if isinstance(node, ast.expr) and not hasattr(node, "lineno"):
            ast.copy_location(node, old)
    return new


identity = attrgetter("co_filename", "co_firstlineno", "co_qualname")  # of a code, however it was edited


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """The code and those of the functions, lambdas and comprehensions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def end_of(call: ast.Call) -> tuple[int, int]:
    """Line and column behind its closing parenthesis, by which a call is known."""
    assert call.end_lineno is not None
    assert call.end_col_offset is not None
    return call.end_lineno, call.end_col_offset


def input_of(call: ast.Call, of_value: bool) -> ast.expr | None:
    """What goes into the ReLU; None where the call does not show it."""
    if of_value:
        return call.func.value if isinstance(call.func, ast.Attribute) else None
    if call.args:
        return None if isinstance(call.args[0], ast.Starred) else call.args[0]
    return next((word.value for word in call.keywords if word.arg == "input"), None)


# ------------------------------------------------------------------------------------------------- classes


def put_modules(owner: nn.Module, modules: Mapping[str, tuple[Place, nn.Module]]) -> None:
    """Register the modules in ``owner``, each called in the given place from now on."""
    for name, (_, module) in modules.items():
        owner.add_module(name, module)
    origin, edits = origin_of(type(owner))
    new = tuple(Edit(place, name) for name, (place, _) in modules.items())
    owner.__class__ = _edited_class(origin, edits + new)


def free_names(owner: nn.Module) -> Iterator[str]:
    """prelu1, prelu2 and so on, without those that the module has already."""
    return (name for name in map("prelu{}".format, itertools.count(1)) if not hasattr(owner, name))


def origin_of(kind: type[nn.Module]) -> tuple[Any, tuple[Edit, ...]]:
    """The class as its author wrote it, and how it was edited."""
    origin: tuple[Any, tuple[Edit, ...]] = vars(kind).get("_bnew_edits", (kind, ()))
    return origin


@functools.cache
def _edited_class(origin: Any, edits: tuple[Edit, ...]) -> type[Any]:
    """A subclass of the same name whose methods call modules in these places."""

    def reduce(self: nn.Module, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        reduced = origin.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        make, args, *rest = reduced
        args = tuple(origin if arg is new else arg for arg in args)
        return remade, (origin, edits, make, args), *rest

    members: dict[str, Any] = {
        "__module__": origin.__module__,
        "__qualname__": origin.__qualname__,
        "__doc__": origin.__doc__,
        "__reduce_ex__": reduce,
        "_bnew_edits": (origin, edits),
    }
    for methods in {edit.place.methods for edit in edits}:
        function = inspect.getattr_static(origin, methods[0])
        own = tuple(edit for edit in edits if edit.place.methods == methods)
        members |= dict.fromkeys(methods, edited(function, own))
    new = types.new_class(
        origin.__name__, (nn.Module,), {"metaclass": type(origin)}, lambda n: n.update(members)
    )
    new.__bases__ = (origin,)  # in this way the origin's __init_subclass__ does not hear of it
    return new


def remade(origin: Any, edits: tuple[Edit, ...], make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A pickled module of an edited class, before it gets its state.

    Raises:
        BnewError: the source of the class is another one now.
    """
    module = make(*args)
    try:
        module.__class__ = _edited_class(origin, edits)
    except (Unclear, AttributeError, SyntaxError) as why:
        calls = ", ".join(edit.place.text for edit in edits)
        raise BnewError(
            f"{origin.__qualname__} was saved with a PReLU in place of {calls} in its methods, {why}: build "
            "the model by its present source, binarize it, and load the state_dict"
        ) from None
    return module
