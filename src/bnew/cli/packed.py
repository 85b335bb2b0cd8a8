"""Commands on packed files."""

from __future__ import annotations

import logging
from pathlib import Path

from bnew.cli.arguments import FileArgument, ImageArguments, LimitOptions, RunArgument
from bnew.cli.output import as_json, check_format, put, put_rows, say_broken
from bnew.display import show
from bnew.errors import BnewError
from bnew.process import cores
from bnew.text import printable
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
    if best.path != run:
        accuracy = f"{best.summary['val_accuracy']:.2%} validation accuracy"
        print(printable(f"best network below {run}: {best.path} ({accuracy})"))
    sizes = f"{packed.file_bytes:,} bytes, {packed.header_bytes:,} of them the header"
    print(printable(f"{file}: {best.path} in {sizes}"))
    return 0


def info(file: FileArgument, /) -> int:
    """Show what a packed file holds: its graph, node by node, and sizes.

    Args:
        file: the packed file.
    """
    from bnew.packing.file import PackedFile

    show(PackedFile.read(file))
    return 0


def verify(
    file: FileArgument,
    run: RunArgument,
    /,
    limits: LimitOptions,
    data_dir: str | None = None,
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
    """
    from bnew.deploy.verify import verify_run
    from bnew.results.groups import best_run

    found = verify_run(file, best_run(run), Machine(data_dir=data_dir, device="cpu"), limits)
    show(found)
    return 0 if found.ok else 1


def export(run: RunArgument, file: FileArgument, /, data_dir: str | None = None) -> int:
    """Write a run's best weights as an ordinary ONNX graph, for other runtimes; it is not fast.

    Args:
        run: the run's folder; or a folder above runs, for the run with the best validation accuracy.
        file: the file to write, such as model.onnx.
        data_dir: folder of images to check the file on, named as for `bnew eval`; by default, the run's own,
            or generated images if those are missing.
    """
    from bnew.deploy.onnx import export_run
    from bnew.results.groups import best_run

    check = export_run(best_run(run), file, Machine(data_dir=data_dir, device="cpu"))
    print(printable(f"{file}: {file.stat().st_size:,} bytes"))
    print(check or "not checked, as onnxruntime is not installed")
    print("Signs and binary weights are float32 in it: neither small nor fast. `bnew pack` makes what is.")
    return 0


def predict(
    file: FileArgument,
    images: ImageArguments,
    /,
    limits: LimitOptions,
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
        file: the packed file.
        images: image files, folders of them, or patterns such as 'photos/**/*.jpg'.
        limits: what the file may ask for.
        top: how many classes to print for each image.
        batch: how many images to read and compute at once; more are faster.
        threads: number of threads; 0: one per core.
        input_size: height and width of the network's input, for a file of any size. None: the file's own.
        json: print a JSON object for each image, one per line.
        csv: print CSV: file, class_1, probability_1, class_2 and so on.
    """
    from bnew.deploy.inference import predictions

    check_format(json, csv)
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
