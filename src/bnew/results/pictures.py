"""Pictures of results as SVG; without torch."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnew.registry import GREY, method_row
from bnew.results.groups import Group
from bnew.results.run import Run
from bnew.text import printable


def label(group: Group) -> str:
    """The group's method, with its folder's name where that differs."""
    recipe = group.recipe
    label = method_row(recipe.method).label
    if recipe.freeze_epoch == 0:
        label = "weights frozen"
    return printable(label if group.name in (recipe.method, recipe.model) else f"{label} ({group.name})")


def color_of(group: Group) -> str:
    """The colour of the group's method."""
    return method_row(group.recipe.method).color


# ---------------------------------------------------------------------- reading the tables


def _numbers(run: Run, table: str) -> dict[int, dict[str, float]]:
    """Epoch → column → value: the finite values in the complete rows of ``table``."""
    rows: dict[int, dict[str, float]] = {}
    for row in run.rows(table):
        if None in row.values():  # cut short by a kill
            continue
        values = {name: value for name, text in row.items() if (value := _finite(text)) is not None}
        if "epoch" in values:
            rows[int(values.pop("epoch"))] = values
    return rows


def _finite(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def epochs_before(run: Run) -> int:
    """The epochs of the runs that ``run`` starts from, such as phase 1; those that are not there are 0."""
    epochs, seen = 0, {run.path.resolve()}
    while run.recipe.init is not None:
        run = Run(run.path / run.recipe.init)
        if not run.done or run.path.resolve() in seen:
            break
        seen.add(run.path.resolve())
        epochs += run.epochs
    return epochs


@dataclass(frozen=True)
class _Curve:
    """A value by epoch, from 1: mean, minimum and maximum over the runs that have it in that epoch.

    The epochs go on where those of the run end that this one starts from.
    """

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def _curve(group: Group, key: str) -> _Curve:
    by_epoch: dict[int, list[float]] = {}
    for run in group.runs:
        before = epochs_before(run)
        for epoch, values in _numbers(run, "metrics").items():
            if key in values:
                by_epoch.setdefault(before + epoch + 1, []).append(values[key])
    points = sorted(by_epoch.items())
    return _Curve(
        [epoch for epoch, _ in points],
        [statistics.fmean(values) for _, values in points],
        [min(values) for _, values in points],
        [max(values) for _, values in points],
    )


# ---------------------------------------------------------------------- the pictures

# Grey that reads on white and on black; in the page it becomes the text's own colour.
INK = GREY
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a folder's name may have a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bnew",  # the same results make the same file
}
WIDTH = 5.4
LINES = ("-", "--", ":", "-.")
RIDGES = 6
DISTANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Picture:
    """An SVG and its caption."""

    kind: str
    caption: str
    svg: str


def pictures(groups: Sequence[Group]) -> list[Picture]:
    """The pictures of groups that share data set, model and variant; pictures without data are left out."""
    binarized = [group for group in groups if group.recipe.method is not None]
    made = (_accuracy(groups), _distance(binarized), _histograms(binarized))
    return [picture for picture in made if picture is not None]


