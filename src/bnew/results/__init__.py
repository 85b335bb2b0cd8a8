"""The files of a run, and the results of many runs: groups, the table and the pictures.

No torch and no training. May import data's plain descriptions (preparation, fingerprint) and the recipe.
"""

from bnew.results.run import Run

__all__ = ["Run"]
