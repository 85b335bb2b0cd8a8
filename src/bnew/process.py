"""This process: its cores, and whether others train with it."""

from __future__ import annotations

import os


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def is_first_process() -> bool:
    """Whether this is the process that was started, and not one that it started for another device."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def under_torchrun() -> bool:
    """Whether torchrun started this process, and others like it."""
    return "TORCHELASTIC_RUN_ID" in os.environ
