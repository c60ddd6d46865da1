"""Depthwise convolution with "same" padding."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu, eager

REVISION = {"depthwise convolution": 1}

WIDE = 5  # the kernel width from which torch's gradient of the weight is slow
WIDEST = 15  # the widest kernel that the CPU implementation supports


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Convolve each channel with a kernel of its own, of odd size, with zero padding that keeps the map's size.

    The CPU backend replaces the weight's gradient only, and only for wide kernels (``WIDE``).

    Args:
        x: Feature map, (B, C, H, W).
        weight: (C, 1, KH, KW).
        bias: (C,).
        backend: "torch" or "cpu". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    is_wanted = weight.requires_grad and torch.is_grad_enabled() and weight.shape[-1] >= WIDE
    if backends.choose("depthwise_conv", {"cpu": _cpu_obstacle(x, weight, bias)}, backend) == "cpu" and is_wanted:
        return _DepthwiseConv.apply(x, weight, bias)
    return _convolve(x, weight, bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=len(weight))


def _cpu_obstacle(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Return why the CPU kernel cannot or need not take these inputs; ``None`` if it can."""
    if weight.shape[3] > WIDEST or not all(size % 2 for size in weight.shape[2:]):
        return f"kernels must be odd and at most {WIDEST} wide, not {tuple(weight.shape[2:])}"
    if not (x.dtype == weight.dtype == torch.float32):
        return f"tensors are {x.dtype} and {weight.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast selects its own implementation"
    if unusual := eager.obstacle(x, weight, bias):
        return unusual
    channels = len(weight)
    if x.ndim != 4 or not x.numel():
        return "the input is not a batch"
    misfit = backends.misfit((x, (len(x), channels, *x.shape[2:])), (weight, (channels, 1, *weight.shape[2:])))
    return misfit or backends.misfit((bias, (channels,))) or cpu.obstacle(x, weight, bias)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors

        def reference(*wanted: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            padding = [size // 2 for size in weight.shape[2:]]
            return torch.ops.aten.convolution_backward(
                dy, x, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], len(weight), list(wanted)
            )

        if torch.is_grad_enabled() or eager.obstacle_to_gradient(dy, x, weight):
            # If gradients are recorded here, this gradient must itself be differentiable.
            return reference(ctx.needs_input_grad[0], True, ctx.has_bias)
        from frepro.ops.cpu.depthwise import depthwise_gradient

        dx = reference(True, False, False)[0] if ctx.needs_input_grad[0] else None
        dweight, dbias = depthwise_gradient(x, dy, weight.shape[2:])
        return dx, dweight, dbias if ctx.has_bias else None
