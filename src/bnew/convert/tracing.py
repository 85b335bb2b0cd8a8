"""What the graph of a network says about its layers, as :func:`bnew.binarize` needs to know it."""

from __future__ import annotations

import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from bnew.convert.functional import ReluCall, calling_frame, find_call, is_in_place, lower_bound, position
from bnew.layers import BinaryLayer, ChannelScale, RPReLU, RSign

_log = logging.getLogger("bnew")

# Operators by name, whether module, function or method: MaxPool2d and F.max_pool2d are both maxpool2d.
_NEVER_NEGATIVE = re.compile(r"relu6?|(hard)?sigmoid|softmax|softplus")
_KEEPS_CHANNELS = re.compile(
    r"(adaptive)?(max|avg)pool[123]d|(feature)?dropout[123]?d?|identity|contiguous|clone"
)
_CONVERTS = re.compile(r"to|type|typeas|half|bfloat16|float|double|cuda|cpu")
_KEEPS_RANGE = re.compile(
    _KEEPS_CHANNELS.pattern
    + "|"
    + _CONVERTS.pattern
    + r"|flatten|view|reshape|permute|transpose|squeeze|unsqueeze|chunk|split|getitem|mean"
    + r"|interpolate|upsample|clamp(min|max)?|clip|hardtanh"
)
_ADD = re.compile(r"i?add")
_AVERAGES = re.compile(r"(adaptive)?avgpool[123]d|mean")
_NORM = re.compile(r"(sync|lazy)?(batch|layer|group|instance|rms)norm[123]?d?")
_COMBINES = re.compile(r"i?(add|mul)")
_CONCATENATES = re.compile(r"cat|concat")
_SHORTCUT_NAME = re.compile(r"downsample|shortcut|skip")


Relu: TypeAlias = nn.Module | ReluCall
Floor: TypeAlias = Relu | str


@dataclass(frozen=True)
class Reading:
    """What was read about the layers of a network.

    Attributes:
        first: layers that see the network's input and no other layer's output.
        last: layers whose output no other layer sees.
        shortcut: 1×1 layers whose output is added to that of a longer path from the same place.
        floors: for a layer whose input is never negative, what makes it so: ReLU modules and calls of ReLUs
            that a PReLU can stand in for, and of all else, a clause that says what it is.
        widths: for such a ReLU, the channels of all its uses; None among them where they are unknown.
        likes: for such a ReLU, a parameter of the nearest module, of whose dtype and device its input is.
        averaged: of the layers with ``floors``, those that see averages of what is never negative, which
            rarely change their sign even behind a PReLU.
        unnormed: layers whose output reaches a sum, another layer or the network's output before a norm.
        taken: layers whose weight the network takes for a function of its own, which would not binarize the
            input.
        fixed: layers that compute from constants alone, never from the network's input.
    """

    first: set[nn.Module]
    last: set[nn.Module]
    shortcut: set[nn.Module]
    floors: dict[nn.Module, set[Floor]]
    widths: dict[Relu, set[int | None]]
    likes: dict[Relu, nn.Parameter]
    averaged: set[nn.Module]
    unnormed: set[nn.Module]
    taken: set[nn.Module]
    fixed: set[nn.Module]


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a convolution (any) or a linear layer."""
    return isinstance(module, _ConvNd | nn.Linear)


def is_relu(module: nn.Module) -> bool:
    """Whether the module is a ReLU that a PReLU can stand in for."""
    return type(module) in (nn.ReLU, nn.ReLU6) or (type(module) is nn.Hardtanh and module.min_val == 0)


def read(model: nn.Module) -> Reading:
    """Read the network by tracing it; by its names, with a warning, if it cannot be traced."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the model's own forward raises on stand-ins for tensors
        _log.warning(
            "%s cannot be traced (%s): first, last and shortcut layers are found by order and by name, "
            "every ReLU module counts as feeding a binary layer, and ReLUs called as functions are not seen",
            type(model).__name__,
            error,
        )
        return _by_names(model)
    return _GraphReader(model, graph).reading()


