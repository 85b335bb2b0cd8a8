"""Commands that train networks, and commands that show runs and networks."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import tyro
from rich.text import Text

from bnew.cli.arguments import (
    ExperimentArgument,
    LimitOptions,
    MachineOptions,
    ModelArgument,
    NetworkArgument,
    RecipeOptions,
    RunArguments,
)
from bnew.cli.output import as_json, check_format, put, say_broken
from bnew.display import new_table, short, show
from bnew.errors import BnewError
from bnew.experiments.plan import plan
from bnew.process import is_first_process
from bnew.references import TORCHVISION, is_reference
from bnew.registry import METHODS, MODELS, method_row, model_to_build
from bnew.text import percent, printable
from bnew.training.machine import Machine

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
    model_options: Mapping[str, Any] = MappingProxyType({}),
    weights: Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    launcher: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> int:
    """Run a published experiment: teachers if needed, phase 1, every method, the tests and the table.

    Finished runs are skipped, and a stopped run resumes. For imagenet, --data-dir is any folder of images
    with train/CLASS/* and val/CLASS/*. Its phase 1 is called step1 and its phase 2 step2; finetune follows.
    With torchrun, the same command runs on several devices and machines.

    {columns}

    Args:
        experiment: one of {experiments}; digits is for a first look.
        machine: where to compute.
        out: folder of the experiment's runs; default runs/EXPERIMENT.
        methods: methods of phase 2, out of {phase2}; default: all. For imagenet, out of {imagenet_phase2};
            default: bnew. Only if they are named, and not for imagenet: {on_request}.
        seeds: repeat all runs with each of these seeds; default: 0 to 4, for imagenet 0.
        epochs_scale: make all runs this many times as long, schedules in proportion. With two numbers, the
            first is for teachers and phase 1, and the second for all later steps; a third is for finetune.
        distill: train with a teacher's outputs as targets, instead of the plain runs; imagenet always does.
        ablations: also run the published ablations of BNEW.
        steps: only these steps, out of {steps}; the steps before must be finished.
        teacher: the folder of a run of your own; or a network of torchvision with its weights for ImageNet,
            such as resnet34, the default for imagenet; or none, to train on the labels.
        model: network to use instead of the published one, as for `bnew train`; one of your own or of a
            library gets binary layers in all steps.
        model_options: options of that network.
        weights: file whose tensors are the start of phase 1, as for `bnew train`.
        pretrained: start phase 1 from the weights that come with a network of timm or torchvision.
        image_size: side of the images in pixels, instead of the published one.
        batch_size: number of images per step over all processes, instead of the published number.
        workers: number of runs in parallel on a machine, each with its share of the cores.
        launcher: how to start the runs: local, or ray for tasks of Ray, on a cluster or on this machine.
        address: address of the Ray cluster; default: Ray on this machine only.
    """
    from bnew.experiments import launch
    from bnew.results.run import Run

    if model is not None:
        model_to_build(model)
    out = out or Path("runs") / experiment
    changes = {
        "model": model,
        "model_options": model_options or None,
        "binarize": True if model is not None and is_reference(model) else None,
        "image_size": image_size,
        "batch_size": batch_size,
    }
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
        weights=weights,
        pretrained=pretrained,
    )
    failed = launch.run(stages, out, machine, workers, launcher, address)
    code = 1 if failed else 0
    if not is_first_process():
        return code
    if any(Run(out / stage.name).done for stage in stages):
        _report([out], out)
    for name, why in failed.items():
        print(printable(f"bnew: {name} did not finish: {why}"), file=sys.stderr)
    if failed:
        print("bnew: start the same command again to run only what is missing", file=sys.stderr)
    return code


def train(
    recipe: RecipeOptions,
    machine: MachineOptions,
    out: Path = Path("runs/run"),
    config: Path | None = None,
) -> int:
    """Train one network, or resume a run that was stopped.

    Methods: {methods}.

    Models: {models}; timm:NAME and torchvision:NAME; or package.module:factory, a function of your own, also
    in the current directory. Layers of the last three become binary, unless the method is real.

    Data sets: {datasets}; or package.module:factory, a function of your own. docs/own-network.md shows how.

    {columns}

    Args:
        recipe: what to train.
        machine: where to compute.
        out: the run's folder.
        config: recipe to start from, a recipe.json as every run writes it; other options change it.
    """
    from bnew.training.loop import train as fit

    if config is not None and is_first_process():
        logger.info("the recipe is that of %s, as the other options change it", config)
    # Paths on the command line start at the working directory; paths in a recipe start at the run's folder.
    links = {"init": recipe.init, "teacher": recipe.teacher, "weights": recipe.weights}
    recipe = recipe.replace(
        **{k: os.path.relpath(v, out) for k, v in links.items() if v and not v.startswith(TORCHVISION)}
    )
    starts = recipe.init or recipe.weights or recipe.pretrained
    if recipe.method in METHODS and method_row(recipe.method).phase == 2 and not starts:
        logger.info(
            "no --init: %s starts from a new network; the published phase 2 starts from a run of phase 1, "
            "which is --method clip",
            recipe.method,
        )
    run = fit(recipe, out, machine)
    if is_first_process():
        accuracy, epoch = run.summary["test_accuracy"], run.summary["best_epoch"] + 1
        print(printable(f"{out}: test accuracy {percent(accuracy)} (epoch {epoch})"))
    return 0


def evaluate(
    network: NetworkArgument,
    /,
    limits: LimitOptions,
    split: Literal["train", "val", "test"] = "test",
    data_dir: str | None = None,
    data: str | None = None,
    data_options: Mapping[str, Any] = MappingProxyType({}),
    device: str = "auto",
    devices: int = 1,
    decode_threads: int = 0,
    max_broken: int = 10,
    page: Path | None = None,
    json: bool = False,
    csv: bool = False,
) -> int:
    """How good a run or a packed file is: accuracy, classes, mistakes.

    A run, with its best weights, is evaluated on its own images or on those of --data-dir, and a packed file
    on those of --data-dir or --data. With --data-dir DIR, the images are those of the folder that --split
    names, such as DIR/test/CLASS/* (DIR/val/CLASS/* if there is no test), or all of DIR/CLASS/*. DIR may lack
    classes of the network, but must not have other classes. All images are prepared as in training.

    Args:
        network: the run's folder; or a folder above runs, for the run with the best validation accuracy; or a
            packed file.
        limits: what a packed file may ask for.
        split: which images.
        data_dir: folder of the data sets, or of your own images; default: that which the run was trained on.
        data: data set for a packed file: one of {datasets}; or package.module:factory.
        data_options: options of that factory.
        device: what computes a run: cpu, cuda, mps or auto. The engine computes a packed file on the CPU.
        devices: number of devices for a run, with one process each; torchrun starts its own.
        decode_threads: threads (for imagenet, processes) that decode images; 0: one per core.
        max_broken: how many broken images of imagenet to skip at most.
        page: file to write as an HTML page with the worst mistakes as pictures, such as evaluation.html.
        json: print JSON.
        csv: print a line for each class, as CSV.
    """
    from bnew.deploy.evaluation import evaluate as evaluate_file
    from bnew.results.groups import best_run
    from bnew.training.evaluation import evaluate_run

    check_format(json, csv)
    machine = Machine(
        data_dir, device=device, devices=devices, decode_threads=decode_threads, max_broken=max_broken
    )
    worst, broken = 24 if page else 0, list[BnewError]()
    if network.is_file():
        result = evaluate_file(
            network, data, split=split, data_dir=machine.data_dir, data_options=data_options, worst=worst,
            limits=limits, broken=broken,
        )  # fmt: skip
    elif data is not None:
        raise BnewError("--data names the images of a packed file, but a run knows its own: leave it out")
    else:
        best = best_run(network)
        result = evaluate_run(best, machine, split, worst)
        if best.path != network and is_first_process():
            logger.info("the best run below %s is %s", network, best.path)
    if is_first_process():
        try:
            if page:
                result.write_page(page)
                logger.info("wrote %s", page)
        finally:  # what has been computed is shown, even if the page cannot be written
            put(as_json(result.to_dict()) if json else result.to_csv().rstrip() if csv else result)
    return say_broken(broken)


def summary(
    model: ModelArgument,
    /,
    model_options: Mapping[str, Any] = MappingProxyType({}),
    binarize: bool = True,
    image_size: int = 32,
    in_channels: int = 3,
    num_classes: int = 10,
) -> int:
    """Parameters, sizes and multiply-accumulates of a network, layer by layer.

    Args:
        model: one of {models}; or timm:NAME, torchvision:NAME or package.module:factory.
        model_options: options of the network, such as width=32.
        binarize: give a network of your own or of a library binary layers, as `bnew train` does.
        image_size: side of the input in pixels.
        in_channels: 1 for greyscale, 3 for colour.
        num_classes: number of classes.
    """
    from bnew.convert.summary import summary as summarize
    from bnew.recipe import Recipe
    from bnew.training.networks import build_model

    wanted = None if is_reference(model) and binarize else False
    recipe = Recipe(model=model, model_options=model_options, method="ste", binarize=wanted)
    network = build_model(recipe, num_classes, in_channels)
    show(summarize(network, (in_channels, image_size, image_size)))
    return 0


def models() -> int:
    """List the networks that are registered: size as a packed file, work for an image, published accuracy.

    Besides, wherever a model is named: timm:NAME and torchvision:NAME are networks of these libraries, and
    package.module:factory is a function of your own.
    """
    from bnew.models.trained import list_pretrained, pretrained_card

    numbers = ("input", "packed\nbytes", "binary\nMACs", "real\nMACs")
    table = new_table("network", numbers=numbers)
    table.add_column("published top-1")
    for name, row in sorted(MODELS.items()):
        facts = row.facts
        if facts is None:
            table.add_row(Text(printable(name)), *"––––", "–")
            continue
        counts = map(short, (facts.packed_bytes, facts.binary_macs, facts.real_macs))
        table.add_row(name, f"3×{facts.image_size}×{facts.image_size}", *counts, facts.published or "–")
    show(table)
    print("MACs: multiply-accumulates. For 10 classes at 32×32, for 1,000 at 224×224.")
    for name in list_pretrained():
        card = pretrained_card(name)
        print(f"Trained: {name}, {card.model}, {percent(card.accuracy)} of the test images of {card.data}.")
    return 0


def report(
    runs: RunArguments,
    /,
    out: Path = Path("."),
) -> int:
    """Print a table of finished runs, and write it with pictures, as Markdown and as one HTML page.

    Args:
        runs: folders of runs, or folders above them.
        out: folder in which to write report.md and report.html.
    """
    _report(runs, out)
    return 0


def _report(runs: Sequence[Path], out: Path) -> None:
    """Write the report, and print its table and where it is."""
    from bnew.results.report import compared, write_report

    paths = write_report(runs, out)
    show(compared(runs))
    print()
    for path in paths:
        print(printable(path))
