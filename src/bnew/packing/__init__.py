"""A trained network becomes a packed file: binary weights as bits, the rest as real numbers, one graph.

``reading`` takes the graph from ``torch.export`` and ``lowering``, ``spatial`` and ``weights`` say what each
operator is to the file; ``held`` knows which values are exact, ``fusion`` makes the file's nodes. ``file``
reads it again without torch, which to import this package alone does not load either. Knows models, not runs:
may import layers and modules at the root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnew.lazy import fetched

if TYPE_CHECKING:
    from bnew.packing.file import PackedFile as PackedFile
    from bnew.packing.file import read_packed as read_packed
    from bnew.packing.packer import pack as pack

if not TYPE_CHECKING:  # who would take any name
    __getattr__ = fetched(
        __name__,
        {
            "pack": "bnew.packing.packer",
            "PackedFile": "bnew.packing.file",
            "read_packed": "bnew.packing.file",
        },
    )