# What _Tracer notes about a node.
_CALLER, _RELU = "bnew caller", "bnew relu"


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own and the layers of bnew."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, BinaryLayer | RSign | RPReLU | ChannelScale)
        return ours or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Notes where in the source every call stands, and for those of ReLUs what it is there."""
        node = super().create_node(kind, *args, **kwargs)
        frame = calling_frame(sys._getframe(1))
        if kind.startswith("call_") and frame is not None:
            scopes = [name for name, _ in self.module_stack.values()]
            owner = "".join(scopes[:-1][-1:] if kind == "call_module" else scopes[-1:])
            node.meta[_CALLER] = (owner, frame.f_code, position(frame))
            if kind != "call_module" and lower_bound(node) == 0:
                node.meta[_RELU] = find_call(frame, node)
        return node


def _by_names(model: nn.Module) -> Reading:
    layers = {module: name for name, module in model.named_modules() if is_layer(module)}
    relus: set[Floor] = {module for module in model.modules() if is_relu(module)}
    order = list(layers)
    return Reading(
        first=set(order[:1]),
        last=set(order[-1:]),
        shortcut={m for m, name in layers.items() if _is_1x1(m) and _SHORTCUT_NAME.search(name)},
        floors=dict.fromkeys(order, relus) if relus else {},
        widths={},
        likes=_likes_by_order(model),
        averaged=set(),
        unnormed=set(order),
        taken=set(),
        fixed=set(),
    )


def _likes_by_order(model: nn.Module) -> dict[Relu, nn.Parameter]:
    """For each ReLU module, a parameter of the module registered next before it, or else behind it."""
    modules = list(model.modules())
    likes = [_like(module) for module in modules]
    found: dict[Relu, nn.Parameter] = {}
    for i, module in enumerate(modules):
        near = [like for like in likes[:i][::-1] + likes[i:] if like is not None]
        if is_relu(module) and near:
            found[module] = near[0]
    return found


def _like(module: nn.Module | None) -> nn.Parameter | None:
    """A real parameter of the module itself, if it is of the dtype of what comes in and out.

    Norms keep float32 for themselves in networks of half precision.
    """
    if module is None or _NORM.fullmatch(type(module).__name__.lower()):
        return None
    own = module.parameters(recurse=False)
    return next((p for p in own if p.is_floating_point()), None)


def _is_1x1(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or set(getattr(layer, "kernel_size", ())) == {1}


class _GraphReader:
    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        self.nodes = list(graph.nodes)
        self.module = {n: modules[str(n.target)] for n in self.nodes if n.op == "call_module"}
        self.layers = {n: m for n, m in self.module.items() if is_layer(m)}
        owners = [str(n.target).rpartition(".") for n in self.nodes if n.op == "get_attr" and n.users]
        taken = [modules[name] for name, _, of in owners if name and of == "weight"]
        self.taken = {module for module in taken if is_layer(module)}
        self.relus: dict[fx.Node, Floor] = {n: m for n, m in self.module.items() if is_relu(m)}
        self.relus |= self._relu_calls()
        self._follow_changes_in_place()
        self._floor = cache(self._find_floor)

    def _relu_calls(self) -> dict[fx.Node, Floor]:
        """The nodes of ReLUs that are called as functions, with what they are in the source."""
        callees = defaultdict[Any, set[str]](set)
        for node in self.nodes:
            callees[node.meta.get(_CALLER)].add(str(node.target))
        relus: dict[fx.Node, Floor] = {n: n.meta[_RELU] for n in self.nodes if _RELU in n.meta}
        for node, relu in relus.items():
            if len(callees[node.meta[_CALLER]]) > 1 and isinstance(relu, ReluCall):
                relus[node] = f"{relu.kind} is called where other functions are called too"
        return relus

    def _follow_changes_in_place(self) -> None:
        """What is computed from a value after it was changed in place is computed from the change's node."""
        order = {node: i for i, node in enumerate(self.nodes)}
        for node in self.nodes:
            module = self.module.get(node)
            in_place = is_in_place(node) if module is None else getattr(module, "inplace", False) is True
            if not (node.op.startswith("call_") and in_place and node.all_input_nodes):
                continue
            changed = node.all_input_nodes[0]
            later = [user for user in changed.users if order[user] > order[node]]
            relu = self.relus.get(node)
            assigned = isinstance(relu, ReluCall) and relu.place.rebinds
            if later and relu is not None and not assigned:
                name = relu.kind if isinstance(relu, ReluCall) else self._operator(node)
                self.relus[node] = f"{name} changes in place what is used behind it"
            for user in later:
                user.replace_input_with(changed, node)

    def reading(self) -> Reading:
        behind = self._reach(self.layers, forward=True)
        before = self._reach(self.layers, forward=False)
        given = self._reach([n for n in self.nodes if n.op == "placeholder"], forward=True)
        floors: defaultdict[nn.Module, set[Floor]] = defaultdict(set)
        for node, layer in self.layers.items():
            floors[layer] |= self._floor(node.all_input_nodes[0])
        widths: defaultdict[Relu, set[int | None]] = defaultdict(set)
        likes: dict[Relu, nn.Parameter] = {}
        for node, relu in self.relus.items():
            if not isinstance(relu, str):
                widths[relu].add(self._width(node.all_input_nodes[0]))
                near = self._nearest(node, forward=False) + self._nearest(node, forward=True)
                for like in near[:1]:
                    likes.setdefault(relu, like)
        return Reading(
            first={layer for node, layer in self.layers.items() if node not in behind},
            last={layer for node, layer in self.layers.items() if node not in before},
            shortcut={layer for node, layer in self.layers.items() if self._is_shortcut(node)},
            floors=dict(floors),
            widths=dict(widths),
            likes=likes,
            averaged={
                m for n, m in self.layers.items() if floors[m] and self._is_average(n.all_input_nodes[0])
            },
            unnormed={layer for node, layer in self.layers.items() if not self._is_normed(node)},
            taken=self.taken,
            fixed=set(self.layers.values()) - {m for n, m in self.layers.items() if n in given},
        )

    def _reach(self, start: Iterable[fx.Node], forward: bool, stop: Iterable[fx.Node] = ()) -> set[fx.Node]:
        """The nodes that follow (or precede) those of ``start``, none behind a node of ``stop``."""
        stop, reached = set(stop), set[fx.Node]()
        todo = [node for node in start if node not in stop]
        while todo:
            node = todo.pop()
            near = set(node.users if forward else node.all_input_nodes) - reached
            reached |= near
            todo += near - stop
        return reached

    def _operator(self, node: fx.Node) -> str:
        """The name of what is called; nothing for the network's input and for its tensors."""
        if not node.op.startswith("call_"):
            return ""
        target: Any = type(self.module[node]) if node in self.module else node.target
        return str(getattr(target, "__name__", target)).lower().replace("_", "")

    def _find_floor(self, node: fx.Node) -> frozenset[Floor]:
        """What keeps every value of the node from being negative; empty if nothing does."""
        if node in self.relus:
            return frozenset([self.relus[node]])
        name = self._operator(node)
        if _NEVER_NEGATIVE.fullmatch(name) or (lower_bound(node) or 0) > 0:
            return frozenset([f"{name} is called before it"])
        inputs = [self._floor(i) for i in node.all_input_nodes]
        every = frozenset[Floor]().union(*inputs)
        if _CONCATENATES.fullmatch(name):  # one part is enough for some channels to be never negative
            return every
        operands = [part for part in node.args if isinstance(part, fx.Node)]  # y + y has one input
        if _COMBINES.fullmatch(name) and len(operands) == 2 and all(inputs):
            # One part that may be negative frees a sum or a product: the replaceable parts are enough.
            return frozenset(part for part in every if not isinstance(part, str)) or every
        if inputs and _KEEPS_RANGE.fullmatch(name):
            return inputs[0]
        return frozenset()

    def _is_average(self, node: fx.Node) -> bool:
        """Whether the values of the node are averages, as far as they keep the range of others."""
        name = self._operator(node)
        if _AVERAGES.fullmatch(name):
            return True
        return bool(_KEEPS_RANGE.fullmatch(name)) and self._is_average(node.all_input_nodes[0])

    def _is_normed(self, node: fx.Node) -> bool:
        """Whether every value that the node becomes passes a norm before it meets another value or layer."""
        return bool(node.users) and all(
            _NORM.fullmatch(self._operator(user))
            or (
                user not in self.layers
                and user.op.startswith("call_")
                and len(user.all_input_nodes) == 1
                and self._is_normed(user)
            )
            for user in node.users
        )

    def _width(self, node: fx.Node) -> int | None:
        """Channels of an (N, C, ...) value; None if the nearest layer before it does not tell."""
        module = self.module.get(node)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            return module.out_channels
        if isinstance(module, _BatchNorm):
            return module.num_features
        name = self._operator(node)
        if node.all_input_nodes and (_KEEPS_CHANNELS.fullmatch(name) or _ADD.fullmatch(name)):
            return self._width(node.all_input_nodes[0])
        return None

    def _nearest(self, node: fx.Node, forward: bool) -> list[nn.Parameter]:
        """A parameter of the nearest module behind (or before) the node; none past a change of dtype."""
        seen, todo = {node}, [node]
        for reached in todo:  # grows meanwhile: the nearest come first
            for near in reached.users if forward else reached.all_input_nodes:
                like = _like(self.module.get(near))
                if like is not None:
                    return [like]
                if near not in seen and not _CONVERTS.fullmatch(self._operator(near)):
                    seen.add(near)
                    todo.append(near)
        return []

    def _is_shortcut(self, node: fx.Node) -> bool:
        if not _is_1x1(self.layers[node]):
            return False
        # Where the shortcut may start: its input, or the same value before a pool or an activation.
        start = [node.all_input_nodes[0]]
        while start[-1] not in self.layers and len(start[-1].all_input_nodes) == 1:
            start += start[-1].all_input_nodes
        others = self._reach(start, forward=True, stop=[node])
        sums = {n for n in self.nodes if _ADD.fullmatch(self._operator(n))}
        own = {node} | self._reach([node], forward=True, stop=(self.layers.keys() - {node}) | sums)
        for merge in own & sums:
            for operand in set(merge.all_input_nodes) - own:
                path = others & ({operand} | self._reach([operand], forward=False, stop=start))
                layers = [self.layers[n] for n in path if n in self.layers]
                if len(layers) > 1 or any(not _is_1x1(layer) for layer in layers):
                    return True
        return False
