"""What a run leaves behind in its folder, and how people look at it: groups of runs, the table, the pictures.

No torch and no training. May import data's plain descriptions (preparation, fingerprint) and the recipe.
"""

from bnew.results.run import Run

__all__ = ["Run"]
