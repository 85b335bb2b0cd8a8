"""Which runs make up an experiment, what each waits for, and running them on this machine.

An experiment's folder::

    <out>/teacher/<model>/seed<k>/        real networks, where distillation asks for them
    <out>/<variant>/clip/seed<k>/         phase 1; a variant is plain, distilled, or an ablation
    <out>/<variant>/<method>/seed<k>/     phase 2
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bnew.errors import BnewError, Interrupted, lookup
from bnew.machine import Machine, cores
from bnew.recipes import EXPERIMENTS, Experiment, Recipe
from bnew.results import Run

logger = logging.getLogger("bnew")


@dataclass(frozen=True)
class Stage:
    """One run of an experiment. ``name`` is its folder below the experiment's; ``needs`` are names too."""

    name: str
    recipe: Recipe
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """Changes to all the runs of a variant: an ablation is one of these, never a copied recipe."""

    model_options: dict[str, Any]
    phase1: bool = True
    """Whether phase 2 starts from phase 1, and not from random weights."""
    phase2_length: float = 1.0
    """Times the epochs of phase 2, with the published λ."""


# The published ablations of BNEW: CIFAR-100 with distillation.
ABLATIONS: dict[str, Variant] = {
    "no-scale": Variant({"scale": False}),
    "no-shift": Variant({"shift": False}),
    "relu": Variant({"prelu": False}),
    "clipped-identity": Variant({"surrogate": "clipped_identity"}),
    "clipped-identity-no-scale": Variant({"surrogate": "clipped_identity", "scale": False}),
    "binary-ends": Variant({"binary_ends": True}),
    "binary-shortcut": Variant({"binary_shortcut": True}),
    "no-phase1": Variant({}, phase1=False),
    "200-epochs": Variant({}, phase2_length=0.2),
    "2000-epochs": Variant({}, phase2_length=2.0),
}


