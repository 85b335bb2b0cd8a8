"""The published settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnew.recipe import STEP1, Recipe
from bnew.references import TORCHVISION
from bnew.registry import DATASETS, METHODS
from bnew.short_runs import CIFAR_PUSH, IMAGENET_PUSH


@dataclass(frozen=True)
class Experiment:
    """The recipes of an experiment: teacher, phase 1, phase 2 by method, and perhaps fine-tuning."""

    teacher: Recipe | str
    """A recipe to train, or the name of a network of torchvision with its weights."""
    phase1: Recipe
    phase2: Mapping[str, Recipe]
    finetune: Mapping[str, Recipe] = field(default_factory=dict)
    """Method → recipe of the step after phase 2, with weights frozen from the start."""
    on_request: Mapping[str, Recipe] = field(default_factory=dict)
    """Method that the paper does not compare → its recipe of phase 2, run only where it is chosen."""
    first: str = "clip"
    """The name of phase 1 in the folder of runs."""
    methods: tuple[str, ...] = ()
    """The methods that are run where none is chosen; empty: all of phase 2."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Those that are run where none is chosen."""
    distilled: bool = False
    """Whether it is published with a teacher alone; else plain, and its ablations with a teacher."""

    @property
    def choices(self) -> dict[str, Recipe]:
        """Method → recipe of phase 2, of all methods that can be chosen."""
        return {**self.phase2, **self.on_request}

    def replace(self, **changes: Any) -> Experiment:
        """The experiment with some fields changed in every recipe."""

        def teacher(recipe: Recipe | str) -> Recipe | str:
            kept = {k: v for k, v in changes.items() if k not in ("model", "model_options")}
            return recipe if isinstance(recipe, str) else recipe.replace(**kept)

        return dataclasses.replace(
            self,
            teacher=teacher(self.teacher),
            phase1=self.phase1.replace(**changes),
            phase2={name: recipe.replace(**changes) for name, recipe in self.phase2.items()},
            finetune={name: recipe.replace(**changes) for name, recipe in self.finetune.items()},
            on_request={name: recipe.replace(**changes) for name, recipe in self.on_request.items()},
        )


_WIDERESNET22 = Recipe(
    model="wideresnet22",
    epochs=200,
    optimizer="sgd",
    lr=1.0,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="step",
)
CIFAR10 = Experiment(
    teacher=_WIDERESNET22,
    phase1=Recipe(method="clip", epochs=200),
    phase2={
        "bnew": Recipe(method="bnew", method_options={"strength": CIFAR_PUSH.strength}, epochs=1000),
        "ste": Recipe(method="ste", epochs=1000),
        "bmd": Recipe(method="bmd", method_options=METHODS["bmd"].published, epochs=1000),
        "bop": Recipe(method="bop", method_options=METHODS["bop"].published, epochs=1000),
    },
    on_request={
        name: Recipe(method=name, method_options=METHODS[name].published, epochs=1000)
        for name in ("bop2nd", "diode", "proxquant", "proxparq")
    },
).replace(binary_lr=1.0)

_REACTNET_A = Recipe(
    data="imagenet",
    model="reactnet_a",
    image_size=DATASETS["imagenet"].image_size,
    schedule="linear_by_epoch",
)
IMAGENET = Experiment(
    teacher=TORCHVISION + "resnet34",
    first=STEP1,
    methods=("bnew",),
    seeds=(0,),
    distilled=True,
    phase1=_REACTNET_A.replace(
        method="real", epochs=128, batch_size=256, lr=1.25e-3, weight_decay=1e-5, decayed="convolutions"
    ),
    phase2={
        # The weights are not at ±1 at the end of step 2: they are signed with a scale.
        "bnew": _REACTNET_A.replace(
            method="bnew",
            method_options={"strength": IMAGENET_PUSH.strength, "fill": None, "scale": True},
            freeze=1.0,
            epochs=401,
            batch_size=220,
            lr=1e-3,
        ),
        "ste": _REACTNET_A.replace(
            method="ste", method_options={"scale": True}, epochs=128, batch_size=256, lr=1.25e-3
        ),
    },
    finetune={
        "bnew": _REACTNET_A.replace(
            method="real", method_options={"scale": True}, freeze=0.0, epochs=200, batch_size=220, lr=1e-3
        )
    },
).replace(binary_lr=1.0)


def _on_digits(recipe: Recipe) -> Recipe:
    return recipe.with_steps(epochs=20, factor=(20 * 21) / (1000 * 352))


# A first look in minutes: scikit-learn's 8×8 digits, 1,295 for training, 21 steps per epoch.
DIGITS = Experiment(
    teacher=_WIDERESNET22.scaled(0.075).replace(lr=0.1),  # 1.0 is too high for 300 steps
    phase1=CIFAR10.phase1.scaled(0.075),
    phase2={name: _on_digits(recipe) for name, recipe in CIFAR10.phase2.items()},
    on_request={name: _on_digits(recipe) for name, recipe in CIFAR10.on_request.items()},
).replace(data="digits", model="birealnet8", batch_size=64)

# Name, as `bnew reproduce` takes it → experiment.
EXPERIMENTS: dict[str, Experiment] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR10.replace(data="cifar100"),
    "digits": DIGITS,
    "imagenet": IMAGENET,
}
