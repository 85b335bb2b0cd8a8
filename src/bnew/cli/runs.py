"""Commands that train and that show what was trained."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bnew.cli.arguments import (
    ExperimentArgument,
    MachineOptions,
    ModelArgument,
    RecipeOptions,
    RunArgument,
    RunArguments,
)
from bnew.errors import (
    lookup,
)
from bnew.experiments.plan import plan
from bnew.process import is_first_process
from bnew.recipe import TORCHVISION
from bnew.registry import METHODS, MODELS, method_row
from bnew.text import printable

logger = logging.getLogger("bnew")


def reproduce(
    experiment: ExperimentArgument,
    /,
    machine: MachineOptions,
    out: Path | None = None,
    methods: Annotated[tuple[str, ...] | None, tyro.conf.arg(aliases=("--method",))] = None,
    seeds: tuple[int, ...] | None = None,
    epochs_scale: tuple[float, ...] = (1.0,),
    distill: bool = False,
    ablations: bool = False,
    steps: tuple[str, ...] | None = None,
    teacher: str | None = None,
    model: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    launcher: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> int:
    """Run a published experiment: teachers where asked, phase 1, every method, a test each, the table.

    Runs that are done are not run again; one that was stopped resumes. ImageNet is any folder
    --data-dir of images, as train/CLASS/* and val/CLASS/*; there phase 1 is step1, phase 2 is step2, and
    finetune follows. torchrun runs the same command on several devices and machines.

    Args:
        experiment: one of {experiments}; digits is for a first look.
        machine: where to compute.
        out: folder of the experiment's runs; default runs/EXPERIMENT.
        methods: methods of phase 2, out of {phase2}; by default all, for imagenet bnew alone, out of
            {imagenet_phase2}. Only if they are named, and not for imagenet: {on_request}.
        seeds: one run of everything per seed; by default 0 to 4, for imagenet 0 alone.
        epochs_scale: make all runs this many times as long, schedules in proportion; two numbers are
            for teachers and phase 1, and for what follows; a third is for finetune.
        distill: train with a teacher's outputs as targets, in place of the plain runs; imagenet does so
            anyway.
        ablations: the published ablations of BNEW too.
        steps: only these, out of {steps}; those before have to be done.
        teacher: the folder of a run of your own, or a network of torchvision with its weights for
            ImageNet, such as resnet34, which is imagenet's; or none.
        model: network, in place of the published one.
        image_size: side of the images in pixels, in place of the published one.
        batch_size: images a step in all processes, in place of the published number.
        workers: how many runs side by side on a machine, each with its share of the cores.
        launcher: where the runs are started: local, or ray for a cluster of Ray, or Ray on this machine.
        address: of the Ray cluster; by default this machine alone.
    """
    from bnew.experiments import launch
    from bnew.results.report import write_report
    from bnew.results.run import Run

    if model is not None:
        lookup("model", model, MODELS)
    out = out or Path("runs") / experiment
    changes = {"model": model, "image_size": image_size, "batch_size": batch_size}
    stages = plan(
        experiment,
        methods=methods,
        seeds=seeds,
        distill=distill,
        ablations=ablations,
        epochs_scale=epochs_scale,
        steps=steps,
        teacher=teacher,
        out=out,
        changes={name: value for name, value in changes.items() if value is not None},
    )
    failed = launch.run(stages, out, machine, workers, launcher, address)
    code = 1 if failed else 0
    if not is_first_process():
        return code
    if any(Run(out / stage.name).done for stage in stages):
        for path in write_report([out], out):
            logger.info("wrote %s", path)
        print((out / "report.md").read_text())
    for name, why in failed.items():
        print(printable(f"bnew: {name} did not finish: {why}"), file=sys.stderr)
    if failed:
        print("bnew: start the same command again to run only what is missing", file=sys.stderr)
    return code


def train(
    recipe: RecipeOptions,
    machine: MachineOptions,
    out: Path = Path("runs/run"),
) -> int:
    """Train one network, or resume a run that was stopped.

    Methods: {methods}.

    Models: {models}.

    Data sets: {datasets}.

    Args:
        recipe: what to train.
        machine: where to compute.
        out: the run's folder.
    """
    from bnew.training.loop import train as fit

    # On the command line other runs are named from here, in a recipe from the run's own folder.
    links = {"init": recipe.init, "teacher": recipe.teacher}
    recipe = recipe.replace(
        **{k: os.path.relpath(v, out) for k, v in links.items() if v and not v.startswith(TORCHVISION)}
    )
    if recipe.method in METHODS and method_row(recipe.method).phase == 2 and recipe.init is None:
        logger.info(
            "no --init: %s starts from a new network; the published phase 2 starts from a run of phase 1, "
            "which is --method clip",
            recipe.method,
        )
    run = fit(recipe, out, machine)
    if is_first_process():
        accuracy, epoch = run.summary["test_accuracy"], run.summary["best_epoch"] + 1
        print(printable(f"{out}: test accuracy {accuracy:.2%} (epoch {epoch})"))
    return 0


def evaluate(
    run: RunArgument,
    /,
    machine: MachineOptions,
    split: Literal["train", "val", "test"] = "test",
) -> int:
    """Loss and accuracy of a run's best weights.

    Images are prepared as the run's own were, whatever folder they are in: with its mean and std, at its
    size. Without --data-dir they are its own. With it they are those of another folder: DIR/test/CLASS/* (or
    DIR/val, where there is no test), or DIR/CLASS/*, all of them. It may lack classes of the run, but must
    not have others.

    Args:
        run: the run's folder; or a folder above runs, for the best of them by validation accuracy.
        machine: where to compute.
        split: which images.
    """
    from bnew.results.groups import best_run
    from bnew.training.evaluation import evaluate_run

    best = best_run(run)
    result = evaluate_run(best, machine, split)
    if is_first_process():
        if best.path != run:
            logger.info("the best run below %s is %s", run, best.path)
        for name, value in result.items():
            print(f"{split} {name}: {value:.4f}" if name == "loss" else f"{split} {name}: {value:.2%}")
    return 0


def summary(
    model: ModelArgument,
    /,
    image_size: int = 32,
    in_channels: int = 3,
    num_classes: int = 10,
) -> int:
    """Parameters, sizes and multiply-accumulates of a network, layer by layer.

    Args:
        model: one of {models}.
        image_size: side of the input in pixels.
        in_channels: 1 for greyscale, 3 for colour.
        num_classes: how many classes.
    """
    from bnew.convert.summary import summary as summarize
    from bnew.models import create_model

    network = create_model(model, in_channels=in_channels, num_classes=num_classes)
    print(summarize(network, (in_channels, image_size, image_size)))  # in full, however narrow the terminal
    return 0


def models() -> int:
    """List the networks."""
    from bnew.models import list_models

    print("\n".join(list_models()))
    return 0


def report(
    runs: RunArguments,
    /,
    out: Path = Path("."),
) -> int:
    """Table and pictures of finished runs, as Markdown and as one HTML page.

    Args:
        runs: folders of runs, or folders above them.
        out: where to write report.md and report.html.
    """
    from bnew.results.report import write_report

    for path in write_report(runs, out):
        print(printable(path))
    return 0
