"""The published experiments: their recipes, which runs they are made of, and how these are started.

May import training and all that it may.
"""

from __future__ import annotations

from bnew.lazy import fetched

__getattr__ = fetched(
    __name__, dict.fromkeys(("ABLATIONS", "STEPS", "Stage", "plan"), "bnew.experiments.plan")
)
