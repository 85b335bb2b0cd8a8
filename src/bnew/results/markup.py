"""What all HTML pages share; each is one file, for any screen."""

from __future__ import annotations

import html
from collections.abc import Iterable

from bnew.text import printable

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def document(title: str, style: str, body: Iterable[str]) -> str:
    """A page: its title, its style in CSS, and its parts, all as HTML."""
    return _PAGE.format(title=title, style=style, body="\n".join(body))


def shown(text: object) -> str:
    """``text`` as HTML."""
    return html.escape(printable(text))
