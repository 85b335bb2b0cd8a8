"""Text of others, made safe to show: names in files and of folders, and messages about them."""

from __future__ import annotations

import re

# Controls (C0, DEL, C1), ends of lines, what turns the direction of writing, and the byte order mark: the
# list in engine/cpp/text.cpp. The joiners U+200C and U+200D stay: Persian, Hindi and emoji need them.
CONTROLS = (
    (0x0000, 0x001F),
    (0x007F, 0x009F),
    (0x061C, 0x061C),
    (0x200E, 0x200F),
    (0x2028, 0x202E),
    (0x2066, 0x2069),
    (0xFEFF, 0xFEFF),
)
_SURROGATES = (0xD800, 0xDFFF)  # half of a pair: bytes of a file name that is no UTF-8
_UNSEEN = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in (*CONTROLS, _SURROGATES)) + "]")


def printable(text: object) -> str:
    """``str(text)`` in one line, with every character of :data:`CONTROLS` escaped, as ``\\x1b``.

    So no text can move a terminal's cursor, add a line to a log, or be written backwards; and a file name
    that is no UTF-8 can be written. What is escaped already stays as it is.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
