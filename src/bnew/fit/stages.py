"""From a folder of images to a packed network: looks, chooses, trains, packs, verifies, measures.

Everything is in a folder beside the file: the images at the network's size, the plan, the training loop's own
runs, and the result. So a stopped fit resumes where it was, and a finished one only shows its result.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.progress import Progress

from bnew.data.batches import Dataset
from bnew.deploy.evaluation import evaluate
from bnew.deploy.pack_run import pack_run
from bnew.deploy.verify import verify_run
from bnew.errors import BnewError, as_number, is_whole
from bnew.files import write_json
from bnew.fit import choose
from bnew.fit.folder import Folder, look, typical_side
from bnew.fit.measure import float_twin, milliseconds
from bnew.fit.page import write_page
from bnew.fit.plan import Clock, Plan, Wanted, differences
from bnew.fit.reading import bring
from bnew.fit.result import Fitted
from bnew.fit.showing import Watch, showing
from bnew.fit.timing import step_seconds
from bnew.process import cores
from bnew.recipe import Recipe
from bnew.references import check_apart, is_reference, of_library
from bnew.registry import METHODS, method_row, model_to_build
from bnew.results.run import Run
from bnew.training.loop import train
from bnew.training.machine import Machine, make_fabric
from bnew.training.run_data import load_data

logger = logging.getLogger("bnew")

MINUTES = 10.0  # where neither a time nor epochs are given
METHOD = "bnew"
# Seconds that are kept for packing, verification and measuring; and shares of the time, at most and for what
# comes in between.
RESERVE, MOST_RESERVE, SLACK = 30.0, 0.25, 0.03
DISK = 150e6  # bytes that a checkpoint is written by in a second


def fit(
    folder: str | Path,
    file: str | Path = "model.bnew",
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    model: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    method: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Fitted:
    """Train a binary network on a folder of images, pack it, and measure how good and how fast it is.

    Network, image size, batch and epochs are chosen for the time given, unless they are given. What was
    chosen is written once, beside ``file``, so that a stopped fit resumes and ends as if it had not been
    stopped. A finished one is returned as it is.

    Args:
        folder: ``<class>/*``, or ``{train,val,test}/<class>/*``. Missing parts are held out of train.
        file: the packed network to write. Its page and the folder of its runs are beside it.
        minutes: the time for all of it, 10 by default.
        epochs: passes over the training images in all stages together, in place of a time.
        model: network, as for ``bnew train``.
        model_options: its options.
        method: method of phase 2, which makes the weights binary; bnew by default.
        image_size: side of the network's input in pixels.
        batch_size: images per step.
        weights: file of float weights to start from.
        pretrained: start from the weights that come with a network of timm or torchvision.
        seed: of the first weights, the order of the images and their augmentation.
        device: cpu, cuda, mps or auto.
        quiet: print nothing.

    Returns:
        The numbers and where the files are; prints as a table.

    Raises:
        BnewError: bad input; the folder beside ``file`` is of a fit with other options or images.
        Interrupted: SIGINT or SIGTERM arrived while it trained.
    """
    wanted = Wanted(
        minutes, epochs, model, dict(model_options or {}), method, image_size, batch_size,
        None if weights is None else os.path.abspath(weights), pretrained, seed,
    )  # fmt: skip
    wanted = _checked(wanted)
    file, place = Path(file), Path(folder)
    if file.is_dir() or file.suffix in (".html", ".fit"):
        raise BnewError(f"{file} cannot be the packed file: name one such as model.bnew")
    if not file.parent.is_dir():
        raise BnewError(f"could not write {file}: there is no folder {file.parent}")
    work = file.with_suffix(".fit")
    check_apart((wanted.model or "",), work)
    found = look(place)
    with _locked(work):
        return _Fit(found, file, work, wanted, device, quiet).run()


def _checked(wanted: Wanted) -> Wanted:
    """``wanted``, if it can be had.

    Raises:
        BnewError: it cannot.
    """
    if wanted.minutes is not None and wanted.epochs is not None:
        raise BnewError("minutes and epochs are two lengths of a fit: give one of them")
    if wanted.minutes is not None:
        as_number("minutes", wanted.minutes, above=0)
    if wanted.epochs is not None and (not is_whole(wanted.epochs) or wanted.epochs < 2):
        raise BnewError(f"epochs is {wanted.epochs!r}, but must be a whole number of at least 2: one per phase")
    if wanted.epochs is None and wanted.minutes is None:
        wanted = replace(wanted, minutes=MINUTES)
    if wanted.method is not None and method_row(wanted.method).phase != 2:
        phase2 = ", ".join(name for name, row in METHODS.items() if row.phase == 2)
        raise BnewError(f"the weights of method {wanted.method} stay real: choose one of {phase2}")
    if wanted.model is not None:
        model_to_build(wanted.model)
    name = wanted.model or "birealnet20"
    # The rules of a recipe hold for what is given here too.
    Recipe(
        data="folder", model=name, model_options=wanted.model_options, method=wanted.method or METHOD,
        image_size=wanted.image_size, batch_size=wanted.batch_size or 1, weights=wanted.weights,
        pretrained=wanted.pretrained, seed=wanted.seed,
    )  # fmt: skip
    if wanted.weights is not None and not Path(wanted.weights).is_file():
        raise BnewError(f"there is no file {wanted.weights} with weights")
    if (wanted.weights or wanted.model_options) and wanted.model is None:
        raise BnewError("weights and options are of one network: give --model too")
    return wanted


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Lock the folder of a fit, which is made.

    Raises:
        BnewError: another process has it.
    """
    work.mkdir(exist_ok=True)
    lock = FileLock(work / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BnewError(f"another process is at work in {work}: wait for it, or name another file") from None
    try:
        yield
    finally:
        lock.release()
        if os.listdir(work) == [".lock"]:
            (work / ".lock").unlink()
            work.rmdir()


class _Fit:
    """One fit in progress."""

    def __init__(
        self, found: Folder, file: Path, work: Path, wanted: Wanted, device: str, quiet: bool
    ) -> None:
        self.found, self.file, self.work, self.wanted, self.quiet = found, file, work, wanted, quiet
        self.page = file.with_suffix(".html")
        self.clock = Clock(work / "clock.json")
        self.images = work / "images"
        self.machine = Machine(str(self.images), device=device, compile=False, quiet=True)

    def run(self) -> Fitted:
        """Do what is still to be done."""
        path, result = self.work / "plan.json", self.work / "result.json"
        if path.is_file():
            plan = self._taken_up(Plan.read(path))
            if result.is_file() and self.file.is_file() and self.page.is_file():
                self._say(f"{self.file} is already done")
                return Fitted.read(result, self.file, self.page, self.work)
            self._say(f"resuming in {self.work}")
        else:
            plan = self._plan()
            plan.write(path)
        for line in plan.why:
            self._say(line)
        with showing(self.quiet) as progress:
            for stage in plan.recipes:
                plan = self._settled(plan, stage)
                self._train(plan, stage, progress)
        return self._end(plan)

    def _say(self, line: str) -> None:
        if not self.quiet:
            logger.info("%s", line)

    def _taken_up(self, plan: Plan) -> Plan:
        """``plan``, if it is of this fit.

        Raises:
            BnewError: it is for other options or images.
        """
        differing = differences(plan.wanted, self.wanted)
        if plan.images != self.found.digest():
            differing.append(f"the images in '{self.found.root}' are others")
        if differing:
            raise BnewError(
                f"{self.work} holds a fit with other options or images ({', '.join(differing)}): name another "
                "file, or delete that folder"
            )
        return plan

    # ------------------------------------------------------------------ what is chosen

    def _plan(self) -> Plan:
        """Look at the images, time some steps, choose."""
        began = time.perf_counter()
        fabric = make_fabric(self.machine)
        wanted, side = self.wanted, typical_side(self.found)
        total = sum(len(paths) for paths in self.found.files["train"].values())
        budgets: dict[choose.Candidate, choose.Budget] = {}
        seconds = 60 * (wanted.minutes or 0)
        options = choose.candidates(side, wanted.model, wanted.image_size)
        for option in options:
            if wanted.minutes is None:
                break
            batch = wanted.batch_size or choose.batch_size(total)
            trial = self._recipe(option, batch, "folder")
            step, size = step_seconds(trial, len(self.found.classes), 3, fabric.device)
            steps = -(-total // batch)
            budgets[option] = choose.Budget(step, steps, total // 10, batch, size / DISK)
            if budgets[option].is_enough(self._for_training(seconds)):
                break
        chosen = choose.affordable(budgets, self._for_training(seconds)) if budgets else options[0]
        census = bring(self.found, chosen.image_size, self.images, cores())
        for line in (*self.found.notes, *census.remarks()):
            self._say(line)
        name = "grey_folder" if census.grey else "folder"
        data = load_data(self._recipe(chosen, 1, name), self.machine)
        batch = wanted.batch_size or choose.batch_size(data.counts["train"])
        recipe = self._recipe(chosen, batch, name)
        with_float = is_reference(chosen.model) and bool(wanted.weights or wanted.pretrained)
        step, size = step_seconds(recipe, data.num_classes, data.in_channels, fabric.device)
        steps = -(-data.counts["train"] // batch)
        budget = choose.Budget(step, steps, data.counts["val"], batch, size / DISK)
        used = time.perf_counter() - began
        self.clock.stages.clear()
        self.clock.add("start", used)
        if wanted.epochs is not None:
            lengths = choose.divided(wanted.epochs, with_float)
        else:
            lengths = choose.epochs_of_stages(self._for_training(seconds) - used, budget, with_float)
        recipes = self._recipes(recipe, lengths, with_float)
        planned = {
            stage: lengths[stage] * budget.epoch * (choose.TEACHING if each.teacher else 1)
            for stage, each in recipes.items()
        }
        planned["end"] = self._reserve(seconds)
        why = self._why(side, chosen, budget, recipes, data)
        return Plan(wanted, self.found.digest(), census, recipes, planned, used, tuple(why), data.counts)

    def _reserve(self, seconds: float) -> float:
        """Of the time, what packing and measuring are given."""
        return min(RESERVE, MOST_RESERVE * seconds) if seconds else RESERVE

    def _for_training(self, seconds: float) -> float:
        return (1 - SLACK) * seconds - self._reserve(seconds)

    def _recipe(self, chosen: choose.Candidate, batch: int, data: str) -> Recipe:
        return Recipe(
            data=data, model=chosen.model, model_options=self.wanted.model_options, method="clip",
            image_size=chosen.image_size, batch_size=batch, lr=choose.learning_rate(chosen.model, batch),
            seed=self.wanted.seed,
        )  # fmt: skip

    def _recipes(self, recipe: Recipe, lengths: Mapping[str, int], with_float: bool) -> dict[str, Recipe]:
        """Stage → recipe, in order."""
        wanted, found = self.wanted, {}
        start = {"weights": _beside(wanted.weights, self.work), "pretrained": wanted.pretrained}
        if with_float:
            rate = choose.learning_rate(recipe.model, recipe.batch_size, of_floats=True)
            found["float"] = recipe.replace(method=None, lr=rate, epochs=lengths["float"], **start)
            recipe = recipe.replace(teacher="../float")
            start = {"weights": "../float/best.safetensors"}
        found["phase1"] = recipe.replace(epochs=lengths["phase1"], **start)
        found["phase2"] = recipe.replace(
            method=wanted.method or METHOD, init="../phase1", epochs=lengths["phase2"]
        )
        return found

    def _why(
        self, side: int, chosen: choose.Candidate, budget: choose.Budget, recipes: Mapping[str, Recipe],
        data: Dataset,
    ) -> list[str]:  # fmt: skip
        """What was chosen, one line each."""
        counts = data.counts
        colours = "grey" if data.in_channels == 1 else "colour"
        return [
            f"images: {counts['train']:,} to train on, {counts['val']:,} to validate, {counts['test']:,} to "
            f"test; {data.num_classes} classes; {colours}, typically {side} pixels",
            f"network: {chosen.model} at {chosen.image_size}×{chosen.image_size} pixels, batches of "
            f"{budget.batch}: a step takes {choose.duration(budget.step)}, an epoch of "
            f"{budget.steps_per_epoch} steps about {choose.duration(budget.epoch)}",
            "training: " + ", ".join(f"{recipe.epochs} epochs of {_named(stage)}" for stage, recipe in recipes.items()),
        ]

    def _settled(self, plan: Plan, stage: str) -> Plan:
        """``plan``, where phase 2 has the length that the time left allows, decided once before it begins."""
        run = Run(self.work / stage)
        if stage != "phase2" or plan.settled or run.begun or self.wanted.minutes is None:
            return plan
        first, planned = plan.recipes["phase1"], plan.seconds["phase2"] / plan.recipes["phase2"].epochs
        epoch = self.clock.stages.get("phase1", 0.0) / first.epochs or planned
        left = self._for_training(60 * self.wanted.minutes) - self.clock.total
        epochs = max(1, min(int(left / epoch), choose.MOST_EPOCHS))
        plan = plan.with_epochs(stage, epochs)
        plan.write(self.work / "plan.json")
        if epochs != Plan.read(self.work / "plan.json").recipes["phase1"].epochs:
            self._say(f"phase 2: {epochs} epochs, as one took {choose.duration(epoch)} in phase 1")
        return plan

    # ------------------------------------------------------------------ what is done

    def _train(self, plan: Plan, stage: str, progress: Progress) -> None:
        watch = Watch(stage, plan.seconds, self.clock, progress, self.quiet)
        train(plan.recipes[stage], self.work / stage, self.machine, callbacks=[watch])

    def _end(self, plan: Plan) -> Fitted:
        """Pack, verify, evaluate, time; write the result and the page."""
        began = time.perf_counter()
        last = Run(self.work / "phase2")
        self._say("packing, verifying and measuring")
        cpu = replace(self.machine, device="cpu")
        packed = pack_run(last, self.file, cpu)
        verified = verify_run(self.file, last, cpu)
        if not verified.ok:
            raise BnewError(f"{self.file} is not the network that was trained: {verified.problems[0]}")
        data = load_data(last.recipe, cpu)
        found = evaluate(self.file, data)
        twin = float_twin(last.recipe, data.num_classes, data.in_channels)
        times = milliseconds(self.file, twin)
        self.clock.add("end", time.perf_counter() - began)
        result = {
            "evaluation": found.to_dict(),
            "file_bytes": packed.file_bytes,
            "float_bytes": 4 * sum(p.numel() for p in twin.parameters()),
            "milliseconds": times,
            "seconds": round(self.clock.total, 1),
            "chosen": plan.why,
            "remarks": [*self.found.notes, *plan.census.remarks()],
            "epochs": {stage: recipe.epochs for stage, recipe in plan.recipes.items()},
            "accuracies": {s: Run(self.work / s).summary["test_accuracy"] for s in plan.recipes},
        }
        fitted = Fitted(self.file, self.page, self.work, result)
        write_page(fitted, found, plan, last)
        write_json(self.work / "result.json", result)
        return fitted


def _named(stage: str) -> str:
    from bnew.fit.showing import NAMES

    return NAMES[stage]


def _beside(weights: str | None, work: Path) -> str | None:
    """A path to ``weights`` from a run's folder in ``work``."""
    return None if weights is None else os.path.relpath(weights, work / "run")
