"""A run leaves PyTorch: packed, run by the engine, verified against the network that was trained, or as ONNX.

May import all but the command line.
"""
