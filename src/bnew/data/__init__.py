"""Images: where they come from, which are held out, and the batches for training.

``sources`` loads the data sets by name; images of a few megabytes are held in memory (``in_memory``), others
are read when they are needed (``streaming``). To import this package alone loads no torch. May import nothing
but modules at the root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnew.lazy import fetched

if TYPE_CHECKING:
    from bnew.data.batches import Batches as Batches
    from bnew.data.batches import Dataset as Dataset
    from bnew.data.in_memory import Split as Split
    from bnew.data.sources import Parts as Parts
    from bnew.data.sources import list_datasets as list_datasets
    from bnew.data.sources import load as load
    from bnew.registry import DATASETS as DATASETS

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = fetched(
        __name__,
        {
            **dict.fromkeys(("Batches", "Dataset"), "bnew.data.batches"),
            **dict.fromkeys(("Parts", "list_datasets", "load"), "bnew.data.sources"),
            "Split": "bnew.data.in_memory",
            "DATASETS": "bnew.registry",
        },
    )
