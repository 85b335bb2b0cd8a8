"""The one training loop, with its optimizers, checkpoints, records and evaluation, on one process or several.

Where a run is computed (``machine``) and by what (``provenance``) stand beside it. May import methods,
models, data and results.
"""
