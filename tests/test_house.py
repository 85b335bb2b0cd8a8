"""The rooms of the house: what each may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bnew

ROOT = Path(bnew.__file__).parent
# Each may import those before it, and modules at the root.
ROOMS = (
    "convert",
    "models",
    "methods",
    "data",
    "results",
    "training",
    "experiments",
    "packing",
    "deploy",
    "importing",
    "fit",
    "cli",
)
# These do not know the rooms that stand before them.
APART = {
    "convert": (), "models": (), "methods": (), "data": (), "results": ("data",), "packing": (),
    "importing": ("packing", "deploy"),
}  # fmt: skip
# Modules at the root that are public names of others, and ``python -m bnew``.
DOORS = ("recipes", "report", "train", "__main__")


def modules() -> dict[str, Path]:
    """Modules of bnew by name without "bnew."."""
    files = {path.relative_to(ROOT).with_suffix(""): path for path in ROOT.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}


def imported(path: Path) -> set[str]:
    """What a file imports of bnew, wherever in it, except for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith("bnew."):
            inner = {f"{node.module}.{alias.name}".removeprefix("bnew.") for alias in node.names}
            known = {name for name in inner if name in KNOWN}
            names |= known or {node.module.removeprefix("bnew").removeprefix(".")}
    return names - {""}


KNOWN = modules()
ROOT_MODULES = {name for name in KNOWN if "." not in name and name not in (*ROOMS, *DOORS, "__init__")}


def room_of(module: str) -> str | None:
    room = module.partition(".")[0]
    return room if room in ROOMS else None


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_those_before_it(room: str) -> None:
    allowed = APART.get(room, ROOMS[: ROOMS.index(room)])
    for module, path in KNOWN.items():
        if room_of(module) == room:
            others = {room_of(name) for name in imported(path)} - {None, room}
            assert others <= set(allowed), f"{module} imports {others - set(allowed)}"


def test_the_root_imports_no_room() -> None:
    for module in ROOT_MODULES:
        assert imported(KNOWN[module]) <= ROOT_MODULES, module


def test_results_import_only_descriptions_of_data() -> None:
    for module, path in KNOWN.items():
        if room_of(module) == "results":
            of_data = {name for name in imported(path) if room_of(name) == "data"}
            assert of_data <= {"data.fingerprint", "data.preparation"}, module


def test_no_module_waits_for_itself() -> None:
    """No cycles among what modules import at the top."""
    top: dict[str, set[str]] = {}
    for module, path in KNOWN.items():
        tree = ast.parse(path.read_text("utf-8"))
        tops = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        top[module] = {
            (node.module or "").removeprefix("bnew.")
            for node in tops
            if (node.module or "").startswith("bnew.") and not module.startswith(f"{node.module}")
        }
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in done:
            for name in top.get(module, ()):
                walk(name, (*path, module))
            done.add(module)

    for module in top:
        walk(module, ())


LIGHT = (
    "bnew", "bnew.cli", "bnew.recipes", "bnew.register", "bnew.report", "bnew.results.groups",
    "bnew.packing.file", "bnew.packing.vocabulary", "bnew.data.images", "bnew.deploy.inference",
    "bnew.experiments.plan",
)  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_loads_no_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_public_names() -> None:
    for name in bnew.__all__:
        assert getattr(bnew, name) is not None
    assert bnew.train.train is __import__("bnew.training.loop", fromlist=["train"]).train
    with pytest.raises(AttributeError, match="module 'bnew' has no attribute 'trian'"):
        bnew.trian  # type: ignore[attr-defined]  # noqa: B018


def test_per_cent_is_written_in_one_way() -> None:
    """By :func:`bnew.text.percent`: no other file formats a share with Python's own %, which has no space."""
    for module, path in KNOWN.items():
        assert not re.search(r":\.\d%\}", path.read_text("utf-8")), module


def test_every_file_is_on_the_map() -> None:
    """docs/architecture.md names each file, below its room."""
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text("utf-8")
    rooms = text.partition("src/bnew/\n")[2].partition("\nengine/")[0]
    parts = re.split(r"^  (?=\w+/ )", rooms, flags=re.MULTILINE)
    named = {part.partition("/")[0]: part for part in parts[1:]} | {"": parts[0]}
    for module, path in KNOWN.items():
        room = module.partition(".")[0] if "." in module else ""
        if path.name != "__init__.py":
            name = path.name if room != "models" else path.stem
            assert re.search(rf"\b{re.escape(name)}\b", named[room]), module


def test_no_file_outgrows_its_room() -> None:
    for name, path in KNOWN.items():
        assert len(path.read_text("utf-8").splitlines()) <= LONG.get(name, 350), name


# Longer ones, each of which is one room: the loop, and images that are read while it runs.
LONG = {"training.loop": 450, "data.streaming": 420}
