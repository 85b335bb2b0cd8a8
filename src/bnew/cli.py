"""The command line: parse, then one call."""

from __future__ import annotations

import ast
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from bnew import __version__
from bnew.errors import BnewError, Interrupted, NumericalError, lookup
from bnew.machine import Machine, is_first_process
from bnew.recipes import CIFAR10, EXPERIMENTS, Recipe

logger = logging.getLogger("bnew")

Command = TypeVar("Command", bound=Callable[..., int])

# The names that help lists. The registries of some would load torch: a test compares them.
NAMES = {
    "experiments": tuple(EXPERIMENTS),
    "phase2": tuple(CIFAR10.phase2),
    "methods": ("clip", "bnew", "ste", "bmd", "bop"),
    "models": ("birealnet8", "birealnet20", "reactnet18", "reactnet_a", "wideresnet22"),
    "datasets": ("digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "folder"),
}


def _lists_names(command: Command) -> Command:
    """Put the names into ``command``'s docstring, which is its help."""
    names = {kind: ", ".join(names) for kind, names in NAMES.items()}
    command.__doc__ = command.__doc__ and command.__doc__.format(**names)
    return command


@_lists_names
def reproduce(
    experiment: Positional[str],
    /,
    machine: Annotated[Machine, tyro.conf.arg(name="")],
    out: Path | None = None,
    methods: tuple[str, ...] = ("bnew", "ste", "bmd", "bop"),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    epochs_scale: tuple[float, ...] = (1.0,),
    distill: bool = False,
    ablations: bool = False,
    workers: int = 1,
) -> int:
    """Run a published experiment: teachers where asked, phase 1, every method, a test each, the table.

    Runs that are done are not run again; one that was stopped goes on where it was.

    Args:
        experiment: one of {experiments}, the last for a first look.
        machine: where to compute.
        out: folder of the experiment's runs; default runs/EXPERIMENT.
        methods: methods of phase 2, out of {phase2}.
        seeds: one run of everything per seed.
        epochs_scale: make all runs this many times as long, schedules in proportion; two numbers are
            for teachers and phase 1, and for phase 2.
        distill: train with a teacher's outputs as targets, in place of the plain runs.
        ablations: the published ablations of BNEW too.
        workers: how many runs side by side, each with its share of the cores.
    """
    from bnew import experiments
    from bnew.report import write_report
    from bnew.results import Run

    out = out or Path("runs") / experiment
    stages = experiments.plan(
        experiment,
        methods=methods,
        seeds=seeds,
        distill=distill,
        ablations=ablations,
        epochs_scale=epochs_scale,
    )
    failed = experiments.run(stages, out, machine, workers)
    if any(Run(out / stage.name).done for stage in stages):
        for path in write_report([out], out):
            logger.info("wrote %s", path)
        print((out / "report.md").read_text())
    for name, why in failed.items():
        print(f"bnew: {name} did not finish: {why}", file=sys.stderr)
    if failed:
        print("bnew: start the same command again to run only what is missing", file=sys.stderr)
    return 1 if failed else 0


@_lists_names
def train(
    recipe: Annotated[Recipe, tyro.conf.arg(name="")],
    machine: Annotated[Machine, tyro.conf.arg(name="")],
    out: Path = Path("runs/run"),
) -> int:
    """Train one network, or go on with a run that was stopped.

    Methods: {methods}.

    Models: {models}.

    Data sets: {datasets}.

    Args:
        recipe: what to train.
        machine: where to compute.
        out: the run's folder.
    """
    from bnew.train import train as fit

    # On the command line other runs are named from here, in a recipe from the run's own folder.
    links = {"init": recipe.init, "teacher": recipe.teacher}
    recipe = recipe.replace(**{k: os.path.relpath(path, out) for k, path in links.items() if path})
    try:
        run = fit(recipe, out, machine)
    except (Interrupted, NumericalError):
        if is_first_process():
            raise
        return 0  # all processes end alike, and the first one says why
    if is_first_process():
        accuracy, epoch = run.summary["test_accuracy"], run.summary["best_epoch"] + 1
        print(f"{out}: test accuracy {accuracy:.2%} (epoch {epoch})")
    return 0


def evaluate(
    run: Positional[Path],
    /,
    machine: Annotated[Machine, tyro.conf.arg(name="")],
    split: Literal["train", "val", "test"] = "test",
) -> int:
    """Loss and accuracy of a run's best weights.

    Args:
        run: the run's folder.
        machine: where to compute.
        split: which images.
    """
    from bnew.evaluate import evaluate_run
    from bnew.results import Run

    result = evaluate_run(Run(run), machine, split)
    if is_first_process():
        for name, value in result.items():
            print(f"{split} {name}: {value:.4f}")
    return 0


@_lists_names
def summary(
    model: Positional[str],
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
    from bnew.models import create_model
    from bnew.sizes import summary as summarize

    network = create_model(model, in_channels=in_channels, num_classes=num_classes)
    print(summarize(network, (in_channels, image_size, image_size)))  # in full, however narrow the terminal
    return 0


def models() -> int:
    """List the networks."""
    from bnew.models import list_models

    print("\n".join(list_models()))
    return 0


def report(runs: Positional[tuple[Path, ...]], /, out: Path = Path(".")) -> int:
    """Table and pictures of finished runs, as Markdown and as one HTML page.

    Args:
        runs: folders of runs, or folders above them.
        out: where to write report.md and report.html.
    """
    from bnew.report import write_report

    for path in write_report(runs, out):
        print(path)
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "reproduce": reproduce,
    "train": train,
    "eval": evaluate,
    "summary": summary,
    "models": models,
    "report": report,
}


def _options(words: list[str]) -> dict[str, Any]:
    """``name=value`` words as a dictionary; a value is a Python literal, or else text.

    Raises:
        ValueError: a word without an equals sign.
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"'{word}' is not NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type_origin is not Mapping:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME=VALUE ...]",
            instance_from_str=_options,
            is_instance=lambda value: isinstance(value, Mapping),
            str_from_instance=lambda value: [f"{k}={v}" for k, v in value.items()],
        )

    return registry


def _help() -> str:
    listed = [
        f"  {name:<10}  {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()
    ]
    lines = [
        "usage: bnew COMMAND ...",
        "",
        "Train binarized neural networks the easy way.",
        "",
        *listed,
        "",
        "bnew COMMAND --help lists its options; bnew --version says which version this is.",
    ]
    return "\n".join(lines)


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"bnew {__version__}")
        return 0
    command = lookup("command", words[0], COMMANDS)
    return tyro.cli(
        command,
        prog=f"bnew {words[0]}",
        args=words[1:],
        registry=_registry(),
        config=(OmitArgPrefixes,),
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 some runs failed, 2 bad input, 130 stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    logging.basicConfig(level=logging.INFO, format="bnew: %(message)s")
    try:
        code = _run(sys.argv[1:] if args is None else args)
    except BnewError as error:
        print(f"bnew: error: {error}", file=sys.stderr)
        code = 2
    except Interrupted as stopped:
        print(f"bnew: {stopped}", file=sys.stderr)
        code = 130
    except KeyboardInterrupt:
        print("bnew: stopped: start the same command again to go on", file=sys.stderr)
        code = 130
    sys.exit(code)
