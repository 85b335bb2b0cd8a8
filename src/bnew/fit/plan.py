"""What was decided for a fit, written down once, and how much of its time is used."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bnew.errors import BnewError
from bnew.files import write_json
from bnew.fit import choose
from bnew.fit.reading import Census
from bnew.recipe import Recipe

VERSION = 2
NAMES = {"float": "the float network", "phase1": "phase 1", "phase2": "phase 2"}
"""Stage → what it is called."""


@dataclass(frozen=True)
class Wanted:
    """What a user asks for; the rest is chosen."""

    minutes: float | None = None
    epochs: int | None = None
    model: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    image_size: int | None = None
    batch_size: int | None = None
    weights: str | None = None
    pretrained: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """The stages of a fit, and why they are as they are."""

    wanted: Wanted
    images: str
    """See :meth:`bnew.fit.folder.Folder.digest`."""
    census: Census
    recipes: Mapping[str, Recipe]
    """Stage → its run, in the order of training."""
    seconds: Mapping[str, float]
    """Stage, and ``end`` → how long it takes, by the steps that were timed."""
    used: float
    """Seconds that looking and choosing took."""
    why: tuple[str, ...]
    """What was found and chosen, and by what; one line each."""
    steps_per_epoch: int
    """Training steps of an epoch."""
    measured: bool = False
    """Whether the lengths follow from the time that the first epoch took."""
    settled: bool = False
    """Whether phase 2 has the length that the time left after phase 1 allows."""

    @property
    def lines(self) -> list[str]:
        """:attr:`why`, and the epochs as they are now."""
        epochs = ", ".join(f"{each.epochs} of {NAMES[stage]}" for stage, each in self.recipes.items())
        return [*self.why, f"training: epochs {epochs}; method {self.recipes['phase2'].method}"]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        data = {"version": VERSION, **asdict(self)}
        data["recipes"] = {stage: recipe.to_dict() for stage, recipe in self.recipes.items()}
        write_json(path, data)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a file.

        Raises:
            BnewError: it is damaged, or of another version.
        """
        try:
            data = json.loads(path.read_text())
            version = data.pop("version")
            if version == VERSION:
                recipes = {stage: Recipe.from_dict(each) for stage, each in data.pop("recipes").items()}
                wanted, census = Wanted(**data.pop("wanted")), Census.from_dict(data.pop("census"))
                return cls(wanted=wanted, census=census, recipes=recipes, why=tuple(data.pop("why")), **data)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise BnewError(
                f"{path} is damaged ({error}): delete the folder {path.parent} to begin anew"
            ) from None
        raise BnewError(
            f"{path} is of another version of bnew: delete the folder {path.parent} to begin anew"
        )

    def with_epochs(self, lengths: Mapping[str, int]) -> Plan:
        """The same with other lengths of stages, in epochs; the method of phase 2 follows from its own."""
        recipes, seconds = dict(self.recipes), dict(self.seconds)
        for stage, epochs in lengths.items():
            seconds[stage] *= epochs / recipes[stage].epochs
            recipes[stage] = recipes[stage].replace(epochs=epochs)
        if "phase2" in lengths and self.wanted.method is None:
            method = choose.method_for(lengths["phase2"] * self.steps_per_epoch)
            recipes["phase2"] = recipes["phase2"].replace(method=method)
        return replace(self, recipes=recipes, seconds=seconds)

    def slower(self, factor: float) -> Plan:
        """The same where training takes ``factor`` times as long as was thought."""
        end = {"end": self.seconds["end"]}
        return replace(self, seconds={stage: factor * each for stage, each in self.seconds.items()} | end)


def differences(there: Wanted, here: Wanted) -> list[str]:
    """How two wishes differ, as options of the command line."""
    old, new = asdict(there), asdict(here)
    return [
        f"--{name.replace('_', '-')} is {old[name]!r} there and {new[name]!r} here"
        for name in old
        if json.dumps(old[name], sort_keys=True) != json.dumps(new[name], sort_keys=True)
    ]


class Clock:
    """The seconds that a fit has used, in a file, so that a killed one goes on counting.

    Args:
        path: the file.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.perf_counter) -> None:
        self.path, self.now = path, now
        self.since = now()
        """Since when seconds are not counted yet."""
        self.stages: dict[str, float] = {}
        """Stage → seconds."""
        if path.is_file():
            try:
                self.stages = {str(k): float(v) for k, v in json.loads(path.read_text()).items()}
            except (ValueError, TypeError, AttributeError):
                self.stages = {}

    def count(self, stage: str) -> float:
        """Count the seconds since the last count for ``stage``, and return them."""
        now = self.now()
        seconds, self.since = now - self.since, now
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        write_json(self.path, self.stages)
        return seconds

    @property
    def total(self) -> float:
        """All seconds up to now."""
        return sum(self.stages.values()) + self.now() - self.since
