"""The one training loop with its optimizers, checkpoints, records and evaluation, in one process or several.

``machine`` describes where a run is computed, ``provenance`` by which code and versions. May import methods,
models, data and results.
"""
