"""The depthwise convolution that keeps a map's size."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu, eager

REVISION = {"depthwise convolution": 1}

WIDE = 5  # columns from which on torch's gradient of the weight is slow
WIDEST = 15  # of the CPU kernel


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """One odd kernel for each channel, with zeros around the map.

    The CPU kernel is for the weight's gradient alone, and only where it is wide.

    Args:
        x: Feature map, (B, C, H, W).
        weight: (C, 1, KH, KW).
        bias: (C,).
        backend: "torch" or "cpu"; the fastest that can take the inputs unless given.

    Returns:
        (B, C, H, W).
    """
    is_wanted = weight.requires_grad and torch.is_grad_enabled() and weight.shape[-1] >= WIDE
    if backends.choose("depthwise_conv", {"cpu": _cpu_obstacle(x, weight, bias)}, backend) == "cpu" and is_wanted:
        return _DepthwiseConv.apply(x, weight, bias)
    return _convolve(x, weight, bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=len(weight))


def _cpu_obstacle(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the CPU kernel cannot take these inputs, or need not; none where it can."""
    if weight.shape[3] > WIDEST or not all(size % 2 for size in weight.shape[2:]):
        return f"kernels are odd and at most {WIDEST} wide, not {tuple(weight.shape[2:])}"
    if not (x.dtype == weight.dtype == torch.float32):
        return f"tensors are {x.dtype} and {weight.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses for itself"
    if unusual := eager.obstacle(x, weight, bias):
        return unusual
    channels = len(weight)
    if x.ndim != 4 or not x.numel():
        return "there is no batch"
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

        def torchs(*wanted: bool) -> tuple[Tensor | None, ...]:
            padding = [size // 2 for size in weight.shape[2:]]
            return torch.ops.aten.convolution_backward(
                dy, x, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], len(weight), list(wanted)
            )

        if torch.is_grad_enabled() or eager.obstacle_to_gradient(dy, x, weight):
            # Where gradients are recorded, the derivative of this one is wanted.
            return torchs(ctx.needs_input_grad[0], True, ctx.has_bias)
        from frepro.ops.cpu.depthwise import depthwise_gradient

        dx = torchs(True, False, False)[0] if ctx.needs_input_grad[0] else None
        dweight, dbias = depthwise_gradient(x, dy, weight.shape[2:])
        return dx, dweight, dbias if ctx.has_bias else None
