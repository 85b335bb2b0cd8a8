"""Decides what a fit does, by its images, the time given and a few timed steps."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bnew.data.batches import Dataset
from bnew.display import duration
from bnew.fit import choose
from bnew.fit.folder import Folder, typical_side
from bnew.fit.plan import Clock, Plan, Wanted
from bnew.fit.reading import bring
from bnew.fit.showing import Screen
from bnew.fit.timing import step_seconds
from bnew.process import cores
from bnew.recipe import Recipe
from bnew.references import TIMM, is_reference
from bnew.training.machine import Machine, make_fabric
from bnew.training.run_data import load_data

# Seconds for packing, verification and measuring, on an idle machine; and the share of the time that they
# get at most.
END, MOST_END = 20.0, 0.25
# How much slower than planned the end may be, where training has been.
SLOWEST = 3.0
SLACK = 0.02  # share of the time for what is not counted
DISK = 150e6  # bytes of a checkpoint that are written in a second


@dataclass
class Planner:
    """What is needed to decide."""

    found: Folder
    work: Path
    """The folder of the fit."""
    wanted: Wanted
    machine: Machine
    clock: Clock
    screen: Screen

    @property
    def seconds(self) -> float:
        """The time for all of it; 0 if epochs are given."""
        return 60 * (self.wanted.minutes or 0.0)

    def end(self, slower: float = 1.0) -> float:
        """Seconds that packing and measuring get, where training is so much ``slower`` than planned."""
        wanted = END * min(max(slower, 1.0), SLOWEST)
        return min(wanted, MOST_END * self.seconds) if self.seconds else wanted

    def for_training(self, slower: float = 1.0) -> float:
        """Seconds for training, and for what comes before it."""
        return (1 - SLACK) * self.seconds - self.end(slower)

    def plan(self) -> Plan:
        """Look at the images, bring them to the size that is chosen, choose the rest.

        Raises:
            BnewError: too few of them can be read; the network does not fit; or the time is too short.
        """
        began = time.perf_counter()
        side = typical_side(self.found)
        chosen = self._candidate(side)
        images = len(self.found.paths)
        census = bring(
            self.found, chosen.image_size, self.work / "images", cores(),
            lambda done: self.screen.move(0, f"looking at the images: {done:,} of {images:,}"),
        )  # fmt: skip
        self.screen.show(census.table())
        for line in (*self.found.notes, *census.remarks()):
            self.screen.say(line)
        # Networks of torchvision, and perhaps a user's own, take colours alone.
        one_channel = census.grey and (not is_reference(chosen.model) or chosen.model.startswith(TIMM))
        name = choose.data_set(one_channel, chosen.image_size)
        data = load_data(self._recipe(chosen, 1, name), self.machine)
        batch = self.wanted.batch_size or choose.batch_size(data.counts["train"])
        recipe = self._recipe(chosen, batch, name)
        budget = self._budget(recipe, data.num_classes, data.in_channels, data.counts)
        with_float = is_reference(chosen.model) and bool(self.wanted.weights or self.wanted.pretrained)
        used = time.perf_counter() - began
        if self.wanted.epochs is not None:
            lengths = choose.divided(self.wanted.epochs, with_float)
        else:
            lengths = choose.epochs_of_stages(self.for_training() - used, budget, with_float)
        recipes = self._recipes(recipe, lengths, lengths["phase2"] * budget.steps_per_epoch, with_float)
        planned = {
            stage: each.epochs * budget.epoch * (choose.TEACHING if each.teacher else 1)
            for stage, each in recipes.items()
        }
        self.clock.start(used)
        why = _why(side, budget, recipes, data)
        return Plan(
            self.wanted, self.found.digest(), census, recipes, {**planned, "end": self.end()}, used, why
        )

    def settled(self, plan: Plan) -> Plan:
        """``plan`` with as many epochs of phase 2 as the time allows that is left after phase 1."""
        stage = plan.recipes["phase2"]
        planned = plan.seconds["phase1"]
        slower = self.clock.stages.get("phase1", planned) / planned
        epoch = slower * plan.seconds["phase2"] / stage.epochs
        left = self.for_training(slower) - self.clock.total
        epochs = max(1, min(int(left / epoch), choose.MOST_EPOCHS))
        if epochs != stage.epochs:
            self.screen.say(
                f"phase 2 gets {epochs} epochs in place of {stage.epochs}: one takes {duration(epoch)}"
            )
        return plan.with_epochs("phase2", epochs)

    def _candidate(self, side: int) -> choose.Candidate:
        """The network and the size that the time allows."""
        options = choose.candidates(side, self.wanted.model, self.wanted.image_size)
        if len(options) == 1:
            return options[0]
        parts = {part: sum(map(len, of.values())) for part, of in self.found.files.items()}
        counts = {"train": parts["train"], "val": parts.get("val", parts["train"] // 10)}
        budgets: dict[choose.Candidate, choose.Budget] = {}
        smallest, timed = options[-1].image_size, dict[str, choose.Budget]()
        for option in options:
            batch = self.wanted.batch_size or choose.batch_size(counts["train"])
            if self.wanted.epochs is not None:
                if choose.enough(self.wanted.epochs, counts["train"] // batch, option.least):
                    return option
                continue
            if option.model not in timed:  # only at the smallest size, as that takes the least time
                trial = self._recipe(replace(option, image_size=smallest), batch, "folder")
                timed[option.model] = self._budget(trial, len(self.found.classes), 3, counts)
            budgets[option] = timed[option.model].scaled(smallest, option.image_size)
            if budgets[option].is_enough(self.for_training(), option.least):
                break
        return choose.affordable(budgets, self.for_training()) if budgets else options[-1]

    def _budget(
        self, recipe: Recipe, classes: int, channels: int, counts: Mapping[str, int]
    ) -> choose.Budget:
        """What a few steps of ``recipe`` say of its length."""
        self.screen.move(0, f"timing a few steps of {recipe.model}")
        step, size = step_seconds(recipe, classes, channels, make_fabric(self.machine).device)
        batch = recipe.batch_size
        return choose.Budget(step, -(-counts["train"] // batch), counts["val"], batch, size / DISK)

    def _recipe(self, chosen: choose.Candidate, batch: int, data: str) -> Recipe:
        return Recipe(
            data=data, model=chosen.model, model_options=self.wanted.model_options, method="clip",
            image_size=chosen.image_size, batch_size=batch, lr=choose.learning_rate(chosen.model, batch),
            seed=self.wanted.seed,
        )  # fmt: skip

    def _recipes(
        self, recipe: Recipe, lengths: Mapping[str, int], steps: int, with_float: bool
    ) -> dict[str, Recipe]:
        """Stage → recipe, in order."""
        weights, found = self.wanted.weights, {}
        if weights is not None:
            recipe = recipe.replace(weights=os.path.relpath(weights, self.work / "run"))
        recipe = recipe.replace(pretrained=self.wanted.pretrained)
        if with_float:
            rate = choose.learning_rate(recipe.model, recipe.batch_size, of_floats=True)
            found["float"] = recipe.replace(method=None, lr=rate, epochs=lengths["float"])
            recipe = recipe.replace(teacher="../float", weights="../float/best.safetensors", pretrained=False)
        found["phase1"] = recipe.replace(epochs=lengths["phase1"])
        method = self.wanted.method or choose.method_for(steps)
        found["phase2"] = recipe.replace(
            method=method, init="../phase1", weights=None, pretrained=False, epochs=lengths["phase2"]
        )
        return found


def _why(side: int, budget: choose.Budget, recipes: Mapping[str, Recipe], data: Dataset) -> tuple[str, ...]:
    """What was chosen, and by what, one line each."""
    counts, last = data.counts, recipes["phase2"]
    colours = "grey" if data.in_channels == 1 else "in colour"
    return (
        f"images: {data.num_classes} classes, {colours}, typically {side} pixels; {counts['train']:,} to "
        f"train on, {counts['val']:,} to validate, {counts['test']:,} to test",
        f"network: {last.model} at {last.image_size}×{last.image_size} pixels; a step of {budget.batch} "
        f"images takes {duration(budget.step)}, an epoch about {duration(budget.epoch)}",
    )
