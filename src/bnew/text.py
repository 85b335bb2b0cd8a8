"""Texts that people read: shares in per cent, and foreign text made safe to print, such as names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters (C0, DEL, C1), line separators, marks of writing direction, and the byte order mark: the
# same list as in engine/cpp/text.cpp. Persian, Hindi and emoji need the joiners U+200C and U+200D.
CONTROLS = (
    (0x0000, 0x001F),
    (0x007F, 0x009F),
    (0x061C, 0x061C),
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2066, 0x2069),
    (0xFEFF, 0xFEFF),
)
_SURROGATES = (0xD800, 0xDFFF)  # stand for the bytes of a file name that is not UTF-8
_UNSEEN = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in (*CONTROLS, _SURROGATES)) + "]")


def printable(text: object) -> str:
    """``str(text)`` on one line, with every character of :data:`CONTROLS` escaped, for example ``\\x1b``.

    The result cannot move a terminal's cursor, add a line to a log, or change the writing direction. File
    names that are not UTF-8 can be printed too. Text that is already escaped stays the same.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def percent(share: float | None, digits: int = 2) -> str:
    """A share as per cent, ``94.10 %``; – if there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def counted(count: int, singular: str, plural: str = "") -> str:
    """``1 layer``, ``2 layers``; ``plural`` where it is not the singular with an s."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def elided(names: Sequence[str]) -> str:
    """``a, b, c``, of more than six the first five and an ellipsis."""
    return ", ".join([*names[:5], "…"] if len(names) > 6 else names)
