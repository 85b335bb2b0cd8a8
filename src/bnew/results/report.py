"""The table of results, and the report with table and pictures; without torch."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnew.errors import BnewError
from bnew.files import write_atomically
from bnew.registry import METHODS, dataset_row
from bnew.results.groups import Group, find_runs, group_by_recipe, unfinished_runs
from bnew.results.pictures import INK, Picture, label, pictures
from bnew.results.run import Run
from bnew.text import printable

logger = logging.getLogger("bnew")

MISSING = "–"


@dataclass(frozen=True)
class Reference:
    """A published accuracy, in percent, as published."""

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


def _groups(runs: Iterable[Run]) -> list[Group]:
    """Groups, sorted by data set, model and variant, then by method; with frozen weights throughout, last."""
    rank = {method: i for i, method in enumerate((None, *METHODS))}
    return sorted(
        group_by_recipe(runs),
        key=lambda g: (
            g.recipe.data,
            *_panel(g),
            g.recipe.freeze_epoch == 0,
            rank.get(g.recipe.method, len(rank)),
            g.name,
        ),
    )


def _panel(group: Group) -> tuple[str, str, str]:
    """Data set, model and variant: the groups of one picture have the same."""
    return group.data, group.recipe.model, group.variant


# ---------------------------------------------------------------------- the table

HEADER = (
    "Method", "Variant", "Data set", "Model", "Epochs", "n", "Test accuracy, %",
    "Best validation accuracy, %", "Distance to ±1 before freezing", "Freezing cost, points",
    "Training time per run",
)  # fmt: skip

NOTES = (
    "Mean ± sample standard deviation (n − 1) over n runs that differ only in their seeds; a single run has "
    "no ±. “(k of n)”: only k of the runs have the value.",
    "Validation and test accuracy are those of the epoch with the best validation accuracy, with binary "
    "weights; for phase 1 and real networks, with real weights.",
    "Freezing cost: validation accuracy just before freezing minus that just after, in percentage points. "
    "Methods that never freeze have none.",
    "Training time depends on the machine and on other programs that ran at the same time.",
)


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    published: bool = False


def _cell(group: Group, key: str, show: Callable[[float], str], spread: bool = True) -> str:
    """Mean and, if ``spread``, standard deviation of ``key``; how many runs have it, if not all."""
    values = group.values(key)
    if not values:
        return MISSING
    text = show(group.mean(key))
    std = group.std(key)
    if spread and std is not None:
        text += f" ± {show(std)}"
    return text if len(values) == len(group.runs) else f"{text} ({len(values)} of {len(group.runs)})"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".replace("-", "−")


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _epochs(group: Group) -> str:
    """ "200"; or "120 of 200", "90–120 of 200", where callbacks stopped runs early."""
    planned = group.recipe.epochs
    trained = sorted({run.epochs for run in group.runs})
    if trained == [planned]:
        return str(planned)
    return f"{'–'.join(map(str, dict.fromkeys((trained[0], trained[-1]))))} of {planned}"


def _group_row(group: Group) -> _Row:
    recipe = group.recipe
    return _Row(
        (
            label(group), group.variant or MISSING, group.data, recipe.model, _epochs(group),
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
    """The groups' rows; those of each data set are followed by its published references."""
    rows = []
    for data in dict.fromkeys(group.recipe.data for group in groups):
        rows += [_group_row(group) for group in groups if group.recipe.data == data]
        # A folder may hold any images: the number of classes says whether they are the published ones.
        classes = dataset_row(data).classes
        if classes is None or any(g.values("classes") == [classes] * len(g.runs) for g in groups):
            rows += [_reference_row(r) for r in REFERENCES if r.data == data]
    return rows


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|&#~])", r"\\\1", " ".join(printable(text).split()))


def table(runs: Iterable[Run]) -> str:
    """The result table in Markdown: a row per group of runs, then, in italics, published references."""
    return _markdown_table(_groups(runs))


def _markdown_table(groups: Sequence[Group]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * 5}{'---:|' * (len(HEADER) - 5)}"]
    for row in _rows(groups):
        cells = [_escape_markdown(cell) for cell in row.cells]
        if row.published:
            cells = [cell if cell == MISSING else f"*{cell}*" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _escape_html(text: str) -> str:
    return html.escape(printable(text))


def _html_table(groups: Sequence[Group]) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return "".join(f"<{tag}>{_escape_html(cell)}</{tag}>" for cell in cells)

    body = "\n".join(
        f"<tr{' class=published' if row.published else ''}>{line('td', row.cells)}</tr>"
        for row in _rows(groups)
    )
    return f"<table>\n<thead><tr>{line('th', HEADER)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _notes(groups: Sequence[Group], unfinished: Sequence[Run]) -> list[str]:
    notes = list(NOTES)
    if any(row.published for row in _rows(groups)):
        notes.append(
            "Rows in italics are reference points from the sources in brackets. They were trained with other "
            "recipes, so they show the state of the field, not which method is better."
        )
    if unfinished:
        names = ", ".join(f"{'/'.join(run.path.parts[-3:])} ({run.progress()})" for run in unfinished)
        notes.append(f"Unfinished and left out ({len(unfinished)}): {names}.")
    return notes


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
th, td {{ padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }}
th {{ color: var(--soft); font-weight: 600; vertical-align: bottom; }}
td {{ white-space: nowrap; }}
td:nth-child(n+5), th:nth-child(n+5) {{ text-align: right; }}
.published td {{ font-style: italic; color: var(--soft); }}
.published td:nth-child(-n+2) {{ white-space: normal; min-width: 7rem; }}
.published td:first-child {{ min-width: 12rem; }}
.notes {{ color: var(--soft); font-size: .875rem; padding-left: 1.2rem; }}
.pictures {{ display: grid; gap: 1.5rem 2rem; align-items: start; }}
@media (min-width: 62rem) {{ /* the tall picture beside the other two */
  .pictures {{ grid-template: auto 1fr / 1fr 1fr; }}
  .weights {{ grid-area: 1 / 2 / 3; }}
}}
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
    items = "".join(f"<li>{_escape_html(note)}</li>" for note in notes)
    parts = [f'<div class="scroll">\n{_html_table(groups)}\n</div>\n<ul class="notes">{items}</ul>']
    for section in sections:
        figures = "\n".join(map(_figure, section.pictures))
        parts.append(f'<h2>{_escape_html(section.heading)}</h2>\n<div class="pictures">\n{figures}\n</div>')
    return PAGE.format(title=TITLE, body="\n".join(parts))


def _figure(picture: Picture) -> str:
    caption = _escape_html(picture.caption)
    svg = picture.svg.replace(INK, "currentColor").replace(
        "<svg", f'<svg role="img" aria-label="{caption}"', 1
    )
    return f'<figure class="{picture.kind}">\n{svg}<figcaption>{caption}</figcaption>\n</figure>'


def _file_name(number: int, picture: Picture) -> str:
    return f"report-{number}-{picture.kind}.svg"


def write_report(roots: Iterable[str | Path], out_dir: str | Path) -> list[Path]:
    """Report every finished run at or below ``roots``.

    Writes report.md with its pictures beside it, and the self-contained page report.html; returns the paths
    of these two.

    Raises:
        BnewError: there is no finished run, a run's file is broken, or ``out_dir`` cannot be written.
    """
    roots, out = list(roots), Path(out_dir)
    groups, unfinished = _groups(find_runs(roots)), unfinished_runs(roots)
    for run in unfinished:
        logger.warning("%s is unfinished (%s) and left out of the report", run.path, run.progress())
    notes, sections = _notes(groups, unfinished), _sections(groups)
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
