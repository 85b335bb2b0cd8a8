"""The code, versions and machine of a run: recorded, and compared when the run is resumed."""

from __future__ import annotations

import ast
import hashlib
import platform
import shlex
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnew import __version__
from bnew.errors import lookup
from bnew.process import cores
from bnew.recipe import Recipe
from bnew.references import LIBRARIES, TIMM, is_reference, of_library
from bnew.registry import (
    METHODS,
    NO_METHOD,
    DatasetRow,
    MethodRow,
    ModelRow,
    dataset_to_load,
    deciding,
    model_to_build,
)
from bnew.training.machine import Machine

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def environment(fabric: Fabric) -> dict[str, Any]:
    """Name → version or property of the machine, for the record."""
    import torch

    return {
        "bnew": __version__,
        "commit": _commit(),
        "command": _command(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if fabric.device.type == "cuda" else str(fabric.device),
        "world_size": fabric.world_size,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


# The code that decides the outcome of a run: modules and packages, and those of which it uses some modules.
DECIDING = (
    "binary", "data", "layers", "modes", "phases", "pointwise", "recipe", "short_runs", "training",
    "weights",
)  # fmt: skip
CHOSEN = ("bnew.methods.", "bnew.models.")
# What may make a network of a user's own.
MAKING = ("convert",)
# What in them does not: what is only shown or recorded.
BYSTANDERS = ("data.fingerprint", "data.preparation", "training.failures", "training.loggers",
              "training.machine", "training.progress",
              "training.provenance", "training.recording", "training.signals")  # fmt: skip


def conditions(recipe: Recipe, machine: Machine) -> dict[str, Any]:
    """Name → everything besides the recipe that decides the outcome of a run.

    Of code a version, or the start of a hash of each file that the run uses: of its syntax tree without
    docstrings, so that another comment is not other code. Of the registry, that of the rows that it uses. And
    how ``machine`` is to compute.
    """
    import torch
    import torchvision

    local, nodes = machine.processes
    # The number of parts of a batch that batch norm sees separately.
    parts = machine.accumulate * (1 if machine.sync_batch_norm else local * nodes)
    settings = {"precision": machine.precision, "batch_norm_parts": parts}
    code = {_name(module): _code(module) for module in used_modules(recipe)}
    rows = {what: _digest(repr(deciding(row))) for what, row in _rows(recipe).items()}
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    if recipe.model.startswith(TIMM):
        versions["timm"] = _version("timm")
    return {**versions, **code, **rows, **settings}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _rows(recipe: Recipe) -> dict[str, MethodRow | ModelRow | DatasetRow]:
    """The rows of the registry that ``recipe`` uses, such as "method ste"."""
    return {
        f"method {recipe.method}": (
            NO_METHOD if recipe.method is None else lookup("method", recipe.method, METHODS)
        ),
        f"model {recipe.model}": model_to_build(recipe.model),
        f"data set {recipe.data}": dataset_to_load(recipe.data),
    }


# ---------------------------------------------------------------------- modules


def used_modules(recipe: Recipe) -> list[str]:
    """The modules that decide a run of ``recipe``, such as "bnew.methods.ste", sorted.

    Of a user's own method, model or data set: the module that registers it, and of those that it imports,
    those in the same package, or beside the same file. Of a library, the version counts instead.
    """
    made = [
        row.load()
        for row in _rows(recipe).values()
        if not (isinstance(row, DatasetRow) and row.own_images)
        and not (isinstance(row, ModelRow) and of_library(recipe.model))
    ]
    named = {name.partition(":")[0] for name in (recipe.model, recipe.data) if is_reference(name)}
    named -= {library.rstrip(":") for library in LIBRARIES}
    homes = {_home(module) for module in {each.__module__ for each in made} | named} - {"bnew"}
    used: set[str] = set()
    for name in DECIDING + (MAKING if homes or recipe.makes_binary else ()):
        files = (_ROOT / name).glob("*.py")
        used |= {f"bnew.{name}.{file.stem}" for file in files if file.stem != "__init__"} or {f"bnew.{name}"}
    waiting = named | {base.__module__ for each in made for base in getattr(each, "__mro__", (each,))}
    while waiting:
        module = waiting.pop()
        if module not in used and (module.startswith(CHOSEN) or _home(module) in homes):
            used.add(module)
            waiting |= _imports(module)
    return sorted(used - {f"bnew.{name}" for name in BYSTANDERS})


_ROOT = Path(__file__).parent.parent


def _file(module: str) -> Path | None:
    """The source of a module of bnew, or of one that is loaded; None where it has none, as in a notebook."""
    if module.startswith("bnew."):
        return _ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file is not None and file.endswith(".py") else None


def _name(module: str) -> str:
    """The name of ``module``; of a script that is run, the one by which it is imported."""
    file = _file(module) if module in ("__main__", "__mp_main__") else None
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return module if file is None else getattr(spec, "name", file.stem)


def _home(module: str) -> str:
    """What modules share that are developed together: their package, or of single files the folder."""
    package, dot, _ = module.partition(".")
    file = _file(module)
    return package if dot or file is None or file.stem == "__init__" else str(file.parent.resolve())


def _imports(module: str) -> set[str]:
    """The modules that ``module`` imports, and those that define what it imports from others."""
    file, names = _file(module), set()
    if file is None:
        return set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = getattr(sys.modules[module], "__package__", None)
            try:
                source = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # of a script that tries it, and then another way
                continue
            values = (getattr(sys.modules.get(source), alias.name, None) for alias in node.names)
            names |= {source, *(getattr(value, "__module__", None) or "" for value in values)}
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names & set(sys.modules)


def _code(module: str) -> str:
    file = _file(module)
    if file is None:  # then nobody knows whether it is the same
        return f"in no file, at {time.time_ns()}"
    return code_hash(file)


def code_hash(file: Path) -> str:
    """The start of a hash of the syntax tree of ``file``, without docstrings."""
    return _hash_of(file.read_text("utf-8"))


@cache
def _hash_of(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            del node.body[0]
    return _digest(repr(_plain(tree)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(node: Any) -> Any:
    """A syntax tree as nested tuples, the same in all versions of Python that can parse it."""
    if isinstance(node, list):
        return tuple(map(_plain, node))
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
    return (type(node).__name__, *fields)


def _command() -> str | None:
    """The command line of this process, if it is bnew's; a process that bnew starts has the same."""
    program, *words = sys.argv or [""]
    name = {"bnew": "bnew", "__main__.py": "python -m bnew"}.get(Path(program).name)
    return None if name is None else f"{name} {shlex.join(words)}"


def _commit() -> str | None:
    """The commit of bnew's source, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    """Linux's name of the CPU, with family and model: clouds use one name for several models."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    name = facts.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= facts.keys():
        return f"{name} (family {facts['cpu family']}, model {facts['model']})"
    return name
