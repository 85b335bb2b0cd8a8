"""A trained network becomes a packed file: binary weights as bits, the rest as real numbers, one graph.

``vocabulary`` has a row for each operator and step of the file. ``reading`` takes the graph from
``torch.export`` and lowers it by these rows. ``held`` finds the numbers that values take exactly. ``fusion``
makes the file's nodes. ``file`` reads a packed file; like the vocabulary, it loads no torch. This room knows
models, not runs: it may import layers and modules at the root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnew.lazy import fetched

if TYPE_CHECKING:
    from bnew.packing.file import PackedFile as PackedFile
    from bnew.packing.file import read_packed as read_packed
    from bnew.packing.packer import pack as pack

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = fetched(
        __name__,
        {
            "pack": "bnew.packing.packer",
            "PackedFile": "bnew.packing.file",
            "read_packed": "bnew.packing.file",
        },
    )
