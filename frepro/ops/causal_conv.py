"""The short causal convolution before a selective scan."""

import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu

REVISION = {"causal convolution": 1}

MAX_WIDTH = 64  # of the CPU kernel


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False, backend: str | None = None
) -> Tensor:
    """Depthwise convolution that looks back only, then SiLU: y_t = silu(bias + sum_j w_j x_(t - K + 1 + j)).

    Args:
        x: Sequence, (B, C, L).
        weight: (C, K).
        bias: (C,).
        reverse: Look ahead only: the same as on the reversed sequence, turned back.
        backend: "torch" or "cpu"; the fastest that can take the inputs unless given.

    Returns:
        (B, C, L), in the dtype of ``x``.
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
    """Why the CPU kernel cannot take these inputs; none where it can."""
    if weight.shape[1] > MAX_WIDTH:
        return f"its width is {MAX_WIDTH} at most, not {weight.shape[1]}"
    misfit = backends.misfit((weight, (x.shape[1], weight.shape[1])), (bias, (x.shape[1],)))
    return misfit or cpu.obstacle(x, weight, bias)
