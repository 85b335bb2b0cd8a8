"""A fit as one HTML page."""

from __future__ import annotations

from bnew.files import write_atomically
from bnew.fit.plan import Plan
from bnew.fit.result import Fitted
from bnew.results.evaluation import Evaluation
from bnew.results.mistakes import PAGE, parts, shown, table_of
from bnew.results.run import Run


def write_page(fitted: Fitted, found: Evaluation, plan: Plan, last: Run) -> None:
    """Write the page of ``fitted``, which needs no other file.

    Raises:
        BnewError: it cannot be written.
    """
    rows = [(shown(name), shown(value)) for name, value in fitted.totals()]
    census = [
        (shown(row.name), f"{row.images:,}", f"{row.copies:,}", f"{row.unreadable:,}")
        for row in plan.census.classes
    ]
    body = [
        *parts(found),
        "<h2>Size and speed</h2>",
        table_of("names", ("", ""), rows),
        "<h2>What was chosen</h2>",
        *(f"<p>{shown(line)}</p>" for line in plan.why),
        "<h2>The images</h2>",
        *(f"<p>{shown(line)}</p>" for line in fitted.data["remarks"]),
        table_of("names", ("class", "images", "copies", "unreadable"), census),
    ]
    page = PAGE.format(title=shown(f"{fitted.file.name}"), body="\n".join(body))
    write_atomically(fitted.page, lambda file: file.write_text(page, encoding="utf-8"))
