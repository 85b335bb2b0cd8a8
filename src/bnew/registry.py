"""Methods, models and data sets by name: one row each, which everything that depends on a name reads.

Help and reports load no torch, so a row names its class or function as "module:name" and fetches it when it
is used. A user's own get their rows from the decorators of :mod:`bnew.register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bnew.deprecated import warn_of
from bnew.errors import lookup
from bnew.facts import FACTS, ModelFacts
from bnew.references import DATASET_FORMS, MODEL_FORMS, fetched, is_reference
from bnew.short_runs import (
    BETA_END,
    BOP2ND,
    CIFAR_PUSH,
    DIODE,
    GAMMA,
    PROXPARQ,
    PROXQUANT_STRENGTH,
    RAMP,
    TAU,
    scale_bnew,
    scale_bop,
)

if TYPE_CHECKING:
    from torch import nn

    from bnew.data.sources import Parts
    from bnew.methods.base import Binarizer
    from bnew.recipe import Recipe

T = TypeVar("T")

GREY = "#767676"
# The epochs after freezing in the published runs, of 200 epochs as of 1000.
FROZEN_EPOCHS = 20
_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
# PIL's modes, and how many channels their images have.
CHANNELS = {"RGB": 3, "L": 1}
# Of fields that do not decide the outcome of a run.
_SHOWN = {"decides": False}


@dataclass(frozen=True)
class MethodRow:
    """What decides the binary weights."""

    make: str | type[Binarizer]
    label: str = field(metadata=_SHOWN)
    """What tables and legends call it."""
    color: str = field(default=GREY, metadata=_SHOWN)
    phase: int = 2
    """1 if its weights stay real unless they are frozen; 2 if the run ends with binary ones."""
    freeze: float = 1.0
    """Share of the epochs after which the weights are frozen; 1: never."""
    frozen_epochs: int = 0
    """In place of the share: how many epochs come after freezing, in a short run at most a tenth of all."""
    takes_freeze_at: bool = False
    """Whether ``freeze_at`` is one of its options; a recipe then fills it in."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """The published options."""
    scale: Callable[[Recipe, float], dict[str, Any]] | None = field(default=None, metadata=_SHOWN)
    """A recipe that gets ``factor`` times as many steps → the fields that change with them."""
    by_length: Mapping[str, Any] = field(default_factory=dict)
    """Options that follow from the length of the run where a recipe does not state them, and the values that
    stand for that."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """Option → the one that it replaces. With it nothing follows from the length."""
    earlier: Mapping[str, Any] = field(default_factory=dict, metadata=_SHOWN)
    """Options that an earlier version used where a recipe does not state them, if not the published ones."""
    state: tuple[str, ...] = field(default=(), metadata=_SHOWN)
    """The tensors that it keeps, each with a number for every binary weight."""
    gradual: bool = field(default=False, metadata=_SHOWN)
    """Whether it takes the whole run to make weights binary, so that a run must not end early."""
    moves_weights: bool = field(default=False, metadata=_SHOWN)
    """Whether it moves the weights itself, so that the optimizer skips them and keeps nothing for them."""

    def load(self) -> type[Binarizer]:
        """The class."""
        return _fetched(self.make)

    def __call__(self, *args: Any, **kwargs: Any) -> Binarizer:
        """What a table of classes did, for one release."""
        warn_of("METHODS[name](…)", "create_method(name, …), or METHODS[name].load()(…)")
        return self.load()(*args, **kwargs)


@dataclass(frozen=True)
class ModelRow:
    """An architecture."""

    make: str | Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of this name, in place of those of the class."""
    facts: ModelFacts | None = field(default=None, metadata=_SHOWN)

    def load(self) -> Callable[..., nn.Module]:
        """The class or function."""
        return _fetched(self.make)

    def __call__(self, **kwargs: Any) -> nn.Module:
        """What a table of classes did, for one release."""
        warn_of("MODELS[name](…)", "create_model(name, …)")
        return self.load()(**{**self.options, **kwargs})


