"""Text of others, made safe to show: names in files and of folders, and messages about them."""

from __future__ import annotations

import unicodedata

# Control characters, what turns the direction of writing or has no width, half of a pair, ends of lines.
_UNSEEN = frozenset(["Cc", "Cf", "Cs", "Zl", "Zp"])


def printable(text: object) -> str:
    """``str(text)`` in one line, with every character that a reader would not see escaped, as ``\\x1b``.

    So no text can move a terminal's cursor, add a line to a log, or be written backwards; and a file name
    that is no UTF-8 can be written. What is escaped already stays as it is.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in str(text)
    )
