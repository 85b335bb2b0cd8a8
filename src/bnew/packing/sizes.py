"""Files for images of any size: which numbers of a graph follow from the image's size, and how.

docs/format.md, "Other sizes", defines the rules. :func:`generalised` finds them by comparing the graphs of
one network for several sizes, and :func:`settled` applies them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from bnew.errors import BnewError
from bnew.packing.values import Array, Shape
from bnew.packing.vocabulary import OPERATORS

Description: TypeAlias = dict[str, Any]  # the file's graph
Node: TypeAlias = Mapping[str, Any]

CEIL = "ceil"  # of a pool's node before it is written: whether its size is rounded up
_POOLS = ("max_pool", "avg_pool")
_RESIZES = ("resize_nearest", "resize_bilinear")
_WHOLE = ("shape", "sizes", "strides", "offset")  # fields of `rearrange`


def trial_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes at which a network is compared with itself at height × width; it must take the first."""
    return [(2 * height, 3 * width), (height + 1, width + 1), (height + 6, width + 3), (height + 32, width)]


def settled(node: Node, inputs: Sequence[Shape], shapes: Mapping[str, Shape]) -> Node:
    """The node with numbers in place of its rules, for inputs of these shapes, and values by name.

    Raises:
        ValueError: its rules are none of docs/format.md, or do not fit the shapes.
    """
    size: Any = node.get("size")
    if node["op"] == "rearrange":
        place = shapes[node["like"]] if "like" in node else inputs[0]
        numbers = {field: [_number(rule, place) for rule in node[field]] for field in _WHOLE[:3]}
        found = {**node, **numbers, "offset": _number(node["offset"], place)}
        return {name: of for name, of in found.items() if name != "like"}
    if node["op"] in _POOLS and isinstance(size, str):
        return {**node, "size": _windows(node, inputs[0], ("floor", "ceil").index(size) == 1)}
    if node["op"] in _RESIZES:
        _, height, width = inputs[0]
        if isinstance(size, str):
            size = list(shapes[size][1:])
        elif isinstance(size, Mapping):
            factors = size["times"]
            size = [math.floor(n * factor) for n, factor in zip((height, width), factors, strict=True)]
        scale = node["scale"]
        if scale == "size":
            scale = _ratios((height, width), size, node.get("corners", False))
        return {**node, "size": size, "scale": scale}
    return node


def generalised(
    graphs: Sequence[tuple[Description, Mapping[str, Array]]],
) -> Description:
    """The first graph with rules in place of the numbers that follow from the image's size.

    Args:
        graphs: a network's graph and its tensors, for images of several sizes.

    Raises:
        BnewError: a part of the network is not the same at every size, or follows no rule.
    """
    first, tensors = graphs[0]
    at = [" × ".join(map(str, graph["input"]["shape"][1:])) for graph, _ in graphs]
    for (graph, others), size in zip(graphs[1:], at[1:], strict=True):
        nothing: Node = {}
        for a, b in itertools.zip_longest(first["nodes"], graph["nodes"], fillvalue=nothing):
            if _fixed(a) != _fixed(b):
                parts = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
                raise _unfit(
                    f"'{a.get('name', b.get('name'))}' has another {parts[0]} for images of {size} than of "
                    f"{at[0]}"
                )
        for name, array in tensors.items():
            if not np.array_equal(array, others[name]):
                raise _unfit(f"the numbers of '{name}' are others for images of {size} than of {at[0]}")
        if [_result(each) for each in _results(first)] != [_result(each) for each in _results(graph)]:
            raise _unfit(f"it returns other results for images of {size} than of {at[0]}")
    known: list[dict[str, Shape]] = []
    for graph, _ in graphs:
        known.append({graph["input"]["name"]: tuple(graph["input"]["shape"])})
    nodes = []
    for versions in zip(*(graph["nodes"] for graph, _ in graphs), strict=True):
        names = versions[0].get("inputs", [versions[0]["input"]] if "input" in versions[0] else [])
        inputs = [[shapes[name] for name in names] for shapes in known]
        node = _rule(versions, inputs, known)
        for version, given, shapes in zip(versions, inputs, known, strict=True):
            if settled(node, given, shapes) != _without_rounding(version):
                raise _unfit(_differing(versions, at))
            shape = OPERATORS[version["op"]].shape(version, given)
            shapes |= {
                part["output"]: shape for part in (version, version.get("sign", {})) if "output" in part
            }
        nodes.append(node)
    results = {} if "output" in first else {"outputs": _free_outputs([graph for graph, _ in graphs], known)}
    return {**first, "input": {**first["input"], "any_size": True}, "nodes": nodes, **results}


def _unfit(why: str) -> BnewError:
    return BnewError(f"the network cannot be packed for images of any size: {why}; pack it for one size")


def _fixed(node: Node) -> dict[str, Any]:
    """What a node has besides the fields that may follow a rule."""
    return {name: of for name, of in node.items() if name not in (*_WHOLE, "size", "scale")}


