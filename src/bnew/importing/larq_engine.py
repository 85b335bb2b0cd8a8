"""Larq Compute Engine's interpreter, without its package, which needs all of TensorFlow for its converter."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np


def larq_interpreter(content: bytes, *, indirect: bool = True, xnnpack: bool = False) -> Any:
    """What runs a .tflite file on one thread, ``interpreter.predict([images])``; None if it is not installed.

    Args:
        content: of the file.
        indirect: the kernel of binary convolutions that knows groups and every border; else the other one.
        xnnpack: compute the real operators by XNNPACK.

    Raises:
        ImportError: it is not built for this Python.
    """
    found = util.find_spec("larq_compute_engine")
    if found is None or found.origin is None or np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        return None  # Larq Compute Engine 0.16 is built for NumPy 1, and gets no numbers from later arrays
    path = Path(found.origin).parent / "tflite" / "python" / "interpreter_wrapper_lite.so"
    spec = util.spec_from_file_location("interpreter_wrapper_lite", path)
    if spec is None or spec.loader is None or not path.is_file():
        return None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LiteInterpreter(content, 1, False, indirect, xnnpack)
