"""Shares that were counted, and how far they may be from those of all there is."""

from __future__ import annotations

import math
from statistics import NormalDist

from bnew.text import percent

_Z = NormalDist().inv_cdf(0.975)  # of a two-sided interval of 95 %


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was ``hits`` of ``count``, by Wilson's score (JASA 22, 1927).

    ``(p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`` with p = hits / n and z = 1.96. Unlike p ± z σ,
    it stays within 0 and 1, and has a width at p = 0 and p = 1. It is (0, 1) for no images.
    """
    if not count:
        return 0.0, 1.0
    share, extra = hits / count, _Z**2 / count
    middle = share + extra / 2
    width = _Z * math.sqrt((share * (1 - share) + extra / 4) / count)
    low, high = (middle - width) / (1 + extra), (middle + width) / (1 + extra)
    return (0.0 if hits == 0 else low), (1.0 if hits == count else high)  # where rounding would leave them


def interval_of(interval: tuple[float, float] | None, digits: int = 2) -> str:
    """An interval of shares as per cent; nothing if there is none."""
    return "" if interval is None else f"{100 * interval[0]:.{digits}f} to {percent(interval[1], digits)}"
