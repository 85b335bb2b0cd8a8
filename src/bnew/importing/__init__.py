"""Networks that others have trained become packed files, whatever framework they come from.

``graph`` reads an ONNX file and checks it, ``tflite_file`` one of TensorFlow Lite or Larq. ``network`` makes
a module of its graph, whose nodes are functions of PyTorch (``operators``, ``tflite_operators``), so that
packing lowers it like any other network. ``comparing`` and ``tflite_runtime`` hold each node against the
file's own runtime, and the packed file against the module. This room may import packing and deploy.
"""
