"""A run leaves PyTorch: it is packed, run by the engine, verified against the trained network, or exported.

May import every room except for the command line.
"""
