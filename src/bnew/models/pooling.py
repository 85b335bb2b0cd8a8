"""Max pooling that torch.compile compiles well on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _pool(x: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.max_pool2d_with_indices(x, kernel_size, stride, padding)  # type: ignore[no-any-return]


def _pool_backward(
    grad: Tensor, x: Tensor, indices: Tensor, kernel_size: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    return backward(grad, x, kernel_size, stride, padding, [1, 1], False, indices)  # type: ignore[no-any-return]


_max_pool2d = torch.library.custom_op("bnew::max_pool2d", _pool, mutates_args=())
_max_pool2d_backward = torch.library.custom_op("bnew::max_pool2d_backward", _pool_backward, mutates_args=())
# PyTorch's own operators also compute the shapes of their results.
_max_pool2d.register_fake(_pool)
_max_pool2d_backward.register_fake(_pool_backward)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.sizes = inputs
    ctx.save_for_backward(x, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _max_pool2d_backward(grad, *ctx.saved_tensors, *ctx.sizes), None, None, None


_max_pool2d.register_autograd(_backward, setup_context=_keep_for_backward)


class MaxPool2d(nn.MaxPool2d):
    """``torch.nn.MaxPool2d``, which torch.compile does not compile on a CPU.

    The backward kernel that torch.compile generates takes several times as long as PyTorch's own. Pools with
    dilation, ceil_mode, return_indices or different sizes in the two directions are compiled as usual.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H_out, W_out)."""
        given = (self.kernel_size, self.stride, self.padding)
        sizes = [[size, size] for size in given if isinstance(size, int)]
        plain = len(sizes) == 3 and self.dilation == 1 and not (self.ceil_mode or self.return_indices)
        if not (plain and torch.compiler.is_dynamo_compiling() and input.device.type == "cpu"):
            return super().forward(input)  # type: ignore[no-any-return]
        return _max_pool2d(input, *sizes)[0]  # type: ignore[no-any-return]
