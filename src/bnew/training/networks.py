"""Networks of runs: built from their recipes, with the weights of a run or of torchvision."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bnew.data.batches import Dataset
from bnew.data.preparation import Preparation
from bnew.errors import BnewError, first_line, kind_of, unknown
from bnew.files import sha256_of
from bnew.layers import binary_parameters, with_present_names
from bnew.models import create_model
from bnew.process import is_first_process
from bnew.recipe import Recipe
from bnew.references import TORCHVISION, check_apart, is_reference
from bnew.results.run import Run
from bnew.training.checkpoint import Unusable, check_is_file
from bnew.weights import put_weights, read_weights

logger = logging.getLogger("bnew")


class OtherModel(BnewError):
    """The weights are of another model, or for another number of classes."""


def load_weights(model: nn.Module, run: Run, best_sha256: str | None = None) -> None:
    """Put the best weights of ``run`` into ``model``.

    ``best_sha256`` is the checksum of their file; the default is the one in a finished run's summary.

    Raises:
        BnewError: the file is missing or truncated, or has another checksum.
        OtherModel: it is of another model, or for another number of classes.
    """
    if best_sha256 is None and run.done:
        best_sha256 = run.summary.get("best_sha256")
    try:
        check_is_file(run.best)
        if best_sha256 is not None and run.best.exists() and sha256_of(run.best) != best_sha256:
            raise Unusable("is not as that run wrote it, it was damaged or replaced")
        weights = with_present_names(load_file(run.best), model)
    except FileNotFoundError:
        raise BnewError(f"{run.path} has no {run.best.name}: that run has not finished an epoch") from None
    except Unusable as error:
        raise BnewError(f"{run.best} {error}; put the right file there, or train that run again") from None
    except (SafetensorError, OSError) as error:
        raise BnewError(
            f"{run.best} is cut short or not a checkpoint ({error}): train that run again"
        ) from None
    theirs, ours = ({name: t.shape for name, t in state.items()} for state in (weights, model.state_dict()))
    wrong = sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name))
    shapes = [(theirs.get(name, ()), ours.get(name, ())) for name in wrong]
    # If only a number of rows differs, it is the last layer: any other would also change its successor.
    rows = [(a[0], b[0]) for a, b in shapes if a and b and a[1:] == b[1:]]
    if len(rows) == len(wrong) and len(set(rows)) == 1:
        raise OtherModel(
            f"{run.best} has {rows[0][0]} classes and the data {rows[0][1]} classes: give the data that the "
            "run was trained on, or a run that was trained on this data"
        )
    if wrong:
        raise OtherModel(
            f"{run.best} is of another model: '{wrong[0]}' is missing, extra or of another shape"
        )
    model.load_state_dict(weights)


def build_model(recipe: Recipe, num_classes: int, in_channels: int) -> nn.Module:
    """The recipe's network for such data, with random weights, in channels_last; binary if it asks for it."""
    return _channels_last(_binary(_float_model(recipe, num_classes, in_channels), recipe))


def start_model(recipe: Recipe, run: Run, data: Dataset, resumed: bool = False) -> nn.Module:
    """:func:`build_model` for a run; unless it is resumed, with the weights that its recipe starts from.

    Raises:
        BnewError: they are not available or do not fit, or the network is not for such images.
    """
    if resumed:
        return build_model(recipe, data.num_classes, data.in_channels)
    model = _float_model(recipe, data.num_classes, data.in_channels, recipe.pretrained)
    if recipe.pretrained and recipe.model.startswith(TORCHVISION):
        from bnew.models.own import torchvision_weights  # not for a network of bnew

        put_weights(model, torchvision_weights(recipe.model), recipe.model, data.num_classes)
    elif recipe.pretrained and is_first_process():
        logger.info("%s starts from its library's weights", recipe.model)
    if recipe.weights is not None:
        file = Path(os.path.normpath(run.path / recipe.weights))
        put_weights(model, read_weights(file), file, data.num_classes)
    if is_reference(recipe.model):
        _check_takes(model, recipe.model, data)
    return _channels_last(_binary(model, recipe, verbose=True))


def _float_model(recipe: Recipe, num_classes: int, in_channels: int, pretrained: bool = False) -> nn.Module:
    options = {"num_classes": num_classes, "in_channels": in_channels, **recipe.model_options}
    if pretrained and not recipe.model.startswith(TORCHVISION):
        options["pretrained"] = True
    return create_model(recipe.model, **options)


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def _binary(model: nn.Module, recipe: Recipe, verbose: bool = False) -> nn.Module:
    """``model`` with binary layers, if the recipe asks for them and it has none."""
    has_some = bool(binary_parameters(model))
    says = verbose and is_first_process() and is_reference(recipe.model)
    if recipe.makes_binary and not has_some:
        from bnew.convert.binarize import binarize

        return binarize(model, verbose=verbose)
    if says and has_some:
        logger.info("%s has binary layers and stays as it is", recipe.model)
    elif says:
        logger.info("%s has no binary layers and is trained as an ordinary network", recipe.model)
    return model


