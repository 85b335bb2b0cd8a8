"""Tables and pictures from results, nothing else: no torch, no training."""

from __future__ import annotations

import html
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnew.errors import BnewError
from bnew.results import Group, Run, find_runs, group_by_recipe, write_atomically

MISSING = "–"


@dataclass(frozen=True)
class Reference:
    """A published accuracy, in percent as it was published."""

    data: str
    name: str
    model: str
    source: str
    test: str = MISSING
    val: str = MISSING
    epochs: str = MISSING


_LOGGED = "one logged run of the authors' code, almost surely CIFAR-100 without distillation"
_TOP1 = "top-1 on ImageNet's validation images"

REFERENCES = (
    Reference("cifar10", "IR-Net", "ResNet-20", "arXiv:1909.10788", test="86.5"),
    Reference("cifar10", "ReCU", "ResNet-20", "arXiv:2103.12369", test="87.5"),
    Reference("cifar10", "AdaBin", "ResNet-20", "arXiv:2208.08084", test="88.2"),
    Reference("cifar10", "real-valued", "ResNet-20", "beside the above", test="92.1"),
    Reference("cifar100", "BNEW, phase 2", "birealnet20", _LOGGED, val="53.92", epochs="200"),
    Reference("cifar100", "BNEW, phase 2", "birealnet20", _LOGGED, val="55.08", epochs="1000"),
    Reference("imagenet", "BNEW, step 1", "ReActNet-A", f"its author; {_TOP1}", test="70.1", epochs="128"),
    Reference("imagenet", "BNEW, step 1", "ReActNet-A", f"a user's run; {_TOP1}", test="69.5", epochs="128"),
    Reference("imagenet", "ReActNet", "ReActNet-A", f"arXiv:2003.03488; {_TOP1}", test="69.4"),
    Reference("imagenet", "AdamBNN", "ReActNet-A", f"arXiv:2106.11309; {_TOP1}", test="70.5"),
)

# Method → label and colour, in the order of tables and legends. The colours can be told apart by the
# colour-blind, and read on white and on black.
METHODS: dict[str | None, tuple[str, str]] = {
    None: ("real network", "#a0793d"),
    "clip": ("phase 1 (clip)", "#868e96"),
    "bnew": ("BNEW", "#e8590c"),
    "ste": ("STE", "#1c7ed6"),
    "bmd": ("BMD", "#2b9a66"),
    "bop": ("Bop", "#ae3ec9"),
}
OTHER = "#767676"


def _label(group: Group) -> str:
    """What a person calls the group: its method, and its folder where that says more."""
    recipe = group.recipe
    label = METHODS[recipe.method][0] if recipe.method in METHODS else str(recipe.method)
    return label if group.name in (recipe.method, recipe.model) else f"{label} ({group.name})"


def _color(group: Group) -> str:
    return METHODS.get(group.recipe.method, ("", OTHER))[1]


def _groups(runs: Iterable[Run]) -> list[Group]:
    """The groups by data set, model and variant, and in the order of METHODS within these."""
    rank = {method: i for i, method in enumerate(METHODS)}
    return sorted(
        group_by_recipe(runs),
        key=lambda g: (*_panel(g), rank.get(g.recipe.method, len(rank)), g.name),
    )


def _panel(group: Group) -> tuple[str, str, str]:
    """What groups must share to be in one picture: data set, model, variant."""
    return group.recipe.data, group.recipe.model, group.variant


# ---------------------------------------------------------------------- the table

HEADER = (
    "Method", "Variant", "Data set", "Model", "Epochs", "n", "Test accuracy, %",
    "Best validation accuracy, %", "Distance to ±1 before freezing", "Freezing cost, points",
    "Training time per run",
)  # fmt: skip

NOTES = (
    "Mean ± sample standard deviation (n − 1) over n runs that differ in their seeds alone; a single run "
    "has no ±. “(k of n)” says that only k of the runs have the value.",
    "Validation and test accuracy are those of the epoch with the best validation accuracy, at binary "
    "weights; of phase 1 and of real networks, at real weights.",
    "Freezing cost: validation accuracy just before freezing minus that just after, in percentage points. "
    "Methods that never freeze have none.",
    "Training time is what it took on the machine that ran it, beside whatever else it was running.",
)


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    published: bool = False


