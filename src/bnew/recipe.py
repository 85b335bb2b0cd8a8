"""A training run as frozen data, and the published settings."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnew.errors import BnewError, lookup, unknown
from bnew.references import is_reference, of_library
from bnew.registry import MethodRow, method_row

# The rate's course: recipe and share of the run that is done, in [0, 1) → factor on the rate.
SCHEDULES: dict[str, Callable[[Recipe, float], float]] = {
    "linear": lambda _, progress: 1 - progress,
    # The same from epoch to epoch: 1 − e / E all through epoch e.
    "linear_by_epoch": lambda recipe, progress: (
        1 - math.floor(progress * recipe.epochs + 1e-6) / recipe.epochs
    ),
    "cosine": lambda _, progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda recipe, progress: 0.1 ** sum(progress >= m for m in recipe.milestones),
    "constant": lambda _, progress: 1.0,
}
OPTIMIZERS = ("adam", "adamw", "sgd")
# What weight decay is for.
DECAYED = ("all", "convolutions")
# What is done to training images.
AUGMENTATIONS = ("none", "flip_crop", "trivial", "resized_crop")
# Names of folders in ImageNet's experiment: of step 1, and what follows the method's in those of fine-tuning.
STEP1, FINETUNED = "step1", "-finetune"
# Field of a recipe → its type, least and greatest value.
LIMITS: dict[str, tuple[type, float, float]] = {
    "epochs": (int, 1, math.inf),
    "batch_size": (int, 1, math.inf),
    "image_size": (int, 1, math.inf),
    "seed": (int, 0, 2**32 - 1),
    "lr": (float, 0, math.inf),
    "binary_lr": (float, 0, math.inf),
    "momentum": (float, 0, 1),
    "weight_decay": (float, 0, math.inf),
    "freeze": (float, 0, 1),
    "label_smoothing": (float, 0, 1),
    "mixup": (float, 0, 1000),
    "ema": (float, 0, 1),
    "patience": (int, 1, math.inf),
    "val_split": (float, 0, 1),
}
OPTIONAL = ("image_size", "freeze", "binary_lr", "ema", "patience", "val_split")


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome of one run.

    ``init`` and ``teacher`` name other runs by their folders, relative to this run's folder, so that an
    experiment can be moved as a whole.

    Raises:
        BnewError: an impossible value, naming the field, the value and what is allowed.
    """

    data: str = "cifar10"
    """Data set; folder and imagenet read your own images from --data-dir. package.module:factory is a
    function of your own that returns data sets of PyTorch."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of a data set of your own, such as root=images."""
    model: str = "birealnet20"
    """Network; package.module:factory for one of your own, timm:NAME or torchvision:NAME for theirs."""
    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network, such as width=32."""
    binarize: bool | None = None
    """Whether layers of the network become binary, if it has no binary ones. None: those of a network of your
    own or of a library, unless the method is real or none, which then trains an ordinary network."""
    weights: str | None = None
    """File whose tensors are the start, before layers become binary: safetensors, or a state dict of
    PyTorch."""
    pretrained: bool = False
    """Start from the weights that come with a network of timm or torchvision."""
    method: str | None = None
    """Method that binarizes the weights; None trains an ordinary network, such as a teacher."""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method, such as strength=20."""
    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, in all processes together."""
    optimizer: str = "adam"
    """adam, adamw or sgd."""
    lr: float = 0.01
    """Learning rate at the start."""
    binary_lr: float | None = None
    """The learning rate of the binary weights is this times --lr; None: as the method says for a run of this
    length."""
    momentum: float = 0.9
    """Momentum of sgd (Nesterov's); adam and adamw ignore it."""
    weight_decay: float = 0.0
    """Weight decay. That of adamw leaves out the weights of binary layers, unless the method is real."""
    decayed: str = "all"
    """What weight decay applies to: all, or the weights of convolutions."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    class_weights: Mapping[str, Any] | str = field(default_factory=dict)
    """Weight of each class in the loss: balanced, which is in inverse proportion to its training images, or
    numbers by class, such as cat=2 dog=0.5, of which the others have 1."""
    schedule: str = "linear"
    """Course of the learning rate: linear, linear_by_epoch, cosine, step or constant."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the run after which the step schedule divides the learning rate by ten."""
    freeze: float | None = None
    """Share of the epochs after which the binary weights are frozen. 0: from the start; 1: never; None: as
    published, for bnew and bmd 20 epochs before the end, in a run of less than 200 a tenth."""
    init: str | None = None
    """Folder of the run whose best weights are the start."""
    teacher: str | None = None
    """Folder of the run whose best weights teach, or torchvision:NAME for a network of torchvision with its
    weights for ImageNet. The loss is then distillation, without labels."""
    image_size: int | None = None
    """Side in pixels to which images of --data folder are brought, or of the crops of --data imagenet."""
    val_split: float | None = None
    """Share of the training images that is held out for validation, where there are no others for it. None: a
    tenth."""
    augment: str | None = None
    """What is done to training images: none; flip_crop, a crop after padding, and a mirror image half of the
    time; trivial, the same and TrivialAugment; or resized_crop, a part of at least 8 % of the image, and
    mirror images. With imagenet, trivial has the latter's crop. Where mirror images would be wrong (digits),
    there are none. None: as for its data set."""
    mixup: float = 0.0
    """α of mixup, which trains on mixtures of two images, such as 0.2; the training accuracy then counts only
    the first of the two classes. 0: none."""
    ema: float | None = None
    """Validate, save and test the moving average of all that is not binary, with this decay for each step,
    such as 0.999. None: what the last step left."""
    patience: int | None = None
    """End the run after so many epochs without a better validation accuracy. Not for methods that take the
    whole run to make weights binary, such as bnew. None: never before --epochs."""
    seed: int = 0
    """Seed of the first weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        for name, (kind, low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if type(value) not in (int, kind) or not low <= value <= high or math.isinf(value):
                what = "a whole number" if kind is int else "a number"
                limit = f"at least {low}" if math.isinf(high) else f"between {low} and {high}"
                raise BnewError(f"{name} is {value!r}, but must be {what} {limit}")
        for name in ("data", "model", "optimizer", "schedule", "decayed"):
            if not isinstance(getattr(self, name), str):
                raise BnewError(f"{name} is {getattr(self, name)!r}, but must be a name")
        if not isinstance(self.method, str | None):
            raise BnewError(f"method is {self.method!r}, but must be a name, or None")
        for name in ("data_options", "model_options", "method_options"):
            options = getattr(self, name)
            if not isinstance(options, Mapping):
                raise BnewError(f"{name} is {options!r}, but must be options by name")
            object.__setattr__(self, name, {option: _from_json(value) for option, value in options.items()})
        if type(self.binarize) not in (bool, type(None)) or type(self.pretrained) is not bool:
            raise BnewError("binarize must be True, False or None, and pretrained True or False")
        if self.data_options and not is_reference(self.data):
            raise BnewError(
                f"data set {self.data} takes no options ({', '.join(self.data_options)}): only one of your "
                "own, given as package.module:factory, does"
            )
        starts = [name for name in ("init", "weights", "pretrained") if getattr(self, name)]
        if len(starts) > 1:
            raise BnewError(f"{' and '.join(starts)} are different starts of a run: give one of them")
        if self.pretrained and not of_library(self.model):
            raise BnewError(
                f"model {self.model} comes without weights: leave out pretrained, or give --weights FILE"
            )
        if self.method is None and self.method_options:
            raise BnewError(
                f"there are options of a method ({', '.join(self.method_options)}), but no method"
            )
        self._check_loss()
        if not all(isinstance(m, int | float) and 0 <= m <= 1 for m in self.milestones):
            raise BnewError(f"milestones are {self.milestones!r}, but must be shares of the run, from 0 to 1")
        for name in ("lr", "binary_lr"):
            if getattr(self, name) == 0:
                raise BnewError(f"{name} is 0: nothing would be learnt; give a positive number")
        for name in ("ema", "val_split"):
            if getattr(self, name) in (0, 1):
                raise BnewError(f"{name} is {getattr(self, name)}, but must be between 0 and 1, and neither")
        if self.augment is not None:
            lookup("augmentation", self.augment, dict.fromkeys(AUGMENTATIONS))
        if 0 < self.mixup < 1e-3:
            raise BnewError(f"mixup is {self.mixup}, which mixes nothing: give 0 for none, or such as 0.2")
        if self.patience is not None and self._row.phase == 1 and 0 < self.freeze_epoch < self.epochs:
            raise BnewError("patience may end a run before its weights are frozen: leave out one of the two")
        if self.patience is not None and self._row.gradual:
            raise BnewError(
                f"patience may end a run early, but {self.method} takes the whole run to make weights "
                "binary: leave it out, or train with another method, such as ste or bop"
            )
        lookup("schedule", self.schedule, SCHEDULES)
        lookup("optimizer", self.optimizer, dict.fromkeys(OPTIMIZERS))
        lookup("choice of what decays", self.decayed, dict.fromkeys(DECAYED))
        object.__setattr__(self, "milestones", tuple(self.milestones))

    def _check_loss(self) -> None:
        weights = self.class_weights
        if not (isinstance(weights, Mapping) or weights == "balanced"):
            raise BnewError(f"class_weights is {weights!r}, but must be 'balanced', or numbers by class")
        for name, value in weights.items() if isinstance(weights, Mapping) else ():
            if not isinstance(name, str):
                raise BnewError(f"class_weights names the class {name!r}, but a class's name is a text")
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise BnewError(f"the weight of class '{name}' is {value!r}, but must be a positive number")
        if self.label_smoothing == 1:
            raise BnewError("label_smoothing is 1: nothing would be learnt; give a smaller share")
        asked = [name for name in ("label_smoothing", "class_weights") if getattr(self, name)]
        if self.teacher is not None and asked:
            raise BnewError(
                f"with a teacher, the loss is distillation, which has no labels: leave out the teacher, or "
                f"{' and '.join(asked)}"
            )

    def lr_at(self, progress: float) -> float:
        """The rate when a share ``progress`` in [0, 1) of all steps is done."""
        return self.lr * SCHEDULES[self.schedule](self, progress)

    @property
    def freeze_epoch(self) -> int:
        """The epoch, from 0, at whose start the binary weights are frozen; ``epochs`` if never.

        By default the method's row decides: a share of the epochs, or a number of epochs before the end (BNEW
        and BMD: 20 as published, in a run of less than 200 epochs a tenth). However short the run, at least
        one epoch comes after freezing, and one before, unless they are frozen from the start.
        """
        if self.freeze is None and self._row.frozen_epochs:
            return self.epochs - min(self._row.frozen_epochs, max(self.epochs // 10, 1)) or 1
        share = self._row.freeze if self.freeze is None else self.freeze
        if share == 0:
            return 0
        if share == 1 or self.epochs == 1:
            return self.epochs
        return min(max(math.floor(share * self.epochs), 1), self.epochs - 1)

    @property
    def freeze_at(self) -> float:
        """The share of the run after which the binary weights are frozen; 1 if never, or from the start."""
        return self.freeze_epoch / self.epochs or 1.0

    @property
    def method_arguments(self) -> dict[str, Any]:
        """The method's options, with what it needs to know of the run."""
        of_the_run = {"freeze_at": self.freeze_at} if self._row.takes_freeze_at else {}
        return {**of_the_run, **self.method_options}

    @property
    def makes_binary(self) -> bool:
        """Whether layers of a network that has no binary ones become binary."""
        if self.binarize is None:
            return is_reference(self.model) and self.method not in (None, "real")
        return self.binarize

    @property
    def ends_binary(self) -> bool:
        """Whether the run's best checkpoint has binary weights."""
        return self.freeze_epoch < self.epochs or self._row.phase == 2

    @property
    def _row(self) -> MethodRow:
        return method_row(self.method)

    def scaled(self, factor: float) -> Recipe:
        """The same run, ``factor`` times as long, with every schedule in proportion.

        Rates, freezing, λ and β follow the share of the run that is done, so they need nothing; what is
        counted in steps changes as the method's row says.

        Raises:
            BnewError: ``factor`` is not positive, or leaves no epoch.
        """
        if not (factor > 0 and math.isfinite(factor)):
            raise BnewError(f"the scale of the epochs is {factor}, but must be a positive number")
        epochs = round(self.epochs * factor)
        if not epochs:
            raise BnewError(
                f"{self.epochs} epochs of {self.method or 'a teacher'} times {factor} leave none: give "
                f"--epochs-scale at least {math.ceil(1e5 / self.epochs) / 1e5:g}, which is one epoch"
            )
        return self.with_steps(epochs, epochs / self.epochs)

    def with_steps(self, epochs: int, factor: float) -> Recipe:
        """The same run in ``epochs`` epochs that have, in all, ``factor`` times as many steps."""
        recipe = self.replace(epochs=epochs)
        scale = self._row.scale
        return recipe if scale is None else recipe.replace(**scale(recipe, factor))

    def published(self) -> Recipe:
        """The same, but what it does not say is as published, whatever the number of steps."""
        return self.replace(method_options=self._completed(self._row.published))

    def _completed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The method's options, with those of ``options`` that are neither stated nor replaced."""
        replaced = {self._row.instead.get(name) for name in self.method_options}
        return {**{k: v for k, v in options.items() if k not in replaced}, **self.method_options}

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON, which says also which options follow from the length of the run."""
        data = dataclasses.asdict(self)
        data["method_options"] = {**self._row.by_length, **data["method_options"]}
        return data

    def meaning(self) -> dict[str, Any]:
        """:meth:`to_dict` in a form that is equal for two recipes of the same run."""
        row = self._row
        if row.by_length and not set(row.instead) & set(self.method_options):
            return self.to_dict()
        # The rate of the binary weights does not follow from the length, nor do options that by_length names.
        recipe = self.published() if row.by_length else self
        return recipe.replace(binary_lr=1.0 if self.binary_lr is None else self.binary_lr).to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe of :meth:`to_dict`'s result.

        Options that follow from the length of the run, and that ``data`` lacks, are as published: an earlier
        version wrote it, which did not choose any by that.

        Raises:
            BnewError: an unknown field or an impossible value.
        """
        fields = typing.get_type_hints(cls)
        for name in data:
            if name not in fields:
                raise unknown("field of a recipe", name, fields)
        recipe = cls(**data)
        row = recipe._row
        if not row.by_length:
            return recipe
        recipe = recipe.replace(method_options=recipe._completed(row.earlier)).published()
        given = {
            k: v for k, v in recipe.method_options.items() if k not in row.by_length or v != row.by_length[k]
        }
        return recipe.replace(method_options=given)


def _from_json(value: Any) -> Any:
    """An option's value as a recipe's file gives it back: tuples are lists."""
    return [_from_json(each) for each in value] if isinstance(value, list | tuple) else value
