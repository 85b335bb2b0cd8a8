"""Commands on packed files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from bnew.cli.arguments import (
    ExportArgument,
    FileArgument,
    ImageArguments,
    LimitOptions,
    OnnxArgument,
    RunArgument,
    ToArgument,
    size_of,
)
from bnew.cli.output import as_json, check_format, put, put_rows, say_broken
from bnew.display import show
from bnew.errors import BnewError
from bnew.process import cores
from bnew.results.run import Run
from bnew.text import percent, printable
from bnew.training.machine import Machine

logger = logging.getLogger("bnew")


def pack(
    run: RunArgument,
    file: FileArgument,
    /,
    half: bool = False,
    any_size: bool = False,
    data_dir: str | None = None,
) -> int:
    """Write a run's best weights as a packed file, which the engine runs.

    Args:
        run: the run's folder; or a folder above runs, for the run with the best validation accuracy.
        file: the file to write, such as model.bnew.
        half: store real numbers as float16, in half the space; this rounds them.
        any_size: the file runs for images of other sizes too, as the network itself does (--input-size).
        data_dir: folder of the data sets. Only a run of an earlier version of bnew needs its images.
    """
    from bnew.deploy.pack_run import pack_run
    from bnew.results.groups import best_run

    best = best_run(run)
    machine = Machine(data_dir=data_dir, device="cpu")
    packed = pack_run(best, file, machine, half=half, any_size=any_size)
    _say_which(best, run)
    sizes = f"{packed.file_bytes:,} bytes, {packed.header_bytes:,} of them the header"
    print(printable(f"{file}: {best.path} in {sizes}"))
    return 0


def _say_which(best: Run, run: Path) -> None:
    if best.path != run:
        accuracy = f"{percent(best.summary['val_accuracy'])} validation accuracy"
        print(printable(f"best network below {run}: {best.path} ({accuracy})"))


def info(file: FileArgument, /) -> int:
    """Show what a packed file holds: its graph, node by node, and sizes.

    Args:
        file: the packed file.
    """
    from bnew.packing.file import PackedFile

    show(PackedFile.read(file))
    return 0


def import_(
    file: OnnxArgument,
    to: FileArgument,
    /,
    input_shape: tuple[int, ...] = (),
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    half: bool = False,
) -> int:
    """Write another framework's binary network as a packed file: ONNX, QONNX, or Larq's .tflite.

    Each node is compared with ONNX Runtime or Larq Compute Engine on random images, and the packed file with
    the network. If they differ by more than rounding, or the file has an operator that is not known, nothing
    is written.

    Args:
        file: the ONNX or .tflite file. Weights of ONNX may be in other files of its folder.
        to: the packed file to write, such as model.bnew.
        input_shape: the shape of one image, such as 3 32 32; needed if an ONNX file leaves it open.
        mean: a number per channel, which the network expects to be subtracted from pixels in [0, 1].
        std: the numbers by which it expects the difference to be divided. With both, the packed file takes
            images and bytes.
        half: store real numbers as float16, in half the space; this rounds them.
    """
    from bnew.importing.importer import import_network

    given = import_network(
        file, to, input_shape=input_shape or None, mean=mean or None, std=std or None, half=half
    )
    for line in str(given).splitlines():
        print(printable(line))
    return 0


def verify(
    file: FileArgument,
    run: RunArgument,
    /,
    limits: LimitOptions,
    data_dir: str | None = None,
    fixed: bool = False,
) -> int:
    """Check a packed file against its run in PyTorch; exit code 1 if it is not the same network.

    Every binary layer must return the same integers for the same signs. A sign may differ only where its
    value is 0 except for rounding. If no sign of an image differs, its logits may differ only by rounding.
    The number of images with another class, and the change of the accuracy, must be small enough to be
    explained by rounding.

    Args:
        file: the packed file.
        run: the folder of the run that it was packed from, named as for `bnew pack`.
        limits: what the file may ask for.
        data_dir: folder of the images, named as for `bnew eval`; by default, the run's own.
        fixed: also measure what 16-bit fixed point changes, as `bnew export --fixed` writes it.
    """
    from bnew.deploy.verify import verify_run
    from bnew.results.groups import best_run

    found = verify_run(file, best_run(run), Machine(data_dir=data_dir, device="cpu"), limits, fixed)
    show(found)
    return 0 if found.ok else 1


def export(
    run: ExportArgument,
    to: ToArgument,
    /,
    format: Literal["onnx", "c"] = "onnx",
    data_dir: str | None = None,
    name: str | None = None,
    flash: str | None = None,
    ram: str | None = None,
    fixed: bool = False,
    images: tuple[Path, ...] = (),
) -> int:
    """Write a network for where bnew-engine does not run: as ONNX, or as C for a microcontroller.

    Args:
        run: the run's folder, or a folder above runs, for the run with the best validation accuracy; as C,
            also a packed file.
        to: the file to write, such as model.onnx; as C, the folder for a C99 file and its header.
        format: onnx is an ordinary ONNX graph, for other runtimes, which is not fast. c has the weights as
            bits, no heap and no library, and computes the numbers of bnew-engine to the last bit.
        data_dir: folder of the run's images, named as for `bnew eval`, to check an ONNX graph or for --fixed;
            by default, the run's own. ONNX is checked on generated images if those are missing.
        name: how the functions in C begin; by default, as the packed file or the run's model is named.
        flash: the chip's bytes of flash, such as 256k: a network in C that does not fit is refused.
        ram: the same for its RAM.
        fixed: numbers in C are 16-bit fixed point in place of floats, for a chip without a floating-point
            unit, with ranges measured on the run's validation images; `bnew verify --fixed` says what it
            costs.
        images: images to measure these ranges on: files, folders or patterns; needed with a packed file.
    """
    if format == "c":
        from tempfile import TemporaryDirectory

        from bnew.deploy.c99.export import export_c

        if data_dir is not None and not fixed:
            raise BnewError("--data-dir is for --format onnx or --fixed: other C is not checked on images")
        if images and not fixed:
            raise BnewError("--images is for --fixed")
        there = size_of("--flash", flash), size_of("--ram", ram)
        machine = Machine(data_dir=data_dir, device="cpu")
        with TemporaryDirectory() as temporary:
            path, sample = _packed(run, Path(temporary), machine, fixed, images)
            exported = export_c(path, to, name=name, flash=there[0], ram=there[1], fixed=sample)
        show(exported)
        print(printable(f"{exported.source} and {exported.header.name}"))
        return 0
    only_in_c = {"--name": name, "--flash": flash, "--ram": ram, "--fixed": fixed, "--images": images}
    if given := [option for option, value in only_in_c.items() if value not in (None, False, ())]:
        raise BnewError(f"{given[0]} is for --format c")
    if run.is_file():
        raise BnewError(
            f"{run} is a file, and ONNX is made of a run: give the run's folder, or add --format c"
        )
    from bnew.deploy.onnx import export_run
    from bnew.results.groups import best_run

    best = best_run(run)
    _say_which(best, run)
    check = export_run(best, to, Machine(data_dir=data_dir, device="cpu"))
    print(printable(f"{to}: {to.stat().st_size:,} bytes"))
    print(check or "not checked, as onnxruntime is not installed")
    print("Signs and binary weights are float32 in it: neither small nor fast. `bnew pack` makes what is.")
    return 0


def _packed(
    run: Path, folder: Path, machine: Machine, fixed: bool, images: tuple[Path, ...]
) -> tuple[Path, Any]:
    """A packed file, or the best run packed in ``folder``; and, for fixed point, images to measure it on."""
    from bnew.deploy.c99.sample import images_of_files, validation_images

    if run.is_file():
        if fixed and not images:
            raise BnewError(
                "--fixed measures the ranges of numbers on images: give some dozens like those of the task "
                "by --images, or the run in place of the packed file"
            )
        return run, images_of_files(run, images) if fixed else None
    from bnew.deploy.pack_run import pack_run
    from bnew.results.groups import best_run

    best = best_run(run)
    _say_which(best, run)
    model = Path(best.recipe.model.rpartition(":")[2]).name  # of package.module:factory, timm:hf-hub:org/name
    path = folder / f"{model}.bnew"
    pack_run(best, path, machine)
    if not fixed:
        return path, None
    return path, images_of_files(path, images) if images else validation_images(best, machine)


def predict(
    file: FileArgument,
    images: ImageArguments = (),
    /,
    *,
    limits: LimitOptions,
    pretrained: str | None = None,
    top: int = 5,
    batch: int = 1,
    threads: int = 0,
    input_size: tuple[int, int] | None = None,
    json: bool = False,
    csv: bool = False,
) -> int:
    """Print the likeliest classes of images, computed by a packed file.

    Each line is printed as soon as its batch is computed, in the order of the images. Images that cannot be
    read are named at the end, and the exit code is then 2.

    Args:
        file: the packed file; with --pretrained, the first of the images.
        images: image files, folders of them, or patterns such as 'photos/**/*.jpg'.
        limits: what the file may ask for.
        pretrained: in place of a packed file, a trained network that bnew comes with, such as digits.
        top: how many classes to print for each image.
        batch: how many images to read and compute at once; more are faster.
        threads: number of threads; 0: one per core.
        input_size: height and width of the network's input, for a file of any size. None: the file's own.
        json: print a JSON object for each image, one per line.
        csv: print CSV: file, class_1, probability_1, class_2 and so on.
    """
    from bnew.deploy.inference import predictions

    check_format(json, csv)
    if pretrained is not None:
        from bnew.models.trained import pretrained_card

        file, images = pretrained_card(pretrained).packed, (file, *images)
    broken: list[BnewError] = []
    found = predictions(file, images, top, threads or cores(), limits, broken, batch, input_size)
    if csv:
        put_rows(prediction.to_row() for prediction in found)
    else:
        for prediction in found:
            put(as_json(prediction.to_dict()) if json else prediction)
    return say_broken(broken)


def bench(
    file: FileArgument,
    /,
    limits: LimitOptions,
    threads: int = 0,
    batch: int = 64,
    run: Path | None = None,
    input_size: tuple[int, int] | None = None,
) -> int:
    """Time a packed file: one image and a batch, on one thread and on several.

    Args:
        file: the packed file.
        limits: what the file may ask for.
        threads: the largest number of threads; 0: one per core.
        batch: the number of images in a batch.
        run: the run that it was packed from: time it in PyTorch too, in turns with the file. The time for one
            image is recorded there, for `bnew report`.
        input_size: height and width of the images, for a file of any size. None: the file's own.
    """
    from bnew.deploy.inference import bench as measure

    best = model = None
    if run is not None:
        from bnew.packing.file import PackedFile
        from bnew.results.groups import best_run
        from bnew.training.networks import load_model

        packed, best = PackedFile.read(file), best_run(run)
        model = load_model(best, packed.output_shape[0], packed.input_shape[0])
    timings = measure(file, threads, batch, model, limits=limits, input_size=input_size)
    show(timings)
    one = next((t for t in timings.rows if (t.threads, t.batch) == (1, 1)), None)
    if best is not None and one is not None and input_size is None:
        from bnew.results.packed import record_time
        from bnew.training.provenance import cpu_name

        record_time(best, file, one.seconds, cpu_name())
    return 0
