"""Many runs: those below a folder, the best of them, and groups that differ only in their seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnew.errors import BnewError
from bnew.recipe import FINETUNED, STEP1, Recipe
from bnew.registry import dataset_row
from bnew.results.run import Run


def find_runs(roots: Iterable[str | Path]) -> list[Run]:
    """Every finished run at or below ``roots``, sorted by path.

    Raises:
        BnewError: a root does not exist, or there is no finished run below any of them.
    """
    folders = [Path(root) for root in roots]
    if not folders:
        raise BnewError("no folder was named: name folders of runs, or folders above them")
    paths: set[Path] = set()
    for root in folders:
        if not root.is_dir():
            raise BnewError(f"there is no folder {root}")
        paths.update(p.parent for p in root.rglob("summary.json"))
    if not paths:
        unfinished = "".join(
            f"; {run.path} is unfinished, {run.progress()}" for run in unfinished_runs(folders)
        )
        raise BnewError(f"no finished run below {', '.join(map(str, folders))}{unfinished}")
    return [Run(p) for p in sorted(paths)]


def unfinished_runs(roots: Iterable[str | Path]) -> list[Run]:
    """The unfinished runs at or below ``roots``, sorted by path."""
    begun = {path.parent for root in roots for path in Path(root).rglob("recipe.json")}
    return [run for path in sorted(begun) if not (run := Run(path)).done]


def best_run(path: str | Path) -> Run:
    """The run at ``path``, or else the one below it that :func:`best_of` chooses.

    Below a folder, only finished runs whose weights end binary count: no teachers, no phase 1.

    Raises:
        BnewError: there is no such run.
    """
    run = Run(path)
    if (run.path / "recipe.json").exists() or not run.path.is_dir():
        return run
    binary = [found for found in find_runs([path]) if found.recipe.ends_binary]
    if not binary:
        raise BnewError(f"no finished run below {path} has binary weights: run phase 2 first")
    return best_of(binary)


def best_of(runs: Sequence[Run]) -> Run:
    """The run with the best validation accuracy; of several, the one with the lowest validation loss.

    The test images have no part in it.
    """

    def rank(run: Run) -> tuple[float, float]:
        best = str(run.summary.get("best_epoch"))
        losses = [row.get("val_loss") for row in run.rows() if row.get("epoch") == best]
        try:
            loss = float(losses[0] or "inf") if losses else math.inf
        except ValueError:  # a damaged table
            loss = math.inf
        return float(run.summary["val_accuracy"]), -loss

    return max(runs, key=rank)


@dataclass(frozen=True)
class Group:
    """Runs on the same images that differ only in their seeds."""

    name: str
    """Name of the folder that holds the seeds, or of the run's folder if there are none."""
    variant: str
    """Within an experiment, its variant (plain, distilled, an ablation) or "teacher"; else empty."""
    runs: tuple[Run, ...]
    data: str = ""
    """Name of the data set, followed by its folder's name where the first is ambiguous."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the first run; the others have the same except for the seed."""
        return self.runs[0].recipe

    def values(self, key: str) -> list[float]:
        """The finite values of ``key`` in the runs' summaries."""
        values = (run.summary.get(key) for run in self.runs)
        return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]

    def mean(self, key: str) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values(key))

    def std(self, key: str) -> float | None:
        """Sample standard deviation over the seeds (n − 1); None for a single seed."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None


def group_by_recipe(runs: Iterable[Run]) -> list[Group]:
    """Runs grouped by name, variant, images and recipe without the seed, in order of first appearance.

    A group has each seed once: a second run of the same recipe and seed starts another group.
    """
    groups: dict[str, list[Run]] = {}
    seen: Counter[str] = Counter()
    for run in runs:
        recipe = run.recipe.meaning()
        # Runs of different seeds have different --init and --teacher runs, which differ only in their seeds.
        for key in ("seed", "init", "teacher"):
            recipe[key] = key != "seed" and recipe[key] is not None
        kind = json.dumps([*_names(run), run.data_id, recipe], sort_keys=True)
        seeded = f"{kind} {run.recipe.seed}"
        seen[seeded] += 1
        groups.setdefault(f"{kind} {seen[seeded]}", []).append(run)
    names = _data_names([members[0] for members in groups.values()])
    return [
        Group(*_names(first), tuple(members), names[first.recipe.data, first.data_id])
        for members in groups.values()
        for first in members[:1]
    ]


def _data_names(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """(data set, :attr:`Run.data_id`) → the shortest name that identifies the images among these runs.

    It is the data set's name, with the folder's name if there are several, and the data id if that is still
    ambiguous.
    """
    folders = {(run.recipe.data, run.data_id): Path(run.data_dir or "").name for run in runs}
    shared = Counter(data for data, _ in folders)
    same = Counter((data, folder) for (data, _), folder in folders.items())
    names = {}
    for (data, data_id), folder in folders.items():
        known = [folder] if folder and (dataset_row(data).own_images or shared[data] > 1) else []
        if same[data, folder] > 1:
            known.append("/".join(Path(data_id).parts[-2:]) or "unknown images")
        names[data, data_id] = f"{data} ({' '.join(known)})" if known else data
    return names


def _names(run: Run) -> tuple[str, str]:
    """Name and variant of ``run`` by its path: <variant>/<method>/seed<k> in an experiment, or any other."""
    path = run.path.resolve()
    if path.name != f"seed{run.recipe.seed}":
        return path.name, ""
    name = path.parent.name
    planned = name in (run.recipe.method, run.recipe.model, STEP1) or name.endswith(FINETUNED)
    return name, path.parent.parent.name if planned else ""
