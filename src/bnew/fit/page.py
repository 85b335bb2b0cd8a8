"""A fit as one HTML page."""

from __future__ import annotations

from bnew.display import duration
from bnew.fit.plan import NAMES, Plan
from bnew.fit.result import Fitted, size_of
from bnew.results.evaluation import Evaluation
from bnew.results.markup import shown
from bnew.results.mistakes import details, numbers, table_of, write_document
from bnew.results.run import Run
from bnew.shares import interval_of
from bnew.text import percent


def write_page(fitted: Fitted, found: Evaluation, plan: Plan, last: Run) -> None:
    """Write the page of ``fitted``, which needs no other file.

    Raises:
        BnewError: it cannot be written.
    """
    data, made = fitted.data, last.environment
    (engine, ours), *others = data["milliseconds"].items()
    beside = ", ".join(f"as floats in {name} {theirs:.3g} ms" for name, theirs in others)
    head = [
        ("test accuracy", percent(found.accuracy, 1), f"95 %: {interval_of(found.interval, 1)}"),
        ("packed file", size_of(data["file_bytes"]), f"as floats {size_of(data['float_bytes'])}"),
        (f"one image, {engine}", f"{ours:.3g} ms", beside),
        ("time for all", duration(data["seconds"]), ""),
    ]
    origin = (
        f"{made['started'][:10]}, bnew {made['bnew']}, commit {made['commit'] or '–'}, "
        f"torch {made['torch']}, on {made['cpu']}, {made['cores']} cores"
    )
    stages = [
        (
            NAMES[stage],
            recipe.method or "–",
            f"{data['epochs'][stage]}",
            percent(data["accuracies"][stage], 1),
        )
        for stage, recipe in plan.recipes.items()
    ]
    census = [
        (shown(row.name), f"{row.images:,}", f"{row.copies:,}", f"{row.unreadable:,}")
        for row in plan.census.classes
    ]
    body = [
        f"<p>{shown(fitted.file)}: a binary network, tested on {found.images:,} images.</p>",
        numbers(head),
        "<h2>How it was made</h2>",
        *(f"<p>{shown(line[0].upper() + line[1:])}.</p>" for line in data["chosen"]),
        table_of("names", ("stage", "method", "epochs", "test accuracy"), stages),
        f"<p>{shown(origin)}. Times for one image are medians of CPU time on one thread, in turns.</p>",
        *details(found),
        "<h2>The images</h2>",
        *(f"<p>{shown(line)}.</p>" for line in data["remarks"]),
        table_of("names", ("class", "images", "copies", "unreadable"), census),
    ]
    write_document(fitted.page, fitted.file.name, body)
