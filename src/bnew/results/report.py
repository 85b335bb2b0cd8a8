"""The report on runs: its table, and pages with table and pictures; without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from bnew.errors import BnewError
from bnew.files import write_atomically
from bnew.results.comparison import Comparison, escape_markdown, panel
from bnew.results.groups import Group, find_runs, unfinished_runs
from bnew.results.page import page
from bnew.results.pictures import Picture, pictures
from bnew.results.run import Run

logger = logging.getLogger("bnew")

TITLE = "Binarized networks: results"


def table(runs: Iterable[Run]) -> str:
    """The result table in Markdown: a row per group of runs, then, in italics, published references."""
    return Comparison(runs).markdown()


def compared(roots: Iterable[str | Path]) -> Comparison:
    """The table of every finished run at or below ``roots``; prints as a table that fits the terminal.

    Raises:
        BnewError: see :func:`bnew.results.groups.find_runs`.
    """
    return Comparison(find_runs(roots))


def _notes(comparison: Comparison, unfinished: Sequence[Run]) -> list[str]:
    notes = list(comparison.notes)
    if unfinished:
        names = ", ".join(f"{'/'.join(run.path.parts[-3:])} ({run.progress()})" for run in unfinished)
        notes.append(f"Unfinished and left out ({len(unfinished)}): {names}.")
    return notes


def _sections(groups: Sequence[Group]) -> list[tuple[str, list[Picture]]]:
    """A heading and pictures for each data set, model and variant."""
    panels: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        panels.setdefault(panel(group), []).append(group)
    return [(" · ".join(filter(None, names)), pictures(members)) for names, members in panels.items()]


def _markdown(
    comparison: Comparison, notes: Sequence[str], sections: Sequence[tuple[str, list[Picture]]]
) -> str:
    parts = [
        f"# {TITLE}",
        comparison.markdown(),
        "\n".join(f"- {escape_markdown(note)}" for note in notes),
    ]
    for number, (heading, shown) in enumerate(sections, 1):
        parts.append(f"## {escape_markdown(heading)}")
        for picture in shown:
            caption = escape_markdown(picture.caption)
            parts.append(f"![{picture.kind}]({_file_name(number, picture)})\n\n{caption}")
    return "\n\n".join(parts) + "\n"


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
    comparison, unfinished = compared(roots), unfinished_runs(roots)
    for run in unfinished:
        logger.warning("%s is unfinished (%s) and left out of the report", run.path, run.progress())
    notes, sections = _notes(comparison, unfinished), _sections(comparison.groups)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BnewError(f"could not make the folder {out}: {error}; choose another") from None
    for number, (_, shown) in enumerate(sections, 1):
        for picture in shown:
            _write(out / _file_name(number, picture), picture.svg)
    return [
        _write(out / "report.md", _markdown(comparison, notes, sections)),
        _write(out / "report.html", page(TITLE, comparison, notes, sections)),
    ]


def _write(path: Path, text: str) -> Path:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path