def _without_rounding(node: Node) -> dict[str, Any]:
    return {name: of for name, of in node.items() if name != CEIL}


def _rule(
    versions: Sequence[Node], inputs: Sequence[Sequence[Shape]], known: Sequence[Mapping[str, Shape]]
) -> dict[str, Any]:
    """The node with rules that fit all its versions, or its first version if there are none."""
    node = _without_rounding(versions[0])
    if node["op"] in _POOLS and CEIL in versions[0]:
        return {**node, "size": "ceil" if versions[0][CEIL] else "floor"}
    rules: list[dict[str, Any]] = []
    if node["op"] == "rearrange":
        rules = [_rearranged(versions, [given[0] for given in inputs])]
        rules += [{**_rearranged(versions, [s[name] for s in known]), "like": name} for name in known[0]]
    elif node["op"] in _RESIZES:
        rules = _resizes(versions, inputs, known)
    for rule in rules:
        found = [settled({**node, **rule}, *at) for at in zip(inputs, known, strict=True)]
        if found == [*versions]:
            return {**node, **rule}
    return node


def _rearranged(versions: Sequence[Node], places: Sequence[Shape]) -> dict[str, Any]:
    return {field: _products([version[field] for version in versions], places) for field in _WHOLE}


def _resizes(
    versions: Sequence[Node], inputs: Sequence[Sequence[Shape]], known: Sequence[Mapping[str, Shape]]
) -> list[dict[str, Any]]:
    """Rules for a resize, the ones that promise least first."""
    rules: list[dict[str, Any]] = [{}, {"scale": "size"}]
    times = [after // before for after, before in zip(versions[0]["size"], inputs[0][0][1:], strict=True)]
    if all(times):  # other factors are rounded in too many ways
        rules.append({"size": {"times": times}, "scale": "size"})
    return rules + [{"size": name, "scale": "size"} for name in known[0]]


def _products(versions: Sequence[Any], places: Sequence[Shape]) -> Any:
    """A number, or numbers, as products with the input's height and width if they are not the same."""
    if isinstance(versions[0], list):
        if len({len(version) for version in versions}) > 1:
            return versions[0]
        return [_products(numbers, places) for numbers in zip(*versions, strict=True)]
    if all(number == versions[0] for number in versions):
        return versions[0]
    for i, j in ((1, 0), (0, 1), (1, 1)):
        factor, rest = divmod(versions[0], places[0][1] ** i * places[0][2] ** j)
        rule = [factor, i, j]
        if not rest and all(_number(rule, p) == n for p, n in zip(places, versions, strict=True)):
            return rule
    return versions[0]


def _number(rule: int | Sequence[int], place: Shape) -> int:
    if isinstance(rule, int):
        return rule
    factor, i, j = rule
    return factor * (place[1] if i else 1) * (place[2] if j else 1)


def _windows(node: Node, place: Shape, up: bool) -> list[int]:
    top, left, bottom, right = node["padding"]
    ends = ((top, bottom), (left, right))
    size = []
    for axis, (before, after) in enumerate(ends):
        kernel, stride = node["kernel"][axis], node["stride"][axis]
        room = place[1 + axis] + before + after - node.get("dilation", [1, 1])[axis] * (kernel - 1) - 1
        count = (room + (stride - 1 if up else 0)) // stride + 1
        size.append(count - (up and (count - 1) * stride >= place[1 + axis] + before))
    return size


def _ratios(before: Sequence[int], after: Sequence[int], corners: bool) -> list[float]:
    less = 1 if corners else 0
    return [
        0.0 if corners and b == 1 else float(np.float32(a - less) / np.float32(b - less))
        for a, b in zip(before, after, strict=True)
    ]


def _results(graph: Description) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = graph.get("outputs", [{"value": graph.get("output")}])
    return results


def _result(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["value"], entry.get("name"), len(entry.get("size", ()))


def _free_outputs(
    graphs: Sequence[Description], known: Sequence[Mapping[str, Shape]]
) -> list[dict[str, Any]]:
    """The results, without their sizes where these are those of their values at every image size."""
    entries = []
    for versions in zip(*(graph["outputs"] for graph in graphs), strict=True):
        entry = dict(versions[0])
        if any(version["size"] != entry["size"] for version in versions):
            shapes = [shapes[entry["value"]] for shapes in known]
            if any(list(s) != v["size"] for s, v in zip(shapes, versions, strict=True)):
                raise _unfit(f"the size of the result '{entry['value']}' follows no rule")
            del entry["size"]
        entries.append(entry)
    return entries


def _differing(versions: Sequence[Node], at: Sequence[str]) -> str:
    first = versions[0]
    for version, size in zip(versions, at, strict=True):
        for field in (*_WHOLE, "size", "scale"):
            if first.get(field) != version.get(field):
                return (
                    f"'{first['name']}' ({first['op']}) has {field} {first[field]} for images of {at[0]} and "
                    f"{version.get(field)} for {size}, by no rule that the file has"
                )
    return f"'{first['name']}' ({first['op']}) follows no rule"