def _cell(group: Group, key: str, show: Callable[[float], str], spread: bool = True) -> str:
    """Mean and, if asked for, standard deviation of ``key``; how many runs have it, if not all."""
    values = group.values(key)
    if not values:
        return MISSING
    text = show(group.mean(key))
    std = group.std(key)
    if spread and std is not None:
        text += f" ± {show(std)}"
    return text if len(values) == len(group.runs) else f"{text} ({len(values)} of {len(group.runs)})"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _group_row(group: Group) -> _Row:
    recipe = group.recipe
    return _Row(
        (
            _label(group), group.variant or MISSING, recipe.data, recipe.model, str(recipe.epochs),
            str(len(group.runs)),
            _cell(group, "test_accuracy", _percent),
            _cell(group, "val_accuracy", _percent),
            _cell(group, "distance_before_freezing", lambda d: f"{d:.2g}", spread=False),
            _cell(group, "freezing_cost", _percent),
            _cell(group, "train_seconds", _duration, spread=False),
        )
    )  # fmt: skip


def _reference_row(reference: Reference) -> _Row:
    r = reference
    cells = (
        f"{r.name} [{r.source}]",
        "published, other recipe",
        r.data,
        r.model,
        r.epochs,
        MISSING,
        r.test,
        r.val,
    )
    return _Row(cells + (MISSING,) * (len(HEADER) - len(cells)), published=True)


def _rows(groups: Sequence[Group]) -> list[_Row]:
    """The groups' rows, and after those of a data set what others published on it."""
    rows = []
    for data in dict.fromkeys(group.recipe.data for group in groups):
        rows += [_group_row(group) for group in groups if group.recipe.data == data]
        # ImageNet is a folder of one's own: its name decides.
        rows += [_reference_row(r) for r in REFERENCES if r.data == Path(data).name.lower()]
    return rows


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|&#~])", r"\\\1", " ".join(text.split()))


def table(runs: Iterable[Run]) -> str:
    """The result table in Markdown: a row a group of runs, then, in italics, what others published."""
    return _markdown_table(_groups(runs))