def _check_takes(model: nn.Module, name: str, data: Dataset) -> None:
    """Check by a copy of ``model`` that it makes logits (2, classes) of two of these images.

    Raises:
        BnewError: it does not.
    """
    inputs = [
        each.name
        for each in inspect.signature(model.forward).parameters.values()
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(inputs) > 1:
        raise BnewError(
            f"{name} takes {len(inputs)} inputs ({', '.join(inputs)}), but `bnew train` trains classifiers "
            "of one image: train it in a loop of your own (docs/own-loop.md)"
        )
    trial = copy.deepcopy(model).train()
    shape = (2, *data.image_size)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = trial(torch.zeros(shape))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise BnewError(
            f"{name} does not take images of {'×'.join(map(str, data.image_size))} "
            f"({first_line(error)[:200]}): choose --model-options or --image-size that fit"
        ) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else kind_of(logits)
    if found != (2, data.num_classes):
        raise BnewError(
            f"{name} returns {found} for two images, but must return one tensor (2, {data.num_classes}), a "
            "number for each class; train others in a loop of your own (docs/own-loop.md)"
        )


def load_model(run: Run, num_classes: int, in_channels: int) -> nn.Module:
    """The network of ``run`` with its best weights, in eval mode; warns if the run is unfinished.

    Raises:
        BnewError: there is no such run, or it is not for such data.
    """
    check_apart((run.recipe.model,), run.path)
    model = build_model(run.recipe, num_classes, in_channels)
    load_weights(model, run)
    if not run.done and is_first_process():
        logger.warning("%s is unfinished (%s): these are its best weights so far", run.path, run.progress())
    return model.eval()


def linked(run: Run, link: str) -> Run:
    """The run that ``link`` in the recipe of ``run`` names."""
    return Run(os.path.normpath(run.path / link))


def load_finished(model: nn.Module, run: Run) -> None:
    """Put the best weights of ``run`` into ``model``.

    Raises:
        BnewError: there is no such run, it is not done, or it is of another model.
    """
    if run.recipe and not run.done:
        raise BnewError(f"{run.path} is not finished: start its command again, then this one")
    load_weights(model, run)


def load_start(model: nn.Module, recipe: Recipe, start: Run) -> None:
    """Put the best weights of ``start``, which ``--init`` names, into ``model``.

    Raises:
        BnewError: there are none, or they do not fit; the message describes both runs.
    """
    try:
        load_finished(model, start)
    except OtherModel as error:
        theirs, ours = start.recipe, recipe
        if is_reference(ours.model) and ours.makes_binary and not theirs.makes_binary:
            raise BnewError(
                f"--init {start.path} does not fit: its network has no binary layers yet; give its weights "
                f"as --weights {start.best}, and no --init"
            ) from error
        other_model = (theirs.model, theirs.model_options) != (ours.model, ours.model_options)
        what = f"--model {theirs.model}" if other_model else f"--data {theirs.data}, the same images"
        raise BnewError(
            f"--init {start.path} does not fit: it is {_described(theirs)}, and this run {_described(ours)} "
            f"({error}): give {what}, or --init with a run of phase 1 (--method clip), this model and data"
        ) from error


def _described(recipe: Recipe) -> str:
    options = (
        f" with {', '.join(f'{k}={v}' for k, v in recipe.model_options.items())}"
        if recipe.model_options
        else ""
    )
    return f"{recipe.model}{options} on {recipe.data}"


def load_teacher(teacher: str, run: Run, data: Dataset) -> nn.Module:
    """The network that ``teacher`` in the recipe of ``run`` names, in eval mode.

    Raises:
        BnewError: it is not available, or does not fit the data.
    """
    if teacher.startswith(TORCHVISION):
        return _load_torchvision(teacher.removeprefix(TORCHVISION), data)
    taught = linked(run, teacher)
    if taught.recipe.data != data.name:
        raise BnewError(
            f"the teacher {taught.path} was trained on {taught.recipe.data}, but the student trains on "
            f"{data.name}: give a teacher that was trained on the same data set"
        )
    prepared = taught.preparation
    if prepared is not None and prepared.classes != data.classes:
        raise BnewError(
            f"the teacher {taught.path} was trained on other classes than the student's, or on the same ones "
            "in another order: give a teacher with the same classes"
        )
    check_apart((taught.recipe.model,), taught.path)
    model = build_model(taught.recipe, data.num_classes, data.in_channels)
    load_finished(model, taught)
    if prepared is not None and (prepared.mean, prepared.std) != (data.mean, data.std):
        return _Renormalised(model, prepared, data.preparation).eval()
    return model.eval()


class _Renormalised(nn.Module):
    """``model``, which takes images normalised as ``wanted``, for images normalised as ``given``."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, wanted: Preparation, given: Preparation) -> None:
        super().__init__()
        self.model = model
        mean, std, given_mean, given_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (wanted.mean, wanted.std, given.mean, given.std)
        )
        self.register_buffer("scale", given_std / std)
        self.register_buffer("shift", (given_mean - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.model(x * self.scale + self.shift)
        return logits


def _load_torchvision(name: str, data: Dataset) -> nn.Module:
    """A network of torchvision with its first ImageNet weights (``IMAGENET1K_V1``)."""
    try:
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    except (KeyError, ValueError):
        raise unknown(
            "network of torchvision", name, torchvision.models.list_models(torchvision.models)
        ) from None
    classes = len(weights.meta["categories"])
    if data.num_classes != classes:
        raise BnewError(
            f"the teacher {name} knows ImageNet's {classes} classes and the data has {data.num_classes}: "
            "give a run that was trained on this data as --teacher, or none"
        )
    try:
        state = weights.get_state_dict(progress=is_first_process(), check_hash=True, weights_only=True)
        model: nn.Module = torchvision.models.get_model(name)
        model.load_state_dict(state)
    except (OSError, RuntimeError, TypeError, EOFError, HTTPException, UnpicklingError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise BnewError(
            f"the weights of {name} are incomplete in {file} and were not downloaded ({first_line(error)}): "
            f"put {weights.url} there, or give a run as --teacher, or none"
        ) from error
    return model.to(memory_format=torch.channels_last).eval()
