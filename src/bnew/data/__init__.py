"""Images: where they come from, which are held out, and the batches for training.

``sources`` lists the data sets by name. Small images are held in memory (``in_memory``); others are read when
they are needed (``streaming``). Importing this package loads no torch. It may import only root modules.
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

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = fetched(
        __name__,
        {
            **dict.fromkeys(("Batches", "Dataset"), "bnew.data.batches"),
            **dict.fromkeys(("DATASETS", "list_datasets", "load"), "bnew.data.sources"),
        },
    )
