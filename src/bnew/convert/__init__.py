"""A user's network gets binary layers, and a summary says what is binary in a network and what it weighs.

:func:`binarize` reads the network's graph (``tracing``) to know what each layer's input is. ReLUs that are
called as functions (``functional``) become modules, as the methods that call them are rewritten
(``rewriting``). May import layers.
"""

from bnew.convert.binarize import binarize, plan
from bnew.convert.calibrate import recalibrate
from bnew.convert.planned import Plan, PlannedLayer
from bnew.convert.summary import Summary, summary

__all__ = ["Plan", "PlannedLayer", "Summary", "binarize", "plan", "recalibrate", "summary"]
