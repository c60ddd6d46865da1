"""What works on the channels of each position alone: the linear layer and StarReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, at the speed of the machine's convolutions on a CPU.

    There torch's linear layer calls MKL, which runs on AMD processors at half the speed of oneDNN; its 1x1 convolution
    of a channels-last map calls oneDNN. (Compiled code chooses for itself.)

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).

    Returns:
        (..., out).
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling() or x.ndim < 2:
        return F.linear(x, weight, bias)
    pixels = x.contiguous().view(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, in, positions, 1), channels-last
    y = F.conv2d(pixels, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def star_relu(x: Tensor, scale: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """StarReLU, scale relu(x)^2 + bias ("MetaFormer Baselines for Vision", Yu et al., eq. 8).

    Args:
        x: Any shape.
        scale, bias: One number each, (1,).
        backend: "torch" or "cpu"; the fastest that can take the inputs unless given.

    Returns:
        The shape and dtype of ``x``.
    """
    # Half precision has less to read than it costs to convert.
    obstacle = f"tensors are {x.dtype}" if x.dtype != torch.float32 else cpu.obstacle(x, scale, bias)
    if backends.choose("star_relu", {"cpu": obstacle}, backend) == "cpu":
        from frepro.ops.cpu.spectral import star_relu as kernel

        return kernel(x, scale, bias)
    return scale * F.relu(x).square() + bias
