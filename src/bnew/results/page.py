"""The report as one HTML page, for any screen and for paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bnew.errors import BnewError
from bnew.results.comparison import COLUMNS, TEXTS, Comparison
from bnew.results.groups import Group, best_of
from bnew.results.markup import document, shown
from bnew.results.packed import packed_of
from bnew.results.pictures import INK, Picture, label
from bnew.results.references import MISSING
from bnew.results.run import Run
from bnew.text import percent

STYLE = """\
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d8dee4; --back: #ffffff;
  --card: #f6f8fa; --mark: #e8590c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9aa4af; --line: #30363d; --back: #0d1117; --card: #161b22; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 72rem; color: var(--text);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 1rem; font-size: 1.15rem; }
.same { margin: .25rem 0 0; color: var(--soft); }
.best { margin: 1.5rem 0 0; padding: 1rem 1.25rem; background: var(--card); border-radius: .5rem;
  border-left: .25rem solid var(--mark); }
.best p { margin: 0; color: var(--soft); }
.best .what { color: var(--text); font-size: 1.15rem; }
.scroll { margin-top: 1.5rem; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; }
td.number { white-space: nowrap; }
@media (min-width: 62rem) { tr:not(.published) td:first-child { white-space: nowrap; } }
.published td { font-style: italic; color: var(--soft); }
.notes { margin: 1.25rem 0 0; color: var(--soft); font-size: .8125rem; padding-left: 1.2rem; }
.pictures { display: grid; gap: 1.5rem 2.5rem; align-items: start; }
figure { margin: 0; }
figure svg { display: block; width: 100%; max-width: 36rem; height: auto; color: var(--soft); }
figcaption { margin-top: .25rem; color: var(--soft); font-size: .8125rem; max-width: 36rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.5rem; margin: 0;
  font-size: .875rem; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
dd div + div { margin-top: .2rem; }
@media (min-width: 62rem) { /* the tall picture beside the other two */
  .pictures { grid-template: auto 1fr / 1fr 1fr; }
  .weights { grid-area: 1 / 2 / 3; }
}
@media screen and (max-width: 46rem) { /* each row of the table a block of its own */
  body { padding-top: 1.25rem; }
  table, tbody { display: block; }
  thead { display: none; }
  tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1rem;
    padding: .75rem 0;
    border-bottom: 1px solid var(--line); }
  td { display: block; padding: .1rem 0; border: 0; }
  td:first-child { font-weight: 600; }
  td:first-child, td.missing { grid-column: 1 / -1; }
  td.missing { display: none; }
  td.number { text-align: left; white-space: normal; align-self: end; }
  td:not(:first-child)::before { content: attr(data-title); display: block; color: var(--soft);
    font-weight: 400; font-size: .75rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@page { margin: 14mm 12mm; }
@media print {
  :root { --text: #000000; --soft: #444c56; --line: #c9d1d9; --back: #ffffff; --card: #f6f8fa; }
  body { padding: 0; max-width: none; font-size: 10.5pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .25rem .3rem; }
  td.number { white-space: normal; }
  thead { display: table-header-group; }
  tr, figure, .best, dd { break-inside: avoid; }
  h2 { break-after: avoid; }
  .pictures { grid-template: auto 1fr / 1fr 1fr; gap: 1rem 1.5rem; break-inside: avoid; }
  .weights { grid-area: 1 / 2 / 3; }
  figcaption, .notes { font-size: 7.5pt; }
}"""


def page(
    title: str, comparison: Comparison, notes: Sequence[str], sections: Sequence[tuple[str, list[Picture]]]
) -> str:
    """The page: the best network, the table, the pictures of each section, and how the runs were made."""
    parts = [f'<p class="same">{shown(comparison.heading())}</p>'] if comparison.heading() else []
    for data in dict.fromkeys(group.data for group in comparison.groups):
        parts += _best([group for group in comparison.groups if group.data == data])
    items = "".join(f"<li>{shown(note)}</li>" for note in notes)
    parts.append(f'<div class="scroll">\n{_table(comparison)}\n</div>\n<ul class="notes">{items}</ul>')
    for heading, pictures in sections:
        figures = "\n".join(map(_figure, pictures))
        parts.append(f'<h2>{shown(heading)}</h2>\n<div class="pictures">\n{figures}\n</div>')
    made = "\n".join(
        f"<dt>{name}</dt><dd>{''.join(f'<div>{shown(value)}</div>' for value in values)}</dd>"
        for name, values in how_made([run for group in comparison.groups for run in group.runs])
    )
    parts.append(f"<h2>How they were made</h2>\n<dl>\n{made}\n</dl>" if made else "")
    return document(title, STYLE, parts)


def _table(comparison: Comparison) -> str:
    columns = comparison.shown()

    def cells(tag: str, texts: Sequence[str], best: Iterable[int] = ()) -> str:
        line = ""
        for i in columns:
            kinds = [*(["number"] if i >= TEXTS else []), *(["missing"] if texts[i] == MISSING else [])]
            named = f' class="{" ".join(kinds)}"' if kinds else ""
            named += f' data-title="{shown(COLUMNS[i].title)}"' if tag == "td" else ""
            text = shown(texts[i]).replace(" ± ", "&nbsp;±&nbsp;")
            line += f"<{tag}{named}>{f'<b>{text}</b>' if i in best else text}</{tag}>"
        return line

    heads = cells("th", [column.title for column in COLUMNS])
    body = "\n".join(
        f"<tr{' class=published' if row.published else ''}>{cells('td', row.cells, row.best)}</tr>"
        for row in comparison.rows
    )
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _best(groups: Sequence[Group]) -> list[str]:
    """The network of these groups with the best validation accuracy, as `bnew pack` finds it, in words."""
    binary = {run: group for group in groups for run in group.runs if group.recipe.ends_binary}
    if not binary:
        return []
    run = best_of(list(binary))
    group = binary[run]
    seed = f"seed {run.recipe.seed}" if len(group.runs) > 1 else ""
    name = ", ".join(filter(None, (label(group), group.variant, seed)))
    several = f" on {group.data}" if len({each.data for each in groups}) > 1 else ""
    lines = [
        f'<p class="what">Best network{shown(several)}: {shown(name)}, '
        f"<b>{percent(run.summary['test_accuracy'])}</b> test accuracy</p>",
        f"<p>{percent(run.summary['val_accuracy'])} validation accuracy, by which it was chosen</p>",
    ]
    packed = packed_of(run)
    if packed:
        size = f"Packed file: {packed['bytes']:,} bytes"
        if "seconds_per_image" in packed:
            milliseconds = f"{1000 * packed['seconds_per_image']:.3g}"
            size += f"; {milliseconds} ms an image on one thread of {packed['cpu']}"
        lines.append(f"<p>{shown(size)}</p>")
    return ['<div class="best">\n' + "\n".join(lines) + "\n</div>"]


def how_made(runs: Iterable[Run]) -> list[tuple[str, list[str]]]:
    """Name → the values that the runs recorded of their date, command, code and machine; what is known."""
    found: dict[str, list[str]] = {}
    for run in runs:
        try:
            environment = run.environment
        except BnewError:  # killed at its beginning by an earlier version
            continue
        said = {
            "Date": str(environment.get("started", ""))[:10],
            "Command": environment.get("command"),
            "Commit": environment.get("commit"),
            "CPU": environment.get("cpu") and f"{environment['cpu']}, {environment.get('cores')} cores",
            "Device": environment.get("device"),
            "Versions": environment.get("bnew")
            and f"bnew {environment['bnew']}, PyTorch {environment.get('torch')}",
        }
        for name, value in said.items():
            if value and value != "cpu" and str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    dates = sorted(found.get("Date", []))
    if len(dates) > 1:
        found["Date"] = [f"{dates[0]} to {dates[-1]}"]
    return [(name, values) for name, values in found.items() if values]


def _figure(picture: Picture) -> str:
    caption = shown(picture.caption)
    svg = picture.svg.replace(INK, "currentColor").replace(
        "<svg", f'<svg role="img" aria-label="{caption}"', 1
    )
    return f'<figure class="{picture.kind}">\n{svg}<figcaption>{caption}</figcaption>\n</figure>'