@dataclass(frozen=True)
class DatasetRow:
    """How a data set is fetched and treated."""

    fetch: str | Callable[[Path, bool], Parts] | None
    """``fetch(data_dir, download)`` gets it where there is no image folder; None: a folder of a user's own
    images, and nothing else."""
    files: str = field(default="", metadata=_SHOWN)
    """What a person without a network puts into the data folder."""
    mode: str = "RGB"
    """PIL's, of the images: one of CHANNELS."""
    flip: bool = True
    padding: int | None = None
    """In pixels; None: an eighth of the shorter side."""
    least_area: float = 1.0
    """Below 1, training takes random parts of at least this share of an image, in place of padding."""
    mean: tuple[float, ...] | None = None
    """Of each channel, in units of [0, 1]; None computes it from the training split."""
    std: tuple[float, ...] | None = None
    streamed: bool = False
    """Whether images are read when they are needed, of a folder of any size."""
    image_size: int | None = None
    """The side of the crops where none is given."""
    classes: int | None = field(default=None, metadata=_SHOWN)
    """How many classes the published images have, where the folder may hold others."""

    @property
    def own_images(self) -> bool:
        """Whether it is a folder of a user's own images, which the name alone does not identify."""
        return self.fetch is None

    def load(self) -> Callable[[Path, bool], Parts]:
        """The function ``fetch``."""
        assert self.fetch is not None
        return _fetched(self.fetch)


def _fetched(named: str | T) -> T:
    """What "module:name" names; anything else is returned as it is."""
    if not isinstance(named, str):
        return named
    found: T = fetched(named)
    return found


def reference(made: Any) -> str | None:
    """The "module:name" of a class or function; a text, or None, is returned as it is."""
    return made if made is None or isinstance(made, str) else f"{made.__module__}:{made.__qualname__}"


# Methods in the order of tables and legends. The colours can be told apart by the colour-blind, and read on
# white and on black.
METHODS: dict[str, MethodRow] = {
    "real": MethodRow("bnew.methods.real:Real", "real weights", "#495057", phase=1),
    "clip": MethodRow("bnew.methods.clip:Clip", "phase 1 (clip)", "#868e96", phase=1),
    "bnew": MethodRow(
        "bnew.methods.bnew:BNEW",
        "BNEW",
        "#e8590c",
        frozen_epochs=FROZEN_EPOCHS,
        takes_freeze_at=True,
        gradual=True,
        published={"strength": CIFAR_PUSH.strength, "ramp": RAMP, "fill": None},
        scale=scale_bnew,
        by_length={"strength": None, "ramp": None, "fill": "by length"},
        instead={"reg": "strength"},
        earlier={"strength": 35.0},
    ),
    "ste": MethodRow("bnew.methods.ste:STE", "STE", "#1c7ed6", state=("latent",)),
    "bmd": MethodRow(
        "bnew.methods.mirror:BinaryMirrorDescent",
        "BMD",
        "#2b9a66",
        frozen_epochs=FROZEN_EPOCHS,
        published={"beta_end": BETA_END},
        state=("latent",),
        gradual=True,
    ),
    "bop": MethodRow(
        "bnew.methods.bop:Bop",
        "Bop",
        "#ae3ec9",
        published={"gamma": GAMMA, "tau": TAU},
        scale=scale_bop,
        state=("momentum",),
        moves_weights=True,
    ),
    "bop2nd": MethodRow(
        "bnew.methods.bop2nd:Bop2ndOrder",
        "Bop2ndOrder",
        "#7f0cf2",
        published={**BOP2ND, "unbiased": False},
        state=("momentum", "variance"),
        moves_weights=True,
    ),
    "diode": MethodRow(
        "bnew.methods.diode:Diode",
        "Diode",
        "#8a4f08",
        published=DIODE,
        state=("momentum", "sign_momentum"),
        moves_weights=True,
    ),
    "proxquant": MethodRow(
        "bnew.methods.proxquant:ProxQuant",
        "ProxQuant",
        "#067352",
        freeze=2 / 3,
        published={"strength": PROXQUANT_STRENGTH},
        gradual=True,
    ),
    "proxparq": MethodRow(
        "bnew.methods.proxparq:ProxPARQ",
        "ProxPARQ",
        "#77468c",
        published=PROXPARQ,
        state=("latent",),
        gradual=True,
    ),
}
# What trains an ordinary network, such as a teacher.
NO_METHOD = MethodRow("bnew.methods.base:Binarizer", "real network", "#a0793d", phase=1)