def _markdown_table(groups: Sequence[Group]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * 5}{'---:|' * (len(HEADER) - 5)}"]
    for row in _rows(groups):
        cells = [_escape_markdown(cell) for cell in row.cells]
        if row.published:
            cells = [cell if cell == MISSING else f"*{cell}*" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _html_table(groups: Sequence[Group]) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "\n".join(
        f"<tr{' class=published' if row.published else ''}>{line('td', row.cells)}</tr>"
        for row in _rows(groups)
    )
    return f"<table>\n<thead><tr>{line('th', HEADER)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _notes(groups: Sequence[Group], unfinished: Sequence[Path]) -> list[str]:
    notes = list(NOTES)
    if any(row.published for row in _rows(groups)):
        notes.append(
            "Rows in italics are reference points, published by the sources in brackets. They were trained "
            "with other recipes, so they say where the field stands, not which method is better."
        )
    if unfinished:
        names = ", ".join("/".join(path.parts[-3:]) for path in unfinished)
        notes.append(f"Not finished, and so left out ({len(unfinished)}): {names}.")
    return notes


# ---------------------------------------------------------------------- reading the tables


def _numbers(run: Run, table: str) -> dict[int, dict[str, float]]:
    """Epoch → column → value: the finite values in those rows of ``table`` that are whole."""
    rows: dict[int, dict[str, float]] = {}
    for row in run.rows(table):
        if None in row.values():  # a kill cut it short
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


@dataclass(frozen=True)
class _Curve:
    """A value over the epochs, counted from 1: mean, least and greatest over the runs that have it then."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def _curve(group: Group, key: str) -> _Curve:
    by_epoch: dict[int, list[float]] = {}
    for run in group.runs:
        for epoch, values in _numbers(run, "metrics").items():
            if key in values:
                by_epoch.setdefault(epoch + 1, []).append(values[key])
    points = sorted(by_epoch.items())
    return _Curve(
        [epoch for epoch, _ in points],
        [statistics.fmean(values) for _, values in points],
        [min(values) for _, values in points],
        [max(values) for _, values in points],
    )


# ---------------------------------------------------------------------- the pictures

# Grey that reads on white and on black; in the page it becomes the text's own colour.
INK = "#767676"
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
    "svg.hashsalt": "bnew",  # the same results give the same file
}
WIDTH = 5.4
LINES = ("-", "--", ":", "-.")
RIDGES = 6
DISTANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Picture:
    """An SVG, and what it shows."""

    kind: str
    caption: str
    svg: str


def pictures(groups: Sequence[Group]) -> list[Picture]:
    """The pictures of groups that share data set, model and variant; those without data are left out."""
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
        # The first few epochs would squeeze all the others into a strip.
        means = sorted(100 * value for _, curve in curves for value in curve.mean)
        bottom, top = means[len(means) // 20], means[-1]
        margin = 0.08 * (top - bottom) or 1
        ax.set_ylim(bottom - margin, top + margin)
        ax.set_ylabel("validation accuracy, %")
        _label_ends(ax, curves, scale=100)

    caption = f"Validation accuracy by epoch. {_who(curves)} The lowest twentieth may lie below the frame."
    return Picture("accuracy", caption, _svg(draw, 3.4))


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
        f"Mean distance of the binary layers' weights to ±1 by epoch: of the real values whose signs they "
        f"are, where a method keeps such. {_who(curves)} Logarithmic, but linear below {DISTANCE_FLOOR:g}."
    )
    return Picture("distance", caption, _svg(draw, 3.4))


def _histograms(groups: Sequence[Group]) -> Picture | None:
    shown = [(group, shares) for group in groups if (shares := _shares(group.runs[0]))]
    if not shown:
        return None
    columns = min(2, len(shown))
    lines = math.ceil(len(shown) / columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True).flatten()
        for ax, (group, shares) in zip(axes, shown, strict=False):
            _draw_ridges(ax, shares, _color(group))
            ax.set_title(_label(group), color=_color(group), fontsize=10, loc="left")
        for ax in axes[len(shown) :]:
            ax.remove()

    caption = (
        "Where the weights of the binary layers are, as they move to ±1: one line an epoch, the first on "
        "top; heights are square roots of the shares, for the ends not to hide the middle. "
        f"The first run of each method ({_seeds([group.runs[0] for group, _ in shown])})."
    )
    return Picture("weights", caption, _svg(draw, 0.4 + 2.5 * lines))


def _svg(draw: Callable[[Figure], None], height: float) -> str:
    """What ``draw`` draws, as an SVG element without prologue or metadata."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _curves(groups: Sequence[Group], key: str) -> list[tuple[Group, _Curve]]:
    """The curves of those groups that have any."""
    return [(group, curve) for group in groups if (curve := _curve(group, key)).epochs]


def _who(curves: Sequence[tuple[Group, _Curve]]) -> str:
    """What line and band are, in words."""
    if all(len(group.runs) == 1 for group, _ in curves):
        return f"One run each ({_seeds([group.runs[0] for group, _ in curves])})."
    return "Line: mean over the seeds; band: from the lowest to the highest of them."


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.recipe.seed for run in runs})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _draw_curves(ax: Axes, curves: Sequence[tuple[Group, _Curve]], scale: float = 1.0) -> None:
    """A line a group, with a band over its runs; a second line of a colour is dashed, and so on."""
    colors = [_color(group) for group, _ in curves]
    for i, (color, (_, curve)) in enumerate(zip(colors, curves, strict=True)):
        mean, low, high = ([scale * v for v in values] for values in (curve.mean, curve.low, curve.high))
        style = LINES[colors[:i].count(color) % len(LINES)]
        ax.plot(curve.epochs, mean, style, color=color, lw=1.6, marker="o" if len(mean) == 1 else None)
        ax.fill_between(curve.epochs, low, high, color=color, alpha=0.2, lw=0)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.01)
    ax.grid(axis="y", color=INK, alpha=0.2, lw=0.6)


def _label_ends(ax: Axes, curves: Sequence[tuple[Group, _Curve]], scale: float = 1.0) -> None:
    """Write each group's label at the right, as near to its line's last height as the others allow."""
    to_fraction = ax.transData + ax.transAxes.inverted()
    heights = [to_fraction.transform((curve.epochs[-1], scale * curve.mean[-1]))[1] for _, curve in curves]
    for (group, _), y in zip(curves, _spread(heights, gap=0.08), strict=True):
        ax.text(1.02, y, _label(group), color=_color(group), transform=ax.transAxes, va="center")


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved up and then down so that any two are ``gap`` apart and none is above 1."""
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
    """Epoch, from 1 → share of the weights in each bin of [-1, 1], of at most RIDGES epochs spread evenly."""
    counts = {
        epoch + 1: [row[f"bin{i}"] for i in range(len(row))]
        for epoch, row in _numbers(run, "histogram").items()
        if set(row) == {f"bin{i}" for i in range(len(row))} and sum(row.values()) > 0
    }
    epochs = sorted(counts)
    chosen = sorted(
        {epochs[round(i * (len(epochs) - 1) / (RIDGES - 1))] for i in range(RIDGES)} if epochs else ()
    )
    return {epoch: [n / sum(counts[epoch]) for n in counts[epoch]] for epoch in chosen}


def _draw_ridges(ax: Axes, shares: dict[int, list[float]], color: str) -> None:
    """The histograms one below the other, each over its epoch's number."""
    epochs = list(shares)
    for i, epoch in enumerate(epochs):
        base = -0.75 * i
        heights = [base + math.sqrt(share) for share in shares[epoch]]
        edges = [-1 + 2 * j / len(heights) for j in range(len(heights) + 1)]
        ax.stairs(heights, edges, baseline=base, fill=True, fc=to_rgba(color, 0.35), ec=color, lw=0.9)
    ax.set_yticks([-0.75 * i for i in range(len(epochs))], [str(epoch) for epoch in epochs])
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelbottom=True)
    ax.spines["left"].set_visible(False)
    ax.set_xticks([-1, 0, 1], ["−1", "0", "1"])
    ax.set_xlabel("weight")
    ax.set_ylabel("epoch")


