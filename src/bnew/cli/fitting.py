"""The command from a folder of images to a packed network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bnew.cli.arguments import FolderArgument, OutputArgument
from bnew.cli.output import as_json, put


def fit(
    folder: FolderArgument,
    file: OutputArgument = Path("model.bnew"),
    /,
    minutes: float | None = None,
    epochs: int | None = None,
    model: str | None = None,
    model_options: Mapping[str, Any] = MappingProxyType({}),
    method: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> int:
    """Make a packed network of a folder of images: look, choose, train, pack, verify, measure.

    DIR has a folder of images for each class, DIR/CLASS/*, or DIR/train/CLASS/* and perhaps val and test.
    FILE.html and the folder FILE.fit are written beside the file. A stopped command resumes when it is
    started again.

    Args:
        folder: the folder of images.
        file: the packed file to write.
        minutes: the time for all of it; default: 10.
        epochs: passes over the training images in all stages together, in place of a time.
        model: network, as for `bnew train`; default: chosen by the images and the time.
        model_options: options of the network, such as width=32.
        method: method that makes the weights binary; default: bnew, in a short run ste.
        image_size: side in pixels to which the images are brought; default: chosen.
        batch_size: images per step; default: chosen.
        weights: file of float weights to start from, as for `bnew train`.
        pretrained: start from the weights that come with a network of timm or torchvision.
        seed: of the first weights, the order of the images and their augmentation.
        device: cpu, cuda, mps or auto.
        json: print JSON in place of the table.
    """
    from bnew.fit.stages import fit as fit_folder

    done = fit_folder(
        folder, file, minutes=minutes, epochs=epochs, model=model, model_options=model_options,
        method=method, image_size=image_size, batch_size=batch_size, weights=weights,
        pretrained=pretrained, seed=seed, device=device, quiet=False,
    )  # fmt: skip
    put(as_json(done.to_dict()) if json else done)
    return 0
