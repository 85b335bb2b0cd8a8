"""Makes the nodes of a packed file: a pointwise step goes into the node that computes its input.

There, the step costs no pass over memory of its own. If the input is also used elsewhere, it is kept, and the
step gets a node of its own (``identity``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from itertools import chain, count
from typing import Any

from bnew.packing.rows import Argument, Takes
from bnew.packing.values import Array, Shape, Value, reachable
from bnew.packing.vocabulary import OPERATORS, STEPS


class Graph:
    """Nodes and tensors of the packed file that computes ``outputs``, see docs/format.md.

    Attributes:
        nodes: the nodes, as objects of the file's JSON.
        tensors: by name; binary weights as uint32 words, all others real.
        inputs: (C, H, W) of an image of each input, by its name, which is also that of its value.
        outputs: the names of the outputs' values.
        real: why layers have real weights, by their nodes' names.

    Raises:
        BnewError: an output needs a value that cannot be packed.
    """

    def __init__(self, *outputs: Value) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.tensors: dict[str, Array] = {}
        self.real: dict[str, str] = {}
        self._tensor_names: dict[int, str] = {}
        self._made_by: dict[Value, int | None] = {}  # value → its node's number; None for an input
        self._bits: dict[Value, str] = {}
        values = reachable(*outputs)
        self.inputs: dict[str, Shape] = {v.argument: v.shape for v in values if v.op == "input"}
        self._users: defaultdict[Value, list[Value | None]] = defaultdict(list)
        for output in outputs:
            self._users[output].append(None)
        for value in values:
            for needed in value.inputs:
                self._users[needed].append(value)
        for value in values:
            self._emit(value)
        for output in outputs:
            if self._made_by[output] is None:
                self._made_by[output] = self._new_node("identity", output, output)
        self.outputs = [self._name(output) for output in outputs]
        self.nodes = [_in_order(node) for node in self.nodes]

    def _emit(self, value: Value) -> None:
        if value.op == "input":
            self._made_by[value] = None
        elif value.op == "bits":
            self._emit_bits(value)
        elif value.op in STEPS:
            if not self._is_absorbed(value):
                self._emit_step(value)
        else:
            self._emit_operator(value)

    # A sign absorbs the scale and the shift before it: bits = sign(scale · v + shift).

    def _is_absorbed(self, value: Value) -> bool:
        """Whether a scale or a shift is used by bits alone."""
        user = self._only_user(value)
        if user is not None and value.op == "scale" and user.op == "shift":
            user = self._only_user(user)
        return user is not None and user.op == "bits" and value.op in ("scale", "shift")

    def _only_user(self, value: Value) -> Value | None:
        users = self._users[value]
        return users[0] if len(users) == 1 else None

    def _emit_bits(self, value: Value) -> None:
        (source,) = value.inputs
        absorbed: dict[str, Value] = {}
        for kind in ("shift", "scale"):
            if source.op == kind and self._is_absorbed(source):
                absorbed[kind] = source
                (source,) = source.inputs
        number = self._made_by[source]
        if number is None or "sign" in self.nodes[number]:
            number = self._new_node("identity", next(iter(absorbed.values()), value), source)
        node = self.nodes[number]
        sign = {
            kind: self._tensor(absorbed[kind].numbers, absorbed[kind])
            for kind in ("scale", "shift")
            if kind in absorbed
        }
        self._bits[value] = _free(f"b{number}", self.inputs)
        node["sign"] = {**sign, "output": self._bits[value]}

    # Steps

    def _emit_step(self, value: Value) -> None:
        main = self._main(value)
        number = self._made_by[main]
        if number is None or not self._takes_step(main, value):
            number = self._new_node("identity", value, main)
        node = self.nodes[number]
        others = list(value.inputs)
        others.remove(main)
        node.setdefault("then", []).append({value.op: self._step(value, others)})
        self._made_by[value] = number

    def _main(self, value: Value) -> Value:
        """The input that the step is applied to. The other input, if there is one, is its argument."""
        whole = [operand for operand in value.inputs if operand.shape == value.shape]
        return next((operand for operand in whole if self._takes_step(operand, value)), whole[0])

    def _takes_step(self, main: Value, value: Value) -> bool:
        """Whether the step can go into the node of ``main``.

        Only the step must use ``main``, and the step's other inputs must be computed before.
        """
        number = self._made_by[main]
        before = (self._made_by[other] for other in value.inputs if other is not main)
        return (
            number is not None
            and self._only_user(main) is value
            and all(other is None or other < number for other in before)
        )

    def _step(self, value: Value, others: Sequence[Value]) -> Any:
        match STEPS[value.op].argument:
            case Argument.VALUE:
                return self._name(others[0])
            case Argument.NUMBERS:
                return self._tensor(value.numbers, value)
            case Argument.SETTING:
                return value.argument

    # Nodes

    def _emit_operator(self, value: Value) -> None:
        number = self._new_node(value.op, value, *value.inputs)
        node = self.nodes[number]
        for field, array in value.tensors.items():
            node[field] = self._tensor(array, value, field)
        node.update(value.fields)
        if "real" in value.notes:
            self.real[node["name"]] = value.notes["real"]
        assert OPERATORS[value.op].shape(node, [each.shape for each in value.inputs]) == value.shape
        self._made_by[value] = number

    def _new_node(self, op: str, at: Value, *inputs: Value) -> int:
        names = [self._name(value) for value in inputs]
        feeds: dict[str, Any] = {}
        match OPERATORS[op].takes:
            case Takes.LIST:
                feeds["inputs"] = names
            case Takes.REAL | Takes.BITS:
                (feeds["input"],) = names
        self.nodes.append({"op": op, "name": self._node_name(at), **feeds})
        return len(self.nodes) - 1

    def _node_name(self, at: Value) -> str:
        """The layer's place in the model; a second node there gets a number."""
        return _free(at.place.name, {node["name"] for node in self.nodes})

    def _name(self, value: Value) -> str:
        """The name of a value. Its node then gets a field ``output`` with this name."""
        if value.op == "bits":
            return self._bits[value]
        number = self._made_by[value]
        if number is None:
            return str(value.argument)
        self.nodes[number]["output"] = name = _free(f"v{number}", self.inputs)
        return name

    def _tensor(self, array: Array, user: Value, what: str = "") -> str:
        """The name of the tensor of these numbers, the same one wherever the model uses the same numbers."""
        if id(array) not in self._tensor_names:
            name = f"{user.place.name}.{what or user.op}"
            self._tensor_names[id(array)] = name = _free(name, self.tensors)
            self.tensors[name] = array
        return self._tensor_names[id(array)]


def _free(name: str, used: Container[str]) -> str:
    """The name, or the first of name#2, name#3 … that is not used yet."""
    return next(n for n in chain([name], (f"{name}#{i}" for i in count(2))) if n not in used)


def _in_order(node: dict[str, Any]) -> dict[str, Any]:
    """The fields in the order of docs/format.md: steps and results last."""
    last = {key: node[key] for key in ("then", "output", "sign") if key in node}
    return {key: value for key, value in node.items() if key not in last} | last
