"""What a user names as ``package.module:factory``, and networks of other libraries; without torch.

Nothing but Python's own import loads such a module: from ``sys.path``, and then from the current directory.
A run's folder is never a place to import from (:func:`check_apart`): it may come from someone else.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bnew.errors import BnewError, first_line

# Libraries whose networks have names, as in timm:resnet18.
TIMM, TORCHVISION = "timm:", "torchvision:"
LIBRARIES = (TIMM, TORCHVISION)
# What a data set and a network may be called besides the names of the registries, as messages say it.
DATASET_FORMS = ("package.module:factory",)
MODEL_FORMS = (*DATASET_FORMS, f"{TIMM}NAME", f"{TORCHVISION}NAME")
_NAMED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_reference(name: str) -> bool:
    """Whether ``name`` is not one of a registry: ``package.module:factory``, or of a library."""
    return ":" in name


def of_library(name: str) -> bool:
    """Whether ``name`` is a network of a library, such as ``timm:resnet18``."""
    return name.startswith(LIBRARIES)


def fetched(name: str) -> Any:
    """What ``package.module:name`` names.

    Raises:
        BnewError: it is no such name, the module cannot be imported, or has no such name.
    """
    if not _NAMED.fullmatch(name):
        raise BnewError(f"'{name}' is no name such as package.module:factory")
    module, _, attribute = name.partition(":")
    if not module.startswith("bnew."):
        _see_current_directory()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise BnewError(
                f"{name} is not found, there is no module {error.name}: start the command in the folder that "
                "has it, or put that folder into PYTHONPATH, or install the package"
            ) from None
        raise _broken(name, error) from error
    except Exception as error:
        raise _broken(name, error) from error
    if not hasattr(imported, attribute):
        near = difflib.get_close_matches(attribute, dir(imported), n=1)
        hint = f": did you mean '{near[0]}'?" if near else ""
        raise BnewError(f"{getattr(imported, '__file__', module)} has no '{attribute}'{hint}")
    return getattr(imported, attribute)


def factory(name: str) -> Callable[..., Any]:
    """The function or class that ``package.module:name`` names, see :func:`fetched`.

    Raises:
        BnewError: as for :func:`fetched`; or it cannot be called.
    """
    found = fetched(name)
    if not callable(found):
        raise BnewError(f"{name} is a {type(found).__name__}, but must be a function or a class")
    return found  # type: ignore[no-any-return]


def check_apart(names: Iterable[str], folder: Path) -> None:
    """Check that no module of ``names`` would be imported from ``folder``, a run's.

    Raises:
        BnewError: one would; it is not imported.
    """
    for name in names:
        top = name.partition(":")[0].partition(".")[0]
        if not is_reference(name) or of_library(name) or top in sys.modules:
            continue
        _see_current_directory()
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            continue
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        for place in places:
            if place is not None and Path(place).resolve().is_relative_to(folder.resolve()):
                raise BnewError(
                    f"{name} would be imported from the run's own folder, which may hold the code of others "
                    f"('{place}'): read it, and if you trust it, move it out of {folder}"
                )


def _see_current_directory() -> None:
    """Make modules in the current directory importable, after all others."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()


def _broken(name: str, error: BaseException) -> BnewError:
    module = name.partition(":")[0]
    return BnewError(
        f"{name} is not available, as importing {module} fails ({type(error).__name__}: "
        f"{first_line(error)}): repair that first"
    )
