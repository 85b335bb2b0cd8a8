"""An operator of a network's exported graph while it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bnew.layers import BinaryLayer
from bnew.packing.held import held
from bnew.packing.layouts import Layout, standard
from bnew.packing.nodes import BATCH, shape_of, size_of
from bnew.packing.pieces import Held
from bnew.packing.values import Array, Numbers, Operand, Place, Refused, Shape, Value
from bnew.packing.views import memory, stored
from bnew.packing.vocabulary import OPERATORS


@dataclass(frozen=True)
class Shared:
    """What all operations of a graph share: the model's modules by name, and what is made once.

    ``dtype`` is the type of the images.
    """

    modules: Mapping[str, nn.Module]
    dtype: torch.dtype
    known: dict[Any, Any] = field(default_factory=dict)  # results of Operation.once
    indices: Iterator[int] = field(default_factory=count)


class Operation:
    """One node of the exported graph while it is read; makes values at its place and of its shape."""

    def __init__(self, shared: Shared, node: fx.Node) -> None:
        self.shared = shared
        self.node = node
        target = getattr(node.target, "overloadpacket", node.target)
        self.name = str(getattr(target, "__name__", target))  # without its overload
        self.size = size_of(node)
        self.rank = len(self.size)
        self.shape = shape_of(self.size)
        first = node.args[0] if node.args else None
        self.input_size = size_of(first) if isinstance(first, fx.Node) else ()
        self.input_rank = len(self.input_size)
        self.call: Any = None
        self.layout: Layout | None = None  # of the tensors, if the operation is inside of a stored value
        calls = list(node.meta.get("nn_module_stack", {}).values())
        path = calls[-1][0] if calls else ""
        if path not in shared.modules:  # some releases of PyTorch write a module's second call as path@1
            path = re.sub(r"@\d+(?=\.|$)", "", path)
        module = shared.modules.get(path)  # None if torch.export made the model
        binary = isinstance(module, BinaryLayer)
        self.binary_layer = type(module).__name__ if binary else None  # the class, if it is bnew's
        frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
        own = [f"{Path(file).name} line {line}" for file, line in frames if "torch" not in Path(file).parts]
        self.place = Place(path, self.name, own[-1] if own else "")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the node's result."""
        dtype: torch.dtype = self.node.meta["val"].dtype
        return dtype

    def dtype_of(self, node: Any) -> torch.dtype | None:
        """The type of an argument's tensor; None for a number."""
        return node.meta["val"].dtype if isinstance(node, fx.Node) else None

    @property
    def whole_numbers(self) -> tuple[int, int]:
        """The least and the greatest number that a result of whole numbers or bools can hold."""
        if self.dtype == torch.bool:
            return 0, 1
        return (limits := torch.iinfo(self.dtype)).min, limits.max

    def in_type(self, number: float) -> float:
        """A number as a result of bools or whole numbers holds it: 7.9 as 7; as it is for other results."""
        return number if self.dtype.is_floating_point else float(torch.tensor(number).to(self.dtype))

    # --------------------------------------------------------------------------------------- layouts

    images = BATCH

    def size_of(self, node: Any) -> tuple[int, ...]:
        """The size of an argument's tensor; () of a number."""
        return size_of(node) if isinstance(node, fx.Node) else ()

    def shape_of(self, size: Sequence[int]) -> Shape:
        """(C, H, W) of a tensor of ``size``, if it is a batch of images or vectors; else zeros."""
        return shape_of(size)

    def with_input(self, node: Any) -> Operation:
        """This operation with another argument as its first."""
        return self.with_input_size(self.size_of(node))

    def with_input_size(self, size: Sequence[int]) -> Operation:
        """This operation with a first argument of another size."""
        other = copy(self)
        other.input_size = tuple(size)
        other.input_rank = len(other.input_size)
        return other

    def with_sizes(self, size: Sequence[int]) -> Operation:
        """This operation with a first argument and a result of another size."""
        other = self.with_input_size(size)
        other.size, other.rank, other.shape = tuple(size), len(size), shape_of(size)
        return other

    def with_rank(self, rank: int) -> Operation:
        """This operation on an input that counts as one of another rank."""
        other = copy(self)
        other.input_rank = rank
        return other

    def beside(self, name: str, channels: int | None = None) -> Operation:
        """This operation as a part of its layer, with a result of other channels if they are given."""
        other = copy(self)
        other.place = self.place.beside(name)
        other.shape = self.shape if channels is None else (channels, *self.shape[1:])
        return other

    def derived(self, value: Value | None, change: Callable[[Any], Tensor]) -> Value:
        """A constant made of another one."""
        tensor = None if value is None else value.tensor
        key = ("derived", value, self.node)
        result: Value = self.once(key, lambda: self.make("evaluated", tensor=change(tensor)))
        return result

    def inside(self, source: Value, layout: Layout, channels: int | None = None) -> Operation:
        """This operation on ``source``, of which its tensors show ``layout``; by default on single numbers.

        ``channels`` are those of the result, if they are others than those of ``source``.
        """
        inner = copy(self)
        inner.shape = source.shape if channels is None else (channels, *source.shape[1:])
        inner.layout, inner.input_rank = layout, 4
        return inner

    def filled(self, number: float) -> Value:
        """A constant of one number."""
        make = partial(self.make, "evaluated", tensor=torch.tensor(number))
        result: Value = self.once(("filled", number), make)
        return result

    def stored_constant(self, value: Value, layout: Layout, shape: Shape) -> Value:
        """A constant that is broadcast to a tensor of ``layout``, as a stored value of ``shape``."""
        tensor = value.tensor
        assert tensor is not None

        def make() -> Value:
            array = memory(self, tensor.detach().float().cpu().numpy(), layout, shape)
            flat = array.reshape(shape[0], -1)
            same = flat[:, 0] if np.all(flat == flat[:, :1]) else array
            fields = {"shape": list(shape)}
            place = self.place.beside("constant")
            return self.make("constant", shape=shape, tensors={"weight": same}, fields=fields, place=place)

        result: Value = self.once(("stored", value, layout, shape), make)
        return result

    def make(
        self,
        op: str,
        *inputs: Value,
        shape: Shape | None = None,
        numbers: Numbers | None = None,
        **carried: Any,
    ) -> Value:
        """A new value. By default, its place and shape are those of this operation.

        ``carried`` are further attributes of :class:`Value`.

        Raises:
            Refused: ``numbers`` are neither one number nor one per channel.
        """
        shape = self.shape if shape is None else shape
        if numbers is not None and numbers.shape[-1] not in (1, shape[0]):
            raise Refused("its constant has another number of channels than its input")
        if numbers is not None:
            carried["numbers"] = numbers
        carried.setdefault("place", self.place)
        carried["notes"] = {"call": self.call, **carried.get("notes", {})}
        index = next(self.shared.indices)
        index = -index if op == "constant" else index  # first, so that others can use it in their steps
        return Value(op, index, shape=shape, inputs=inputs, **carried)

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The result of ``make``, which is called once for each key."""
        if key not in self.shared.known:
            self.shared.known[key] = make()
        return self.shared.known[key]

    def numbers(self, operand: Operand) -> Numbers | None:
        """A number or a constant as numbers per channel, (1,) or (C,).

        None for other values, and for a constant that differs between places.

        Raises:
            Refused: the constant differs between images.
        """
        if not isinstance(operand, Value):
            return np.array([float(operand)])
        if not operand.constant:
            return None
        tensor = operand.tensor
        assert tensor is not None
        key = ("numbers", operand, self.layout, self.shape, self.rank)
        numbers: Numbers | None = self.once(key, lambda: self._per_channel(tensor.detach().double().cpu()))
        return numbers

    def _per_channel(self, tensor: Tensor) -> Numbers | None:
        if tensor.numel() == 1:
            return np.asarray(tensor.reshape(-1).numpy())
        layout = self.layout or standard(self.shape, self.images, self.rank)
        channels = memory(self, np.asarray(tensor.numpy()), layout, self.shape).reshape(self.shape[0], -1)
        if not np.array_equal(channels, np.broadcast_to(channels[:, :1], channels.shape), equal_nan=True):
            return None
        numbers = np.ascontiguousarray(channels[:, 0])
        return numbers[:1] if np.all(numbers == numbers[0]) else numbers

    def array(self, value: Value) -> Numbers:
        """A constant's numbers as a flat array.

        Raises:
            Refused: the value is not constant.
        """
        tensor = value.tensor
        if tensor is None:
            raise Refused("its numbers depend on the input")
        flat = tensor.detach().reshape(-1)
        array: Numbers = self.once(("array", value), lambda: flat.double().cpu().numpy())
        return array

    def weights(self, value: Value) -> Array:
        """A layer's weights (C_out, C_in / groups, kh, kw); of a linear layer, kh and kw are 1.

        Raises:
            Refused: they are not constant.
        """
        tensor = value.tensor
        if tensor is None:
            raise Refused("its weights depend on the input")
        shape = (*tensor.shape, 1, 1)[:4]
        weights: Array = self.once(
            ("weights", value), lambda: tensor.detach().float().cpu().reshape(shape).numpy()
        )
        return weights

    def of(self, picture: Array) -> Array:
        """PyTorch's result with ``picture`` as the first argument and the node's own further arguments."""
        function: Any = self.node.target
        result: Tensor = function(torch.from_numpy(picture), *self.node.args[1:], **self.node.kwargs)
        return np.asarray(result.numpy())

    def on(self, number: float, arguments: Sequence[Any]) -> Tensor:
        """PyTorch's result with a tensor of one number as the first argument, and these further ones.

        Raises:
            Refused: an argument depends on the input.
        """

        def given(argument: Any) -> Any:
            if isinstance(argument, Value) and argument.tensor is None:
                raise Refused("it writes something else than constant numbers at constant places")
            return argument.tensor if isinstance(argument, Value) else argument

        function: Any = self.node.target
        first = torch.full(self.size, number, dtype=self.dtype)
        result: Tensor = function(first, *fx.node.map_aggregate(tuple(arguments), given))
        return result

    def held(self, value: Value) -> Held:
        """The numbers at which the value is held, see :mod:`bnew.packing.held`."""
        return held(value, self.once(("held",), dict))

    def real(self, value: Value) -> Value:
        """The value as real numbers that are stored; a choice becomes a sign, a scale and a shift.

        Raises:
            Refused: a view has no stored form as a batch of images or vectors, or a border is infinite.
        """
        if value.op == "view":
            return self.real(stored(self, value))
        if value.op == "padding":
            if not np.isfinite(value.fields.get("value", 0)):
                raise Refused("its border is of infinite numbers, which only a max pool may take")
            (before,) = value.inputs
            options: dict[str, Any] = {"shape": value.shape, "fields": value.fields, "place": value.place}
            border: Value = self.once(("pad", value), lambda: self.make("pad", self.real(before), **options))
            return border
        if value.constant:
            layout = self.layout or standard(self.shape, self.images, self.rank)
            return self.stored_constant(value, layout, self.shape)
        if value.op != "choice":
            return value

        def make() -> Value:
            high, low = value.numbers
            half, middle = (high - low) / 2, (high + low) / 2
            new = partial(self.make, shape=value.shape, place=value.place)
            result = new("sign", *value.inputs, argument={})
            result = new("scale", result, numbers=half) if np.any(half != 1) else result
            return new("shift", result, numbers=middle) if np.any(middle != 0) else result

        result: Value = self.once(("real", value), make)
        return result

    def bits(self, value: Value) -> tuple[Value, float] | None:
        """``(b, a)`` with value = a · b, where b is bits; None if the value has no such form."""
        factor = 1.0
        if value.op == "choice":
            high, low = value.numbers
            factor, source = float(high[0]), value.inputs[0]
            if factor == 0 or np.any(high != factor) or np.any(low != -factor):
                return None
        elif _is_sign(value):
            source = value.inputs[0] if value.op == "sign" else value
        else:
            return None
        make = partial(self.make, "bits", source, shape=source.shape, place=value.place)
        return self.once(("bits", source), make), factor


def _is_sign(value: Value) -> bool:
    """Whether every number of a real value is 1 or −1."""
    moves = value.op in OPERATORS and OPERATORS[value.op].moves
    return value.op == "sign" or (moves and all(map(_is_sign, value.inputs)))
