"""The published experiments: their recipes, which runs they are made of, and how these are started.

May import training and all that it may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnew.lazy import fetched

if TYPE_CHECKING:
    from bnew.experiments.plan import ABLATIONS as ABLATIONS
    from bnew.experiments.plan import STEPS as STEPS
    from bnew.experiments.plan import Stage as Stage
    from bnew.experiments.plan import plan as plan

if not TYPE_CHECKING:  # who would take any name
    __getattr__ = fetched(
        __name__, dict.fromkeys(("ABLATIONS", "STEPS", "Stage", "plan"), "bnew.experiments.plan")
    )
