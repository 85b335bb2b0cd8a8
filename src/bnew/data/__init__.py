"""Images: where they are found, which are held out, and the batches that training sees of them.

``sources`` lists the data sets by name; images of a few megabytes are held in memory (``in_memory``), others
are read when they are needed (``streaming``). To import this package alone loads no torch. May import nothing
but modules at the root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnew.lazy import fetched

if TYPE_CHECKING:
    from bnew.data.batches import Batches as Batches
    from bnew.data.batches import Dataset as Dataset
    from bnew.data.sources import DATASETS as DATASETS
    from bnew.data.sources import list_datasets as list_datasets
    from bnew.data.sources import load as load

if not TYPE_CHECKING:  # who would take any name
    __getattr__ = fetched(
        __name__,
        {
            **dict.fromkeys(("Batches", "Dataset"), "bnew.data.batches"),
            **dict.fromkeys(("DATASETS", "list_datasets", "load"), "bnew.data.sources"),
        },
    )
