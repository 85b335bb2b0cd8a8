"""The published experiments: their recipes, the runs that they consist of, and how these are launched.

May import training and everything that training may import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnew.lazy import fetched

if TYPE_CHECKING:
    from bnew.experiments.plan import ABLATIONS as ABLATIONS
    from bnew.experiments.plan import STEPS as STEPS
    from bnew.experiments.plan import Stage as Stage
    from bnew.experiments.plan import plan as plan

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = fetched(
        __name__, dict.fromkeys(("ABLATIONS", "STEPS", "Stage", "plan"), "bnew.experiments.plan")
    )
