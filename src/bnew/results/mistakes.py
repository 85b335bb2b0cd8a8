"""An evaluation as one HTML page, with the worst mistakes as pictures; without torch."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from bnew.files import write_atomically
from bnew.results.markup import document, shown
from bnew.results.metrics import Mistake, Picture
from bnew.shares import interval_of
from bnew.text import percent

if TYPE_CHECKING:
    from bnew.results.evaluation import Evaluation

MOST_IN_MATRIX = 30  # classes
MOST_PAIRS = 30
SIDE = 256  # pixels; larger pictures are made smaller

STYLE = """\
:root { color-scheme: light dark; --text: #24292f; --soft: #57606a; --line: #d0d7de; --back: #fff;
  --right: 46 160 67; --wrong: 218 54 51; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9aa4af; --line: #30363d; --back: #0d1117; }
}
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
h2, h2 + p { break-after: avoid; }
p, figcaption { color: var(--soft); }
dl { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 0; }
dd { margin: 0; font-size: 1.75rem; font-weight: 600; }
dd small { display: block; font-size: .875rem; font-weight: 400; }
dt, dd small { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 600; }
.names th:first-child { text-align: left; }
th[scope=row], .names td { text-align: left; color: var(--text); font-weight: 400; min-width: 5rem; }
.names td:nth-child(n+2) { text-align: right; min-width: 0; white-space: nowrap; }
.matrix td, .matrix th { padding: .2rem .35rem; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; }
figure { margin: 0; break-inside: avoid; }
figure img { width: 100%; display: block; border: 1px solid var(--line); box-sizing: border-box; }
img.small { image-rendering: pixelated; }
figcaption { font-size: .875rem; line-height: 1.35; margin-top: .25rem; overflow-wrap: anywhere; }
figcaption b { color: var(--text); font-weight: 600; }
@media print {
  :root { --text: #000; --soft: #444; --line: #bbb; --back: #fff; color-scheme: light; }
  body { padding: 0; max-width: none; font-size: 11pt; print-color-adjust: exact; }
  .scroll { overflow: visible; }
  .mistakes { grid-template-columns: repeat(5, 1fr); }
  .matrix { font-size: 7pt; }
  tr, .matrix { break-inside: avoid; }
}"""


def write_page(result: Evaluation, path: Path) -> None:
    """Write ``result`` as one page, which needs no other file.

    Raises:
        BnewError: it cannot be written.
    """
    write_document(path, f"Evaluation of {Path(result.network).name}", parts(result))


def write_document(path: Path, title: str, body: Iterable[str]) -> None:
    """Write a page of these parts, in this style.

    Raises:
        BnewError: it cannot be written.
    """
    page = document(shown(title), STYLE, body)
    write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))


def parts(result: Evaluation) -> list[str]:
    """The page's parts: which images, the numbers, and :func:`details`."""
    unreadable = f"; {result.unreadable:,} more could not be read" if result.unreadable else ""
    return [
        f"<p>{shown(result.network)}: {result.images:,} images ({shown(result.data)}){unreadable}.</p>",
        numbers((name, value, f"95 %: {span}" if span else "") for name, value, span in result.totals()),
        *details(result),
    ]


def numbers(items: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers side by side: the name of each, its value and a remark."""
    cells = (
        f"<div><dt>{shown(name)}</dt><dd>{shown(value)}<small>{shown(remark) or '&nbsp;'}</small></dd></div>"
        for name, value, remark in items
    )
    return f"<dl>{''.join(cells)}</dl>"


def details(result: Evaluation) -> list[str]:
    """The worst mistakes as pictures, the classes, and what is confused."""
    return [*_mistakes(result), "<h2>Classes</h2>", _classes(result), *_confusion(result)]


def _mistakes(result: Evaluation) -> list[str]:
    figures = [
        _figure(mistake, mistake.picture, result.classes)
        for mistake in result.mistakes
        if mistake.picture is not None
    ]
    if not figures:
        return []
    return [
        "<h2>The worst mistakes</h2>",
        "<p>The images whose class got the lowest probability, as the network saw them.</p>",
        '<div class="mistakes">',
        *figures,
        "</div>",
    ]


def _figure(mistake: Mistake, picture: Picture, classes: tuple[str, ...]) -> str:
    label, predicted = (shown(classes[number]) for number in (mistake.label, mistake.predicted))
    small = ' class="small"' if max(picture.shape[:2]) < 96 else ""
    file = f"<br><small>{shown(mistake.file.name)}</small>" if mistake.file else ""
    return (
        f'<figure><img{small} src="{_as_png(picture)}" alt="{label}, taken for {predicted}"><figcaption>'
        f"<b>{label}</b> {_share(mistake.share)}<br>"
        f"taken for <b>{predicted}</b> {_share(mistake.predicted_share)}{file}</figcaption></figure>"
    )


def _share(share: float) -> str:
    return percent(share, 1).replace(" ", "&nbsp;")


def _as_png(picture: Picture) -> str:
    """An image (H, W, 1 or 3) as a link that holds it."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def table_of(kind: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML."""
    return _table(kind, head, map(_row, rows))


def _table(kind: str, head: Iterable[str], rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="{kind}">\n<thead>{_row(head, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _classes(result: Evaluation) -> str:
    rows = (
        _row((
            shown(each.name), f"{each.images:,}", percent(each.recall, 1),
            interval_of(each.interval, 1), percent(each.precision, 1),
        ))
        for each in result.per_class
    )  # fmt: skip
    return _table("names", ("class", "images", "recall", "95 % interval", "precision"), rows)


def _confusion(result: Evaluation) -> list[str]:
    """The matrix, its cells as dark as their share of the row; of many classes, only the frequent pairs."""
    if len(result.classes) > MOST_IN_MATRIX:
        pairs = result.confused(MOST_PAIRS)
        rows = (
            _row(
                (
                    f"{shown(pair.label)} → {shown(pair.predicted)}",
                    f"{pair.times:,}",
                    percent(pair.share, 1),
                )
            )
            for pair in pairs
        )
        head = ("class → taken for", "times", "of the class")
        return ["<h2>Confused most often</h2>", _table("names", head, rows)] if pairs else []

    def cell(count: int, of: int, right: bool) -> str:
        color = f"rgb(var(--{'right' if right else 'wrong'}) / {min(0.8, count / of):.2f})" if count else ""
        style = f' style="background: {color}"' if color else ""
        return f"<td{style}>{f'{count:,}' if count else '·'}</td>"

    rows = (
        f'<tr><th scope="row">{number} {shown(each.name)}</th>'
        + "".join(cell(count, each.images, number == got) for got, count in enumerate(row))
        + "</tr>"
        for number, (each, row) in enumerate(zip(result.per_class, result.confusion.tolist(), strict=True))
    )
    return [
        "<h2>Confusion matrix</h2>",
        "<p>How many images of each class (row) got each class (column).</p>",
        _table("matrix", ("", *(str(number) for number in range(len(result.classes)))), rows),
    ]
