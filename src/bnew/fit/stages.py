"""From a folder of images to a packed network: looks, chooses, trains, packs, verifies, measures.

Everything is in a folder beside the file: the images at the network's size, the plan, the training loop's own
runs, and the result. So a stopped fit resumes where it was, and a finished one only shows its result.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bnew.deploy.evaluation import evaluate
from bnew.deploy.pack_run import pack_run
from bnew.deploy.verify import verify_run
from bnew.errors import BnewError, Interrupted, as_number, is_whole, lookup
from bnew.files import sha256_of, write_json
from bnew.fit.folder import Folder, look
from bnew.fit.measure import float_twin, milliseconds
from bnew.fit.page import write_page
from bnew.fit.plan import Clock, Plan, Wanted, differences
from bnew.fit.planning import Planner
from bnew.fit.result import Fitted
from bnew.fit.showing import FirstEpoch, Screen, Watch, ended_early
from bnew.recipe import Recipe
from bnew.references import check_apart
from bnew.registry import METHODS, model_to_build
from bnew.results.run import Run
from bnew.training.loop import train
from bnew.training.machine import Machine
from bnew.training.run_data import load_data

MINUTES = 10.0  # where neither a time nor epochs are given
ENDING = "packing, verifying and measuring"
now = time.perf_counter


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
        method: method of phase 2, which makes the weights binary; by default bnew, in a short run ste.
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
    with _locked(work):
        return _Fit(place, file, work, wanted, device, Screen(quiet)).run()


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
        raise BnewError(
            f"epochs is {wanted.epochs!r}, but must be a whole number of at least 2: one per phase"
        )
    if wanted.epochs is None and wanted.minutes is None:
        wanted = replace(wanted, minutes=MINUTES)
    if wanted.method is not None and lookup("method", wanted.method, METHODS).phase != 2:
        phase2 = ", ".join(name for name, row in METHODS.items() if row.phase == 2)
        raise BnewError(f"the weights of method {wanted.method} stay real: choose one of {phase2}")
    if wanted.model is not None:
        model_to_build(wanted.model)
    name = wanted.model or "birealnet20"
    # The rules of a recipe hold for what is given here too.
    Recipe(
        data="folder", model=name, model_options=wanted.model_options, method=wanted.method or "bnew",
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
        self, place: Path, file: Path, work: Path, wanted: Wanted, device: str, screen: Screen
    ) -> None:
        self.place, self.file, self.work, self.wanted, self.screen = place, file, work, wanted, screen
        self.page, self.result = file.with_suffix(".html"), work / "result.json"
        self.clock = Clock(work / "clock.json", now)
        self.machine = Machine(str(work / "images"), device=device, compile=False, quiet=True)

    def run(self) -> Fitted:
        """Do what is still to be done."""
        path = self.work / "plan.json"
        if path.is_file():
            plan = self._taken_up(Plan.read(path))
            if self._is_done():
                self.screen.say(f"{self.file} is already done")
                return Fitted.read(self.result, self.file, self.page, self.work)
            self.screen.say(f"resuming in {self.work}")
            planner = self._planner(look(self.place))
        else:
            if there := [str(each) for each in (self.file, self.page) if each.exists()]:
                raise BnewError(f"{there[0]} is there already: name another file, or remove it")
            found = look(self.place)
            shutil.rmtree(self.work / "images", ignore_errors=True)
            planner = self._planner(found)
            self.clock.stages = {}
            with self.screen.bar():
                self.screen.move(0, "looking at the images")
                plan = self._written(planner.plan())
        for line in plan.lines:
            self.screen.say(line)
        with self.screen.bar():
            for stage in plan.recipes:
                plan = self._trained(stage, plan, planner)
            trained = 1 - plan.seconds["end"] / sum(plan.seconds.values())
            self.screen.move(max(self.screen.done, trained), ENDING)
            return self._end(plan, planner)

    def _trained(self, stage: str, plan: Plan, planner: Planner) -> Plan:
        """Train ``stage``; the plan, of which lengths may have followed from the time that training takes.

        Each change of it is written before it is followed, and a run takes its length from it. So a killed
        fit resumes with the lengths that it had.
        """
        run, in_time = Run(self.work / stage), self.wanted.minutes is not None
        if stage == "phase2" and in_time and not plan.settled:
            plan = self._written(planner.settled(plan))
        while True:
            measures = in_time and not plan.measured and stage == next(iter(plan.recipes))
            watch = Watch(stage, plan.seconds, self.clock, self.screen, planner.deadline(stage), measures)
            recipe = plan.recipes[stage]
            if run.begun and run.recipe != recipe and run.recipe.replace(epochs=recipe.epochs) == recipe:
                write_json(run.path / "recipe.json", recipe.to_dict())
            try:
                train(recipe, run.path, self.machine, callbacks=[watch])
            except FirstEpoch:
                plan = self._written(planner.remeasured(plan))
            except Interrupted:
                self.clock.count(stage)
                raise
            else:
                return plan

    def _written(self, plan: Plan) -> Plan:
        plan.write(self.work / "plan.json")
        return plan

    def _planner(self, found: Folder) -> Planner:
        return Planner(found, self.work, self.wanted, self.machine, self.clock, self.screen)

    def _taken_up(self, plan: Plan) -> Plan:
        """``plan``, if it is of this fit.

        Raises:
            BnewError: it is for other options or images.
        """
        differing = differences(plan.wanted, self.wanted)
        # A finished fit does not need its images any more.
        if (self.place.exists() or not self._is_done()) and plan.images != look(self.place).digest():
            differing.append(f"the images in '{self.place}' are others")
        if differing:
            raise BnewError(
                f"{self.work} holds a fit with other options or images ({', '.join(differing)}): name "
                "another file, or delete that folder"
            )
        return plan

    def _is_done(self) -> bool:
        """Whether the result is there, and the file that it is of."""
        if not (self.result.is_file() and self.page.is_file()):
            return False
        done = Fitted.read(self.result, self.file, self.page, self.work)
        return bool(done.data.get("sha256") == sha256_of(self.file))

    def _end(self, plan: Plan, planner: Planner) -> Fitted:
        """Pack, verify, evaluate, time; write the result and the page."""
        last = Run(self.work / "phase2")
        cpu = replace(self.machine, device="cpu")
        packed = pack_run(last, self.file, cpu)
        verified = verify_run(self.file, last, cpu)
        if not verified.ok:
            raise BnewError(f"{self.file} is not the network that was trained: {verified.problems[0]}")
        data = load_data(last.recipe, cpu)
        evaluation = evaluate(self.file, data)
        twin = float_twin(last.recipe, data.num_classes, data.in_channels)
        times = milliseconds(self.file, twin, in_onnx=planner.has_time_for_onnx())
        self.clock.count("end")
        runs = {stage: Run(self.work / stage) for stage in plan.recipes}
        early = [
            ended_early(stage, run.epochs, run.recipe.epochs)
            for stage, run in runs.items()
            if run.epochs < run.recipe.epochs
        ]
        result = {
            "evaluation": evaluation.to_dict(),
            "sha256": sha256_of(self.file),
            "file_bytes": packed.file_bytes,
            "float_bytes": 4 * sum(p.numel() for p in twin.parameters()),
            "milliseconds": times,
            "seconds": round(self.clock.total, 1),
            "chosen": [*plan.lines, *early],
            "remarks": [*planner.found.notes, *plan.census.remarks()],
            "epochs": {stage: run.epochs for stage, run in runs.items()},
            "accuracies": {stage: run.summary["test_accuracy"] for stage, run in runs.items()},
        }
        fitted = Fitted(self.file, self.page, self.work, result)
        write_page(fitted, evaluation, plan, last)
        write_json(self.result, result)
        return Fitted.read(self.result, self.file, self.page, self.work)
