"""The short causal convolution before a selective scan."""

import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu

REVISION = {"causal convolution": 1}

MAX_WIDTH = 64  # the widest convolution that the CPU kernel computes


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False, backend: str | None = None
) -> Tensor:
    """Apply a causal depthwise convolution, then SiLU: y_t = silu(bias + sum_j w_j x_(t - K + 1 + j)).

    Args:
        x: Sequence, (B, C, L).
        weight: (C, K).
        bias: (C,).
        reverse: Use future steps instead of past ones: reverse the sequence, convolve, and reverse the result.
        backend: "torch" or "cpu". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        (B, C, L), in the dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    if backends.choose("causal_conv", {"cpu": _cpu_obstacle(x, weight, bias)}, backend) == "cpu":
        from frepro.ops.cpu.scan import causal_conv as kernel

        y = kernel(x.float().transpose(1, 2), weight.float(), bias.float(), reverse)
        return y.transpose(1, 2).to(x.dtype)
    channels, width = weight.shape
    padded = F.pad(x, (0, width - 1) if reverse else (width - 1, 0))
    weight = (weight.flip(1) if reverse else weight).to(x.dtype)
    return F.silu(F.conv1d(padded, weight[:, None], bias.to(x.dtype), groups=channels))


def _cpu_obstacle(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Return why the CPU kernel does not support these inputs; ``None`` if it does."""
    if weight.shape[1] > MAX_WIDTH:
        return f"the kernel is at most {MAX_WIDTH} wide, not {weight.shape[1]}"
    misfit = backends.misfit((weight, (x.shape[1], weight.shape[1])), (bias, (x.shape[1],)))
    return misfit or cpu.obstacle(x, weight, bias)
