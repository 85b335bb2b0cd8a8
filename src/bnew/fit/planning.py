"""Decides what a fit does, by its images, the time given and a few timed steps.

A time is a promise, also on a busy machine. Choosing has a share of it, so what is not timed by then is not
chosen. If not even the shortest training fits, that is said before the images are read. Lengths follow from
the first epoch that was trained, and those of phase 2 from phase 1; what then still is too slow ends early.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bnew.data.batches import Dataset
from bnew.display import duration
from bnew.errors import BnewError
from bnew.fit import choose
from bnew.fit.folder import Folder, typical_side
from bnew.fit.plan import Clock, Plan, Wanted
from bnew.fit.reading import bring, reading_seconds
from bnew.fit.showing import Screen
from bnew.fit.timing import LEAST, WARMING, step_seconds
from bnew.process import cores
from bnew.recipe import Recipe
from bnew.references import TIMM, is_reference
from bnew.results.run import Run
from bnew.training.machine import Machine, make_fabric
from bnew.training.run_data import load_data

# Seconds for packing, verification and measuring, on an idle machine; and the share of the time that they
# get at most.
END, MOST_END = 20.0, 0.25
# How much slower than planned the end may be, where training has been.
SLOWEST = 3.0
SLACK = 0.02  # share of the time for what is not counted
ONNX = 15.0  # seconds for exporting the float network and timing it in ONNX Runtime
WORTH_A_CHANGE = 0.1  # of the time, as timed steps are never quite right
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
    timed: float = 0.0
    """Seconds that timing steps has taken."""

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
        side = typical_side(self.found)
        chosen, guess = self._candidate(side)
        images = len(self.found.paths)
        census = bring(
            self.found, chosen.image_size, self.work / "images", cores(),
            lambda done: self.screen.move(
                choose.TIMING * done / images, f"looking at the images: {done:,} of {images:,}"
            ),
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
        if guess is None or self._can_time(guess):
            budget = self._budget(recipe, data.num_classes, data.in_channels, data.counts)
        else:
            budget = guess.of(data.counts, batch)
        if self.wanted.epochs is not None:
            lengths = choose.divided(self.wanted.epochs, self.with_float)
        else:
            left = self.for_training() - self.clock.total
            lengths = choose.epochs_of_stages(left, budget, self.with_float)
        recipes = self._recipes(recipe, lengths, budget.steps_per_epoch)
        cost = choose.costs(self.with_float)
        planned = {stage: each.epochs * budget.epoch * cost[stage] for stage, each in recipes.items()}
        return Plan(
            self.wanted, self.found.digest(), census, recipes, {**planned, "end": self.end()},
            self.clock.count("start"), _why(side, budget, recipes, data), budget.steps_per_epoch,
        )  # fmt: skip

    @property
    def with_float(self) -> bool:
        """Whether a float network is trained first."""
        wanted = self.wanted
        return is_reference(wanted.model or "") and bool(wanted.weights or wanted.pretrained)

    def remeasured(self, plan: Plan) -> Plan:
        """``plan`` with the lengths that follow from the time of the first epoch that was trained."""
        first, *_ = plan.recipes
        planned = plan.seconds[first] / plan.recipes[first].epochs
        took = self.clock.stages[first]
        left = self.for_training(took / planned) - self.clock.total + took
        needed = took / planned * sum(plan.seconds[stage] for stage in plan.recipes)
        epochs = {stage: recipe.epochs for stage, recipe in plan.recipes.items()}
        lengths = choose.refitted(epochs, left / needed)
        if abs(left / needed - 1) < WORTH_A_CHANGE:
            lengths = epochs
        if lengths != epochs:
            self.screen.say(
                f"{sum(lengths.values())} epochs in all in place of {sum(epochs.values())}: one takes "
                f"{duration(took)}, not {duration(planned)}"
            )
        return replace(plan.with_epochs(lengths).slower(took / planned), measured=True)

    def settled(self, plan: Plan) -> Plan:
        """``plan`` with as many epochs of phase 2 as the time allows that is left after phase 1."""
        stage = plan.recipes["phase2"]
        planned = plan.seconds["phase1"] / plan.recipes["phase1"].epochs
        trained = Run(self.work / "phase1").epochs
        slower = self.clock.stages.get("phase1", planned * trained) / trained / planned
        epoch = slower * plan.seconds["phase2"] / stage.epochs
        left = self.for_training(slower) - self.clock.total
        epochs = max(1, min(int(left / epoch), choose.MOST_EPOCHS))
        if epochs != stage.epochs:
            self.screen.say(
                f"phase 2 gets {epochs} epochs in place of {stage.epochs}: one takes {duration(epoch)}"
            )
        return replace(plan.with_epochs({"phase2": epochs}), settled=True)

    def deadline(self, stage: str) -> float | None:
        """Seconds after which ``stage`` begins no epoch that would not end by then; None without a time."""
        if not self.seconds:
            return None
        return choose.deadlines((1 + choose.OVER / 2) * self.seconds - self.end(), self.with_float)[stage]

    def has_time_for_onnx(self) -> bool:
        """Whether the float network can be exported and timed in ONNX Runtime in the time that is left."""
        return not self.seconds or self.clock.total + ONNX < (1 + choose.OVER / 2) * self.seconds

    # ------------------------------------------------------------------ choosing

    def _candidate(self, side: int) -> tuple[choose.Candidate, choose.Budget | None]:
        """The network and the size that the time allows, and what a few steps of it say if it was timed.

        Raises:
            BnewError: not even the shortest training can be done in the time.
        """
        in_time = bool(self.seconds)
        options = choose.candidates(side, self.wanted.model, self.wanted.image_size, in_time)
        counts = choose.expected_counts(
            {part: sum(map(len, of.values())) for part, of in self.found.files.items()}
        )
        batch = self.wanted.batch_size or choose.batch_size(counts["train"])
        if not in_time:
            steps, epochs = counts["train"] // batch, self.wanted.epochs or 0
            return next((o for o in options if choose.enough(epochs, steps, o.least)), options[-1]), None
        reading = reading_seconds(self.found, options[0].image_size, cores(), self.clock.now)
        timed: dict[str, choose.Budget] = {}
        size = options[-1].image_size  # that which takes the least time
        for option in reversed(options):  # the quickest first
            if option.model in timed:
                continue
            left = self.for_training() - self.clock.total - reading
            quickest = next(iter(timed.values()), None)
            if quickest and not (self._can_time(quickest) and quickest.is_enough(left, option.least)):
                continue
            trial = self._recipe(replace(option, image_size=size), batch, "folder")
            timed[option.model] = self._budget(trial, len(self.found.classes), 3, counts)
        self._check_possible(next(iter(timed.values())), reading, options[-1])
        left = self.for_training() - self.clock.total - reading
        budgets = {o: timed[o.model].scaled(size, o.image_size) for o in options if o.model in timed}
        chosen = choose.affordable(budgets, left)
        return chosen, budgets[chosen]

    def _check_possible(self, least: choose.Budget, reading: float, option: choose.Candidate) -> None:
        """Check that the shortest plan can be done in the time given.

        Raises:
            BnewError: it cannot.
        """
        before, training = self.clock.total + reading, choose.least_seconds(least, self.with_float)
        needed = (before + training) / (1 - SLACK)
        needed += min(END, needed / 3)
        if before + training > (1 + choose.OVER) * self.seconds - self.end():
            raise BnewError(
                f"--minutes {self.wanted.minutes:g} is too short here and now: reading the images takes "
                f"about {duration(reading)}, and an epoch of {option.model} at {option.image_size}×"
                f"{option.image_size} pixels {duration(least.epoch)}; give --minutes "
                f"{math.ceil(needed / 60)} or more"
            )

    def _left_for_timing(self) -> float:
        """Seconds that choosing may still take; infinite if epochs are given."""
        return choose.TIMING * self.seconds - self.timed if self.seconds else math.inf

    def _can_time(self, other: choose.Budget) -> bool:
        """Whether there is time for the steps that timing takes, if they are as long as of ``other``."""
        return self._left_for_timing() >= (LEAST + WARMING) * other.step

    def _budget(
        self, recipe: Recipe, classes: int, channels: int, counts: Mapping[str, int]
    ) -> choose.Budget:
        """What a few steps of ``recipe`` say of its length."""
        self.screen.move(0, f"timing a few steps of {recipe.model}")
        device, now = make_fabric(self.machine).device, self.clock.now
        began = now()
        step, size = step_seconds(recipe, classes, channels, device, self._left_for_timing(), now)
        self.timed += now() - began
        batch = recipe.batch_size
        return choose.Budget(step, -(-counts["train"] // batch), counts["val"], batch, size / DISK)

    def _recipe(self, chosen: choose.Candidate, batch: int, data: str) -> Recipe:
        return Recipe(
            data=data, model=chosen.model, model_options=self.wanted.model_options, method="clip",
            image_size=chosen.image_size, batch_size=batch, lr=choose.learning_rate(chosen.model, batch),
            seed=self.wanted.seed,
        )  # fmt: skip

    def _recipes(self, recipe: Recipe, lengths: Mapping[str, int], steps_per_epoch: int) -> dict[str, Recipe]:
        """Stage → recipe, in order."""
        weights, found = self.wanted.weights, {}
        if weights is not None:
            recipe = recipe.replace(weights=os.path.relpath(weights, self.work / "run"))
        recipe = recipe.replace(pretrained=self.wanted.pretrained)
        if self.with_float:
            rate = choose.learning_rate(recipe.model, recipe.batch_size, of_floats=True)
            found["float"] = recipe.replace(method=None, lr=rate, epochs=lengths["float"])
            recipe = recipe.replace(teacher="../float", weights="../float/best.safetensors", pretrained=False)
        found["phase1"] = recipe.replace(epochs=lengths["phase1"])
        method = self.wanted.method or choose.method_for(lengths["phase2"] * steps_per_epoch)
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
