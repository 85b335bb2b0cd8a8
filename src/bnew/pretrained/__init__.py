"""Networks that bnew comes with, trained: ``cards`` says what each is, and has its weights.

The packed files are in the engine's package, ``bnew_engine.load("digits")``.
"""