# ---------------------------------------------------------------------- the report

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #24292f; --soft: #6e7781; --line: #d0d7de; --back: #ffffff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6edf3; --soft: #9aa4af; --line: #30363d; --back: #0d1117; }}
}}
body {{ margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .4rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }}
th {{ color: var(--soft); font-weight: 600; vertical-align: bottom; }}
td {{ white-space: nowrap; }}
td:nth-child(n+5), th:nth-child(n+5) {{ text-align: right; }}
.published td {{ font-style: italic; color: var(--soft); }}
.published td:first-child {{ white-space: normal; min-width: 14rem; }}
.notes {{ color: var(--soft); font-size: .875rem; padding-left: 1.2rem; }}
.pictures {{ display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }}
figure {{ margin: 0; }}
figure svg {{ width: 100%; max-width: 34rem; height: auto; color: var(--soft); }}
figcaption {{ color: var(--soft); font-size: .875rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
TITLE = "Binarized networks: results"


@dataclass(frozen=True)
class _Section:
    """A heading with its pictures."""

    heading: str
    pictures: list[Picture]


def _sections(groups: Sequence[Group]) -> list[_Section]:
    panels: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        panels.setdefault(_panel(group), []).append(group)
    return [_Section(" · ".join(filter(None, panel)), pictures(members)) for panel, members in panels.items()]


def _markdown(groups: Sequence[Group], notes: Sequence[str], sections: Sequence[_Section]) -> str:
    parts = [
        f"# {TITLE}",
        _markdown_table(groups),
        "\n".join(f"- {_escape_markdown(note)}" for note in notes),
    ]
    for number, section in enumerate(sections, 1):
        parts.append(f"## {_escape_markdown(section.heading)}")
        for picture in section.pictures:
            caption = _escape_markdown(picture.caption)
            parts.append(f"![{picture.kind}]({_file_name(number, picture)})\n\n{caption}")
    return "\n\n".join(parts) + "\n"


def _page(groups: Sequence[Group], notes: Sequence[str], sections: Sequence[_Section]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    parts = [f'<div class="scroll">\n{_html_table(groups)}\n</div>\n<ul class="notes">{items}</ul>']
    for section in sections:
        figures = "\n".join(map(_figure, section.pictures))
        parts.append(f'<h2>{html.escape(section.heading)}</h2>\n<div class="pictures">\n{figures}\n</div>')
    return PAGE.format(title=TITLE, body="\n".join(parts))


def _figure(picture: Picture) -> str:
    label = html.escape(picture.caption)
    svg = picture.svg.replace(INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure>\n{svg}<figcaption>{label}</figcaption>\n</figure>"


def _file_name(number: int, picture: Picture) -> str:
    return f"report-{number}-{picture.kind}.svg"


def _unfinished(roots: Iterable[str | Path]) -> list[Path]:
    """The folders of begun runs at or below ``roots`` that are not done."""
    begun = {path.parent for root in roots for path in Path(root).rglob("recipe.json")}
    return sorted(path for path in begun if not Run(path).done)


def write_report(roots: Iterable[str | Path], out_dir: str | Path) -> list[Path]:
    """Report every finished run at or below ``roots``.

    Writes report.md with its pictures beside it, and report.html, a page that needs nothing else; returns
    the paths of these two.

    Raises:
        BnewError: no finished run, a run's file that is broken, or ``out_dir`` cannot be written.
    """
    roots, out = list(roots), Path(out_dir)
    groups = _groups(find_runs(roots))
    notes, sections = _notes(groups, _unfinished(roots)), _sections(groups)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BnewError(f"could not make the folder {out}: {error}; choose another") from None
    for number, section in enumerate(sections, 1):
        for picture in section.pictures:
            _write(out / _file_name(number, picture), picture.svg)
    return [
        _write(out / "report.md", _markdown(groups, notes, sections)),
        _write(out / "report.html", _page(groups, notes, sections)),
    ]


def _write(path: Path, text: str) -> Path:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path
