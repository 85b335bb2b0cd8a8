"""The command line: parse, then one call."""

from __future__ import annotations

import ast
import io
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
from bnew.deploy.limits import Limits
from bnew.errors import (
    BnewError,
    Interrupted,
    NumericalError,
    ProcessLost,
    first_line,
    is_out_of_memory,
    lookup,
)
from bnew.experiments.published import CIFAR10, EXPERIMENTS, IMAGENET
from bnew.process import is_first_process
from bnew.recipe import FIRST_PHASES, TORCHVISION, Recipe
from bnew.text import printable
from bnew.training.machine import Machine

logger = logging.getLogger("bnew")

Command = TypeVar("Command", bound=Callable[..., int])

# The names that help lists. The registries of some would load torch: a test compares them.
NAMES = {
    "experiments": tuple(EXPERIMENTS),
    "phase2": tuple(CIFAR10.phase2),
    "imagenet_phase2": tuple(IMAGENET.phase2),
    "steps": ("step1", "step2", "finetune"),
    "methods": ("real", "clip", "bnew", "ste", "bmd", "bop"),
    "models": (
        "birealnet8", "birealnet20", "reactnet18", "reactnet_a", "resnet18", "resnet34", "wideresnet22",
    ),
    "datasets": ("digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "folder", "imagenet"),
}  # fmt: skip


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

    Runs that are done are not run again; one that was stopped goes on where it was. ImageNet is any folder
    --data-dir of images, as train/CLASS/* and val/CLASS/*; there phase 1 is step1, phase 2 is step2, and
    finetune follows. torchrun runs the same command on several devices and machines.

    Args:
        experiment: one of {experiments}; digits is for a first look.
        machine: where to compute.
        out: folder of the experiment's runs; default runs/EXPERIMENT.
        methods: methods of phase 2, out of {phase2}; by default all, for imagenet bnew alone, out of
            {imagenet_phase2}.
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
    from bnew.experiments.plan import plan
    from bnew.results.report import write_report
    from bnew.results.run import Run

    if model is not None:
        lookup("model", model, dict.fromkeys(NAMES["models"]))
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
    from bnew.training.loop import train as fit

    # On the command line other runs are named from here, in a recipe from the run's own folder.
    links = {"init": recipe.init, "teacher": recipe.teacher}
    recipe = recipe.replace(
        **{k: os.path.relpath(v, out) for k, v in links.items() if v and not v.startswith(TORCHVISION)}
    )
    if recipe.method not in (None, *FIRST_PHASES) and recipe.init is None:
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
    run: Positional[Path],
    /,
    machine: Annotated[Machine, tyro.conf.arg(name="")],
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


def report(runs: Positional[tuple[Path, ...]], /, out: Path = Path(".")) -> int:
    """Table and pictures of finished runs, as Markdown and as one HTML page.

    Args:
        runs: folders of runs, or folders above them.
        out: where to write report.md and report.html.
    """
    from bnew.results.report import write_report

    for path in write_report(runs, out):
        print(printable(path))
    return 0


def pack(
    run: Positional[Path], file: Positional[Path], /, half: bool = False, data_dir: str | None = None
) -> int:
    """Write a run's best weights as a packed file, which the engine runs.

    Args:
        run: the run's folder; or a folder above runs, for the best of them by validation accuracy.
        file: the file to write, such as model.bnew.
        half: store real numbers as float16, in half the space.
        data_dir: folder of the data sets, for a run of an earlier version alone; others need no images.
    """
    from bnew.deploy.pack_run import pack_run
    from bnew.results.groups import best_run

    best = best_run(run)
    packed = pack_run(best, file, Machine(data_dir=data_dir, device="cpu"), half=half)
    sizes = f"{packed.file_bytes:,} bytes, {packed.header_bytes:,} of them the header"
    print(printable(f"{file}: {best.path} in {sizes}"))
    return 0


def info(file: Positional[Path], /) -> int:
    """What a packed file holds: its graph, node by node, and sizes.

    Args:
        file: the packed file.
    """
    from bnew.packing.file import PackedFile

    _show(PackedFile.read(file))
    return 0


def verify(
    file: Positional[Path],
    run: Positional[Path],
    /,
    limits: Annotated[Limits, tyro.conf.arg(name="")],
    data_dir: str | None = None,
) -> int:
    """Check a packed file against its run in PyTorch; exit code 1 if it is not the same network.

    Binary layers have to give the same integers for the same signs, and a sign may differ only where its
    value is 0 but for rounding. Where no sign differs, so may logits by rounding only; and no more images may
    get another class, nor the accuracy be another, than that explains.

    Args:
        file: the packed file.
        run: the folder of the run that it was packed from, named as for `bnew pack`.
        limits: what the file may ask for.
        data_dir: folder of the images, named as for `bnew eval`; by default those of the run.
    """
    from bnew.deploy.verify import verify_run
    from bnew.results.groups import best_run

    found = verify_run(file, best_run(run), Machine(data_dir=data_dir, device="cpu"), limits)
    _show(found)
    return 1 if found.problems else 0


def export(run: Positional[Path], file: Positional[Path], /, data_dir: str | None = None) -> int:
    """Write a run's best weights as an ordinary ONNX graph, for other runtimes; it is not fast.

    Args:
        run: the run's folder; or a folder above runs, for the best of them by validation accuracy.
        file: the file to write, such as model.onnx.
        data_dir: folder of images to check the file on, named as for `bnew eval`; by default those of the
            run, or generated ones where there are none.
    """
    from bnew.deploy.onnx import export_run
    from bnew.results.groups import best_run

    check = export_run(best_run(run), file, Machine(data_dir=data_dir, device="cpu"))
    print(printable(f"{file}: {file.stat().st_size:,} bytes"))
    print(check or "not checked, as onnxruntime is not installed")
    print("Signs and binary weights are float32 in it: neither small nor fast. `bnew pack` makes what is.")
    return 0


def predict(
    file: Positional[Path],
    images: Positional[tuple[Path, ...]],
    /,
    limits: Annotated[Limits, tyro.conf.arg(name="")],
    top: int = 5,
) -> int:
    """The likeliest classes of images, by a packed file.

    Args:
        file: the packed file.
        images: image files, or folders of them.
        limits: what the file may ask for.
        top: how many classes.
    """
    from bnew.deploy.inference import predict as predictions

    for prediction in predictions(file, images, top, limits=limits):
        print(prediction)
    return 0


def bench(
    file: Positional[Path],
    /,
    limits: Annotated[Limits, tyro.conf.arg(name="")],
    threads: int = 0,
    batch: int = 64,
    run: Path | None = None,
) -> int:
    """How fast a packed file runs: one image and a batch, on one thread and on several.

    Args:
        file: the packed file.
        limits: what the file may ask for.
        threads: how many several are; 0 is one a core.
        batch: how many images a batch has.
        run: the run that it was packed from, to be timed in PyTorch beside it, in turns.
    """
    from bnew.deploy.inference import bench as measure

    model = None
    if run is not None:
        from bnew.packing.file import PackedFile
        from bnew.results.groups import best_run
        from bnew.training.evaluation import load_model

        packed = PackedFile.read(file)
        model = load_model(best_run(run), packed.output_shape[0], packed.input_shape[0])
    _show(measure(file, threads, batch, model, limits=limits))
    return 0


def _show(table: Any) -> None:
    """Print in full, however narrow the terminal."""
    from rich.console import Console

    console = Console()
    # Both, as rich takes a dumb terminal for 80 wide whatever its width alone is set to.
    console.size = (max(console.width, 140), console.height)
    console.print(table)


COMMANDS: dict[str, Callable[..., int]] = {
    "reproduce": reproduce,
    "train": train,
    "eval": evaluate,
    "summary": summary,
    "models": models,
    "report": report,
    "pack": pack,
    "info": info,
    "verify": verify,
    "predict": predict,
    "bench": bench,
    "export": export,
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
    firsts = {name: (command.__doc__ or "").partition("\n")[0] for name, command in COMMANDS.items()}
    lines = [
        "usage: bnew COMMAND ...",
        "",
        "Train binarized neural networks the easy way.",
        "",
        *(f"  {name:<10}  {first}" for name, first in firsts.items()),
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


def _run_together(words: Sequence[str]) -> int:
    """:func:`_run`, at whose end several processes wait for each other, if their ends are alike.

    What goes wrong in all of them is said once.
    """
    alike = True
    try:
        code = _run(words)
    except ProcessLost as lost:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, for the same reason
        print(printable(f"bnew: {lost}"), file=sys.stderr)
        code, alike = 1, False
    except (Interrupted, NumericalError) as ended:
        code = 130 if isinstance(ended, Interrupted) else 2
        if is_first_process():
            print(printable(f"bnew: {'' if code == 130 else 'error: '}{ended}"), file=sys.stderr)
    except BnewError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        from bnew.training.distributed import say_once

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, as soon as another one has ended
        code, alike = 2, False
        if not say_once(printable(f"bnew: error: {error}")):
            return code  # the others may wait for this one, and disconnecting for them
    if "torch" in sys.modules:  # else it was not needed, and takes seconds to load
        from bnew.training.distributed import disconnect, leave_together

        if alike:
            leave_together()
        else:
            disconnect()
    return code


def _in_one_line(record: logging.LogRecord) -> bool:
    """Escape what cannot be seen in a message, which may name files and folders."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 some runs failed, 2 bad input, 130 stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a class "été" where all is ASCII
    handler = logging.StreamHandler()
    handler.addFilter(_in_one_line)
    logging.basicConfig(format="bnew: %(message)s", handlers=[handler])
    # Other libraries have their say only when something is wrong, and of several processes all but the first.
    logger.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    try:
        code = _run_together(sys.argv[1:] if args is None else args)
    except BnewError as error:
        print(f"bnew: error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        if is_first_process():
            print("bnew: stopped: start the same command again to go on", file=sys.stderr)
        code = 130
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"bnew: error: there is not enough memory ({first_line(error)})", file=sys.stderr)
        code = 2
    sys.exit(code)
