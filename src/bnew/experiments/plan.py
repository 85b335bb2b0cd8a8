"""The runs of an experiment, and which runs each of them needs.

An experiment's folder::

    <out>/teacher/<model>/seed<k>/               real networks, for distillation
    <out>/<variant>/clip/seed<k>/                phase 1; a variant is plain, distilled, or an ablation
    <out>/<variant>/<method>/seed<k>/            phase 2
    <out>/<variant>/<method>-finetune/seed<k>/   ImageNet's third step; its phase 1 is called step1
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnew.errors import BnewError, lookup
from bnew.experiments.published import EXPERIMENTS, Experiment
from bnew.recipe import FINETUNED, Recipe
from bnew.references import TORCHVISION
from bnew.results.run import Run

_LINK = "../../../"  # from a run's folder to the experiment's


@dataclass(frozen=True)
class Stage:
    """One run of an experiment.

    ``name`` is its folder below the experiment's. ``needs`` are the names of the stages that it starts from.
    """

    name: str
    recipe: Recipe
    needs: tuple[str, ...] = ()
    step: str = "step1"
    """teacher, or one of STEPS."""


@dataclass(frozen=True)
class Variant:
    """Changes to all runs of a variant. An ablation is a variant, never a copied recipe."""

    model_options: dict[str, Any]
    phase1: bool = True
    """Whether phase 2 starts from phase 1; else from random weights."""
    phase2_length: float = 1.0
    """Factor for the epochs of phase 2, with the published λ."""


# The published ablations of BNEW, on CIFAR-100 with distillation.
ABLATIONS: dict[str, Variant] = {
    "no-scale": Variant({"scale": False}),
    "no-shift": Variant({"shift": False}),
    "relu": Variant({"prelu": False}),
    "clipped-identity": Variant({"surrogate": "clipped_identity"}),
    "clipped-identity-no-scale": Variant({"surrogate": "clipped_identity", "scale": False}),
    "binary-ends": Variant({"binary_ends": True}),
    "binary-shortcut": Variant({"binary_shortcut": True}),
    "no-phase1": Variant({}, phase1=False),
    "200-epochs": Variant({}, phase2_length=0.2),
    "2000-epochs": Variant({}, phase2_length=2.0),
}


# The steps of an experiment, by ImageNet's names.
STEPS = ("step1", "step2", "finetune")


def plan(
    name: str,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    distill: bool = False,
    ablations: bool = False,
    epochs_scale: Sequence[float] = (1.0,),
    steps: Sequence[str] | None = None,
    teacher: str | None = None,
    out: str | Path = ".",
    changes: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
) -> list[Stage]:
    """The stages of experiment ``name``, each after those that it needs.

    Args:
        name: one of EXPERIMENTS.
        methods: of phase 2; None: all that the paper compares, or for ImageNet only BNEW.
        seeds: None: 0 to 4, or for ImageNet only 0.
        distill: plan the distilled runs in place of the plain ones; ImageNet's are always distilled.
        ablations: add the published ablations of BNEW.
        epochs_scale: one factor for all runs; or two, for teachers and phase 1 and for all later steps; or
            three, the last for fine-tuning.
        steps: which of STEPS; None: all that the experiment has.
        teacher: in place of the experiment's own: a run's folder, a network of torchvision with its weights,
            or none.
        out: the experiment's folder; the path to a teacher's folder is relative to it.
        changes: field → value for all recipes.
        weights: file from which phase 1 starts.
        pretrained: whether phase 1 starts from the weights that come with the network.

    Raises:
        BnewError: unknown experiment, method or step; no methods or seeds; impossible options.
    """
    experiment = lookup("experiment", name, EXPERIMENTS)
    if changes:
        experiment = experiment.replace(**changes)
    if weights is not None or pretrained:
        file = (
            None if weights is None else os.path.relpath(weights, Path(out) / "variant" / "method" / "seed")
        )
        start = experiment.phase1.replace(weights=file, pretrained=pretrained)
        experiment = dataclasses.replace(experiment, phase1=start)
    if methods is None:
        methods = experiment.methods or tuple(experiment.phase2)
    if seeds is None:
        seeds = experiment.seeds
    for method in methods:
        lookup("method of phase 2", method, experiment.choices)
    if not methods or not seeds:
        raise BnewError("an experiment needs at least one method and one seed")
    if len(set(seeds)) < len(seeds):
        raise BnewError(
            f"the seeds {', '.join(map(str, seeds))} name one twice, which would be the same run: remove one"
        )
    if not 1 <= len(epochs_scale) <= 3:
        raise BnewError(f"the scale of the epochs takes one to three factors, not {len(epochs_scale)}")
    allowed = STEPS if experiment.finetune else STEPS[:2]
    for step in steps or ():
        lookup(f"step of {name}", step, dict.fromkeys(allowed))
    if ablations and (experiment.distilled or not distill):
        raise BnewError(
            "the published ablations are for CIFAR's distilled runs: add --distill, or leave out --ablations"
        )
    if teacher not in (None, "none"):
        experiment = dataclasses.replace(experiment, teacher=_teacher(teacher, Path(out)))
    distilled = teacher != "none" and (distill or experiment.distilled or teacher is not None)
    base = "distilled" if distilled else "plain"
    planned = _variant(base, base, Variant({}), experiment, methods, seeds, epochs_scale)
    for ablation, variant in ABLATIONS.items() if ablations else ():
        planned |= _variant(ablation, base, variant, experiment, ("bnew",), seeds, epochs_scale)
    chosen = [stage for stage in planned.values() if stage.step in ("teacher", *(steps or allowed))]
    if not chosen:
        raise BnewError(
            f"no {' or '.join(steps or ())} is published for {', '.join(methods)}: choose other steps"
        )
    return chosen


def _teacher(name: str, out: Path) -> str:
    """The recipe field ``teacher`` for the teacher ``name`` of an experiment in ``out``."""
    if Run(name).begun:
        return os.path.relpath(name, out / "variant" / "method" / "seed")
    if Path(name).is_dir() or len(Path(name).parts) > 1:
        raise BnewError(
            f"the teacher {name} is not the folder of a run: give one, a network such as resnet34, or none"
        )
    return TORCHVISION + name


def _variant(
    name: str,
    base: str,
    variant: Variant,
    experiment: Experiment,
    methods: Sequence[str],
    seeds: Sequence[int],
    epochs_scale: Sequence[float],
) -> dict[str, Stage]:
    """Name → stage of one variant; it shares phase 1 with ``base`` if the network is the same."""
    first, second, third = (epochs_scale[min(i, len(epochs_scale) - 1)] for i in range(3))
    stages: dict[str, Stage] = {}

    def add(step: str, stage: str, recipe: Recipe, *needs: str) -> str:
        stages[stage] = Stage(stage, recipe.published(), needs, step)
        return stage

    for seed in seeds:
        common: dict[str, Any] = {"seed": seed}
        teachers: tuple[str, ...] = ()
        if base == "distilled":
            if isinstance(experiment.teacher, Recipe):
                recipe = experiment.teacher.scaled(first).replace(**common)
                teachers = (add("teacher", f"teacher/{recipe.model}/seed{seed}", recipe),)
                common["teacher"] = _LINK + teachers[0]
            else:
                common["teacher"] = experiment.teacher
        common["model_options"] = {**experiment.phase1.model_options, **variant.model_options}
        starts: tuple[str, ...] = ()
        if variant.phase1:
            folder = name if variant.model_options else base
            recipe = experiment.phase1.scaled(first).replace(**common)
            starts = (add("step1", f"{folder}/{experiment.first}/seed{seed}", recipe, *teachers),)
            common["init"] = _LINK + starts[0]
        for method in methods:
            recipe = experiment.choices[method]
            if variant.phase2_length != 1:
                strength = recipe.method_options["strength"] * variant.phase2_length  # λ T
                epochs = round(recipe.epochs * variant.phase2_length)
                recipe = recipe.replace(epochs=epochs, method_options={"strength": strength})
            recipe = recipe.scaled(second).replace(**common)
            trained = add("step2", f"{name}/{method}/seed{seed}", recipe, *teachers, *starts)
            if method in experiment.finetune:
                recipe = (
                    experiment.finetune[method].scaled(third).replace(**{**common, "init": _LINK + trained})
                )
                add("finetune", f"{name}/{method}{FINETUNED}/seed{seed}", recipe, *teachers, trained)
    return stages