_QUICKNET = "bnew.models.quicknet:QuickNet"
MODELS: dict[str, ModelRow] = {
    "birealnet8": ModelRow("bnew.models.birealnet:BiRealNet", {"blocks": 2}, FACTS["birealnet8"]),
    "birealnet20": ModelRow("bnew.models.birealnet:BiRealNet", {"blocks": 6}, FACTS["birealnet20"]),
    "bnext_tiny": ModelRow("bnew.models.bnext:BNext", facts=FACTS["bnext_tiny"]),
    "quicknet": ModelRow(_QUICKNET, facts=FACTS["quicknet"]),
    "quicknet_large": ModelRow(_QUICKNET, {"blocks": (6, 8, 12, 6)}, FACTS["quicknet_large"]),
    "quicknet_small": ModelRow(_QUICKNET, {"widths": (32, 64, 256, 512)}, FACTS["quicknet_small"]),
    "reactnet18": ModelRow("bnew.models.reactnet:ReActNet18", facts=FACTS["reactnet18"]),
    "reactnet_a": ModelRow("bnew.models.reactnet:ReActNetA", facts=FACTS["reactnet_a"]),
    "resnet18": ModelRow("bnew.models.resnet:resnet18", facts=FACTS["resnet18"]),
    "resnet34": ModelRow("bnew.models.resnet:resnet34", facts=FACTS["resnet34"]),
    "wideresnet22": ModelRow("bnew.models.wideresnet:WideResNet", {"blocks": 3}, FACTS["wideresnet22"]),
}

DATASETS: dict[str, DatasetRow] = {
    "digits": DatasetRow("bnew.data.sources:digits", mode="L", flip=False),
    "mnist": DatasetRow("bnew.data.sources:mnist", "MNIST/raw/*-ubyte.gz", mode="L", flip=False, padding=2),
    "fashion_mnist": DatasetRow(
        "bnew.data.sources:fashion_mnist", "FashionMNIST/raw/*-ubyte.gz", mode="L", padding=2
    ),
    "svhn": DatasetRow("bnew.data.sources:svhn", "train_32x32.mat and test_32x32.mat", flip=False),
    "cifar10": DatasetRow(
        "bnew.data.sources:cifar10", "cifar-10-python.tar.gz", mean=_CIFAR_MEAN, std=_CIFAR_STD
    ),
    "cifar100": DatasetRow(
        "bnew.data.sources:cifar100", "cifar-100-python.tar.gz", mean=_CIFAR_MEAN, std=_CIFAR_STD
    ),
    "folder": DatasetRow(None),
    "grey_folder": DatasetRow(None, mode="L", flip=False),
    "photos": DatasetRow(None, least_area=0.3),
    "imagenet": DatasetRow(None, streamed=True, image_size=224, classes=1000),
}


# ---------------------------------------------------------------------- rows of names in a recipe


def method_row(name: str | None) -> MethodRow:
    """The row of a recipe's method; None: that of ordinary networks.

    A run's folder may name a method that no module imported here registers. Its row then has the name as its
    label and the defaults, which is enough to show the run.
    """
    if name is None:
        return NO_METHOD
    return METHODS.get(name) or MethodRow("", str(name))


def dataset_row(name: str) -> DatasetRow:
    """The row of a recipe's data set; of one that is not registered, the defaults, which show the run."""
    return DATASETS.get(name) or DatasetRow(name if is_reference(name) else "")


def model_to_build(name: str) -> ModelRow:
    """The row of a model that is to be built: registered, ``package.module:factory``, or of a library.

    Raises:
        BnewError: the name is unknown.
    """
    return ModelRow(name) if is_reference(name) else lookup("model", name, MODELS, MODEL_FORMS)


def dataset_to_load(name: str) -> DatasetRow:
    """The row of a data set that is to be loaded: registered, or ``package.module:factory``.

    Raises:
        BnewError: the name is unknown.
    """
    return DatasetRow(name) if is_reference(name) else lookup("data set", name, DATASETS, DATASET_FORMS)


def deciding(row: MethodRow | ModelRow | DatasetRow) -> dict[str, Any]:
    """What of ``row`` decides the outcome of a run, as plain values; of a class or function, its name."""
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.metadata.get("decides", True)}
    for made in {"make", "fetch"} & set(values):
        values[made] = (reference(values[made]) or "").partition(":")[2]
    return values
