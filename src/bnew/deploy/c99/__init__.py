"""A packed file becomes one C99 file for a microcontroller.

:func:`bnew.deploy.c99.export.export_c` does it: stages are what runs, memory is planned for them, and both
are written out together with the kernels of ``kernels.c``, which are C by hand. In fixed point, the stages'
constants become whole numbers before; ranges are measured on images by :mod:`interpreting`, the kernels' twin
in NumPy.
"""