def plan(
    name: str,
    *,
    methods: Sequence[str] = ("bnew", "ste", "bmd", "bop"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    distill: bool = False,
    ablations: bool = False,
    epochs_scale: Sequence[float] = (1.0,),
) -> list[Stage]:
    """The stages of experiment ``name``, each after those that it needs.

    ``distill`` plans the distilled runs in place of the plain ones; ``ablations`` adds the published
    ablations of BNEW. ``epochs_scale`` is one factor for all runs, or one for
    teachers and phase 1 and one for phase 2.

    Raises:
        BnewError: unknown experiment or method, no seeds, or factors that make no sense.
    """
    experiment = lookup("experiment", name, EXPERIMENTS)
    for method in methods:
        lookup("method of phase 2", method, experiment.phase2)
    if not methods or not seeds:
        raise BnewError("an experiment needs at least one method and one seed")
    if len(set(seeds)) < len(seeds):
        raise BnewError(
            f"the seeds {', '.join(map(str, seeds))} name one twice: runs of one seed are the same run"
        )
    if len(epochs_scale) not in (1, 2):
        raise BnewError(f"the scale of the epochs takes one or two factors, not {len(epochs_scale)}")
    if ablations and not distill:
        raise BnewError("the published ablations are with distillation: add --distill")
    base = "distilled" if distill else "plain"
    planned = _variant(base, base, Variant({}), experiment, methods, seeds, epochs_scale)
    for ablation, variant in ABLATIONS.items() if ablations else ():
        planned |= _variant(ablation, base, variant, experiment, ("bnew",), seeds, epochs_scale)
    return list(planned.values())


def _variant(
    name: str,
    base: str,
    variant: Variant,
    experiment: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    epochs_scale: Sequence[float],
) -> dict[str, Stage]:
    """The stages of one variant, by name; phase 1 is that of ``base`` where the network is the same."""
    first, second = epochs_scale[0], epochs_scale[-1]
    stages: dict[str, Stage] = {}

    def add(stage: str, recipe: Recipe, *needs: str) -> str:
        stages[stage] = Stage(stage, recipe, needs)
        return stage

    for seed in seeds:
        common: dict[str, Any] = {"seed": seed}
        teachers: tuple[str, ...] = ()
        if base == "distilled":
            recipe = experiment.teacher.scaled(first)
            teachers = (add(f"teacher/{recipe.model}/seed{seed}", recipe.replace(**common)),)
            common["teacher"] = f"../../../{teachers[0]}"
        common["model_options"] = {**experiment.phase1.model_options, **variant.model_options}
        starts: tuple[str, ...] = ()
        if variant.phase1:
            folder = name if variant.model_options else base
            recipe = experiment.phase1.scaled(first).replace(**common)
            starts = (add(f"{folder}/clip/seed{seed}", recipe, *teachers),)
            common["init"] = f"../../../{starts[0]}"
        for method in methods:
            recipe = experiment.phase2[method]
            if variant.phase2_length != 1:
                strength = recipe.method_options["strength"] * variant.phase2_length  # λ T
                epochs = round(recipe.epochs * variant.phase2_length)
                recipe = recipe.replace(epochs=epochs, method_options={"strength": strength})
            recipe = recipe.scaled(second).replace(**common)
            add(f"{name}/{method}/seed{seed}", recipe, *teachers, *starts)
    return stages


def run(stages: Sequence[Stage], out: str | Path, machine: Machine, workers: int = 1) -> dict[str, str]:
    """Run ``stages`` below ``out``, up to ``workers`` side by side, each with its share of the cores.

    Each stage is a process of its own, so that one that dies takes no other with it. Stages already done
    are not run again. Returns why each of those that did not finish did not, by name; empty if all are done.

    Raises:
        BnewError: a stage's folder holds a run with another recipe; no workers, or several devices.
        KeyboardInterrupt: once every running stage has saved where it was.
    """
    if workers < 1:
        raise BnewError(f"workers is {workers}: give 1 or more")
    if machine.devices != 1:
        raise BnewError(
            f"devices is {machine.devices}, but each run of an experiment has one: give --workers to run "
            "several side by side"
        )
    if workers > 1:  # several displays would write over each other
        machine = replace(machine, quiet=True)
    out = Path(out)
    waiting = {s.name: s for s in stages if not _is_done(s, out)}
    logger.info("%d of %d runs are done already", len(stages) - len(waiting), len(stages))
    failed: dict[str, str] = {}
    running: dict[str, tuple[BaseProcess, Any]] = {}
    threads = max(1, cores() // workers)
    # Each stage is forked from a server that has loaded torch once, and has no threads yet.
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["bnew.train"])
    try:
        while waiting or running:
            for stage in list(waiting.values()):
                lost = [need for need in stage.needs if need in failed]
                if lost:
                    failed[stage.name] = f"{lost[0]} did not finish"
                    del waiting[stage.name]
                elif len(running) < workers and not any(n in waiting or n in running for n in stage.needs):
                    del waiting[stage.name]
                    said, says = context.Pipe(duplex=False)
                    process = context.Process(target=_run_stage, args=(stage, out, machine, threads, says))
                    process.start()
                    says.close()
                    running[stage.name] = process, said
                    logger.info("%s: started", stage.name)
            if running:  # waiting for nothing would never end
                wait([process.sentinel for process, _ in running.values()])
            for name, (process, said) in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[name]
                if process.exitcode:
                    try:
                        failed[name] = said.recv()
                    except EOFError:  # it had no time to say why
                        failed[name] = f"its process died with exit code {process.exitcode}"
                    logger.error("%s: %s", name, failed[name])
                else:
                    accuracy = Run(out / name).summary["test_accuracy"]
                    logger.info("%s: done, test accuracy %.2f %%", name, 100 * accuracy)
    except KeyboardInterrupt:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()
        raise
    return failed


def _is_done(stage: Stage, out: Path) -> bool:
    """Whether ``stage`` has been run, with this recipe.

    Raises:
        BnewError: its folder holds a run with another recipe.
    """
    run = Run(out / stage.name)
    run.check(stage.recipe)
    return run.done


def _run_stage(stage: Stage, out: Path, machine: Machine, threads: int, says: Any) -> None:
    """In the stage's own process: train, and say in one sentence what went wrong, if anything did."""
    import torch

    from bnew.train import train

    logging.basicConfig(level=logging.INFO, format=f"{stage.name}: %(message)s")
    torch.set_num_threads(threads)
    try:
        train(stage.recipe, out / stage.name, machine)
    except (BnewError, Interrupted) as error:
        says.send(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        says.send("stopped before its first step or after its last")
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        says.send(f"{type(error).__name__}: {error}")
        sys.exit(1)