def _accuracy(groups: Sequence[Group]) -> Picture | None:
    curves = _curves(groups, "val_accuracy")
    if not curves:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        _draw_curves(ax, curves, scale=100)
        # Without this limit, the first few epochs would compress all others into a narrow range.
        means = sorted(100 * value for _, curve in curves for value in curve.mean)
        bottom, top = means[len(means) // 20], means[-1]
        margin = 0.08 * (top - bottom) or 1
        ax.set_ylim(bottom - margin, top + margin)
        ax.set_ylabel("validation accuracy, %")
        _label_ends(ax, curves, scale=100)

    caption = f"Validation accuracy by epoch. {_who(curves)} The lowest twentieth may lie below the frame."
    return Picture("accuracy", caption, draw_svg(draw, 3.4))


def _distance(groups: Sequence[Group]) -> Picture | None:
    curves = _curves(groups, "distance")
    if not curves:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.set_yscale("symlog", linthresh=DISTANCE_FLOOR, linscale=0.4)
        _draw_curves(ax, curves)
        ax.set_ylim(-DISTANCE_FLOOR / 4, 1.4)
        ticks = [0, *(10.0**i for i in range(round(math.log10(DISTANCE_FLOOR)), 1))]
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_ylabel("mean distance to ±1")
        _label_ends(ax, curves)

    caption = (
        f"Mean distance to ±1 of the binary layers' weights, or of the real values whose signs they are, by "
        f"epoch. {_who(curves)} Logarithmic, but linear below {DISTANCE_FLOOR:g}."
    )
    return Picture("distance", caption, draw_svg(draw, 3.4))


def _histograms(groups: Sequence[Group]) -> Picture | None:
    shown = [(group, shares) for group in groups if (shares := _shares(group.runs[0]))]
    if not shown:
        return None
    columns = min(2, len(shown))
    lines = math.ceil(len(shown) / columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
        for ax, (group, shares) in zip(axes, shown, strict=False):
            _draw_ridges(ax, shares, color_of(group))
            ax.set_title(label(group), color=color_of(group), fontsize=10, loc="left")
        for ax in axes[len(shown) :]:
            ax.remove()
        for ax in axes[: len(shown)][-columns:]:
            ax.tick_params(axis="x", labelbottom=True)
        figure.supxlabel("weight", fontsize=10, color=INK)
        figure.supylabel("epoch", fontsize=10, color=INK)

    caption = (
        "Histograms of the binary layers' weights as they move to ±1: one line per epoch, the first on top. "
        "Heights are square roots of the shares, so that the ends do not hide the middle. "
        f"The first run of each method ({_seeds([group.runs[0] for group, _ in shown])})."
    )
    return Picture("weights", caption, draw_svg(draw, 0.4 + 2.5 * lines))


def draw_svg(draw: Callable[[Figure], None], height: float) -> str:
    """The output of ``draw`` as an SVG element without prologue or metadata."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _curves(groups: Sequence[Group], key: str) -> list[tuple[Group, _Curve]]:
    """The groups that have a curve, with their curves."""
    return [(group, curve) for group in groups if (curve := _curve(group, key)).epochs]


def _who(curves: Sequence[tuple[Group, _Curve]]) -> str:
    """The part of the caption that explains line and band."""
    if all(len(group.runs) == 1 for group, _ in curves):
        return f"One run each ({_seeds([group.runs[0] for group, _ in curves])})."
    return "Line: mean over the seeds; band: from the lowest to the highest of them."


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.recipe.seed for run in runs})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _draw_curves(ax: Axes, curves: Sequence[tuple[Group, _Curve]], scale: float = 1.0) -> None:
    """A line per group, with a band over its runs; a second line of the same colour is dashed, and so on."""
    colors = [color_of(group) for group, _ in curves]
    for i, (color, (_, curve)) in enumerate(zip(colors, curves, strict=True)):
        mean, low, high = ([scale * v for v in values] for values in (curve.mean, curve.low, curve.high))
        style = LINES[colors[:i].count(color) % len(LINES)]
        ax.plot(curve.epochs, mean, style, color=color, lw=1.6, marker="o" if len(mean) == 1 else None)
        ax.fill_between(curve.epochs, low, high, color=color, alpha=0.2, lw=0)
    starts = {curve.epochs[0] for _, curve in curves} - {min(curve.epochs[0] for _, curve in curves)}
    for start in starts:  # of phase 2
        ax.axvline(start - 0.5, color=INK, lw=0.8, ls=(0, (2, 3)))
    ax.set_xlabel("epoch, from the start of phase 1" if starts else "epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.01)
    ax.grid(axis="y", color=INK, alpha=0.2, lw=0.6)


def _label_ends(ax: Axes, curves: Sequence[tuple[Group, _Curve]], scale: float = 1.0) -> None:
    """Write each group's label at the right, as near to the end of its line as the other labels allow.

    That of a line which ends before others begin, such as phase 1, is written above the picture.
    """
    to_fraction = ax.transData + ax.transAxes.inverted()
    last_start = max(curve.epochs[0] for _, curve in curves)
    later = [(group, curve) for group, curve in curves if curve.epochs[-1] >= last_start]
    heights = [to_fraction.transform((curve.epochs[-1], scale * curve.mean[-1]))[1] for _, curve in later]
    for (group, _), y in zip(later, _spread(heights, gap=0.08), strict=True):
        ax.text(1.02, y, label(group), color=color_of(group), transform=ax.transAxes, va="center")
    earlier = [(group, curve) for group, curve in curves if curve.epochs[-1] < last_start]
    for number, (group, curve) in enumerate(earlier):
        x = to_fraction.transform((curve.epochs[0], 1))[0]
        ax.text(
            x, 1.03 + 0.08 * number, label(group), color=color_of(group), transform=ax.transAxes, va="bottom"
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved up and then down so that any two are at least ``gap`` apart and none is above 1."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    spread = list(heights)
    below = -gap
    for i in order:
        below = spread[i] = max(spread[i], below + gap)
    above = 1 + gap
    for i in reversed(order):
        above = spread[i] = min(spread[i], above - gap)
    return spread


def _shares(run: Run) -> dict[int, list[float]]:
    """Epoch, as in :class:`_Curve` → share of the weights in each bin of [-1, 1].

    For up to RIDGES evenly spread epochs.
    """
    before = epochs_before(run)
    counts = {
        before + epoch + 1: [row[f"bin{i}"] for i in range(len(row))]
        for epoch, row in _numbers(run, "histogram").items()
        if set(row) == {f"bin{i}" for i in range(len(row))} and sum(row.values()) > 0
    }
    epochs = sorted(counts)
    chosen = sorted(
        {epochs[round(i * (len(epochs) - 1) / (RIDGES - 1))] for i in range(RIDGES)} if epochs else ()
    )
    return {epoch: [n / sum(counts[epoch]) for n in counts[epoch]] for epoch in chosen}


def _draw_ridges(ax: Axes, shares: dict[int, list[float]], color: str) -> None:
    """Draw the histograms one below the other, each labelled with its epoch."""
    epochs = list(shares)
    for i, epoch in enumerate(epochs):
        base = -0.75 * i
        heights = [base + math.sqrt(share) for share in shares[epoch]]
        edges = [-1 + 2 * j / len(heights) for j in range(len(heights) + 1)]
        ax.stairs(heights, edges, baseline=base, fill=True, fc=to_rgba(color, 0.35), ec=color, lw=0.9)
    ax.set_yticks([-0.75 * i for i in range(len(epochs))], [str(epoch) for epoch in epochs])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xticks([-1, 0, 1], ["−1", "0", "1"])
