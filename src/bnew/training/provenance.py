"""The code, versions and machine of a run: recorded, and compared when the run is resumed."""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnew import __version__
from bnew.errors import lookup
from bnew.process import cores
from bnew.recipe import Recipe
from bnew.training.machine import Machine

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def environment(fabric: Fabric) -> dict[str, Any]:
    """Name → version or property of the machine, for the record."""
    import torch

    return {
        "bnew": __version__,
        "commit": _commit(),
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


# Modules and packages that decide the outcome of a run; of CHOSEN, only the modules that the run uses.
DECIDING = ("data", "layers", "recipe", "short_runs", "training")
CHOSEN = ("methods", "models")
# Exceptions: their results are only shown or recorded.
BYSTANDERS = ("data.fingerprint", "data.preparation", "training.machine", "training.progress",
              "training.provenance", "training.recording", "training.signals")  # fmt: skip


def conditions(recipe: Recipe, machine: Machine) -> dict[str, Any]:
    """Name → everything besides the recipe that decides the outcome of a run.

    These are the versions of libraries, a hash of each source file that the run uses, and the settings of
    ``machine`` that change results. The hash is of the syntax tree without docstrings: comments do not count.
    """
    import torch
    import torchvision

    local, nodes = machine.processes
    # The number of parts of a batch that batch norm sees separately.
    parts = machine.accumulate * (1 if machine.sync_batch_norm else local * nodes)
    settings = {"precision": machine.precision, "batch_norm_parts": parts}
    code = {f"bnew.{name}": code_hash(_file(name)) for name in used_modules(recipe)}
    return {"torch": torch.__version__, "torchvision": torchvision.__version__, **code, **settings}


def used_modules(recipe: Recipe) -> list[str]:
    """The modules of bnew that decide the outcome of a run of ``recipe``, such as "methods.ste", sorted."""
    from bnew.methods import METHODS, Binarizer
    from bnew.models import MODELS

    used: set[str] = set()
    for name in DECIDING:
        files = (_ROOT / name).glob("*.py")
        used |= {f"{name}.{file.stem}" for file in files if file.stem != "__init__"} or {name}
    method = Binarizer if recipe.method is None else lookup("method", recipe.method, METHODS)
    model = lookup("model", recipe.model, MODELS)
    chosen = [method.__module__, getattr(model, "func", model).__module__]
    waiting = [module.removeprefix("bnew.") for module in chosen]
    while waiting:
        module = waiting.pop()
        if module not in used:
            used.add(module)
            waiting += [name for name in _imports(_file(module)) if name.startswith(CHOSEN)]
    return sorted(used - set(BYSTANDERS))


_ROOT = Path(__file__).parent.parent


def _file(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _imports(file: Path) -> list[str]:
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return [name.removeprefix("bnew.") for name in names if name.startswith("bnew.")]


@cache
def code_hash(file: Path) -> str:
    """The start of a hash of the syntax tree of ``file``, without docstrings."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            del node.body[0]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:12]


def _plain(node: Any) -> Any:
    """A syntax tree as nested tuples, the same in all versions of Python that can parse it."""
    if isinstance(node, list):
        return tuple(map(_plain, node))
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
    return (type(node).__name__, *fields)


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
