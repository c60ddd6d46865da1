"""Layers of timm and torch with frepro's operations inside; parameters and their names are the same."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import metaformer
from torch import Tensor, nn

from frepro.ops import backends, depthwise_conv, gelu, linear, star_relu

__all__ = ["GELU", "Conv1x1", "DepthwiseConv", "Linear", "Mlp", "StarReLU", "inplace_gelu"]


class Linear(nn.Linear):
    """``torch.nn.Linear``, by ``ops.linear``: (..., in) to (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv1x1(nn.Conv2d):
    """``torch.nn.Conv2d`` with a kernel of 1, by ``ops.linear``: (B, in, H, W) to (B, out, H, W), channels-last."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, **dd: Any) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class DepthwiseConv(nn.Conv2d):
    """``torch.nn.Conv2d``, depthwise with an odd kernel, by ``ops.depthwise_conv``: (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, dim: int, kernel_size: int | tuple[int, int], bias: bool = True, **dd: Any) -> None:
        rows, columns = to_2tuple(kernel_size)
        super().__init__(dim, dim, (rows, columns), padding=(rows // 2, columns // 2), groups=dim, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, self.bias)


class GELU(nn.GELU):
    """``torch.nn.GELU`` by ``ops.gelu``: any shape. ``inplace`` is for inference."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x, inplace=self.inplace)


inplace_gelu = partial(GELU, inplace=True)  # behind a layer whose output nobody else needs


class StarReLU(metaformer.StarReLU):
    """timm's StarReLU with its learnable scale and bias, by ``ops.star_relu``: any shape; ``inplace`` as ``GELU``."""

    def forward(self, x: Tensor) -> Tensor:
        return star_relu(x, self.scale, self.bias, inplace=self.inplace)


class Mlp(nn.Module):
    """Linear layer, activation, linear layer: (..., dim) to (..., out_dim or dim).

    With ``Conv1x1`` for ``layer``, (B, dim, H, W) to (B, out_dim or dim, H, W).

    At inference on a CPU positions go through in parts, so that the hidden map, the largest of a model, stays below
    ``MOST_HIDDEN`` bytes: the allocator gives larger ones back each time, and the system clears their pages anew.
    """

    MOST_HIDDEN = 16 * 2**20

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        out_dim: int | None = None,
        *,
        act_layer: Callable = inplace_gelu,
        bias: bool = True,
        layer: Callable = Linear,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.fc1 = layer(dim, hidden_dim, bias=bias, **dd)
        self.act = act_layer()
        self.fc2 = layer(hidden_dim, out_dim or dim, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        parts = self._parts(x)
        if parts == 1:
            return self._whole(x)
        tokens = x.flatten(0, -2)
        return torch.cat([self._whole(part) for part in tokens.chunk(parts)]).view(*x.shape[:-1], -1)

    def _whole(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))

    def _parts(self, x: Tensor) -> int:
        if x.device.type != "cpu" or not isinstance(self.fc1, nn.Linear) or not backends.may_overwrite():
            return 1
        hidden = x.numel() // x.shape[-1] * self.fc1.out_features * x.element_size()
        return max(1, math.ceil(hidden / self.MOST_HIDDEN))
