"""ATen operators that show, take or write the same numbers, and become no operator of their own."""

from __future__ import annotations

from collections.abc import Mapping

from bnew.packing import arithmetic, indexing, joining, reshaping
from bnew.packing.values import Lowering

PLACING: Mapping[str, Lowering] = {
    **dict.fromkeys(["_to_copy", "to", "type_as"], arithmetic.to),
    "getitem": reshaping.getitem,
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "flatten", "unflatten"], reshaping.reshape),
    **dict.fromkeys(["squeeze", "unsqueeze"], reshaping.reshape),
    **dict.fromkeys(["expand", "expand_as"], reshaping.expand),
    "permute": reshaping.permute,
    **dict.fromkeys(["transpose", "swapaxes"], reshaping.transpose),
    **dict.fromkeys(["t", "numpy_T"], reshaping.turned),
    "movedim": reshaping.move,
    "slice": reshaping.slice_,
    "narrow": reshaping.narrow,
    "select": reshaping.select,
    "flip": reshaping.flip,
    "repeat": reshaping.repeat,
    "repeat_interleave": reshaping.repeat_interleave,
    "roll": joining.roll,
    "copy": joining.copied,
    "slice_scatter": joining.slice_written,
    "select_scatter": joining.select_written,
    "unfold": reshaping.unfold,
    "im2col": reshaping.im2col,
    **dict.fromkeys(["split", "split_with_sizes", "unsafe_split"], reshaping.split),
    "diagonal": reshaping.diagonal,
    "index": indexing.index,
    "index_select": indexing.index_select,
    "gather": indexing.gather,
    "index_put": indexing.index_put,
    **dict.fromkeys(["index_fill", "index_copy", "scatter"], indexing.written),
    "chunk": reshaping.chunk,
    "unbind": reshaping.unbind,
    "pixel_shuffle": reshaping.pixel_shuffle,
    "pixel_unshuffle": reshaping.pixel_unshuffle,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], reshaping.channel_shuffle),
}
