"""Layers, most of them those of torch and timm, and how models call them.

Linear layers, convolutions and activations are ``nn.Linear``, ``nn.Conv2d``, ``nn.GELU`` and timm's ``StarReLU``, which
hooks, adapters, quantisers and FLOP counters support. A model calls them through ``call``, which computes the same
result with an operation of ``frepro.ops`` if nothing is attached to the layer and the call is an ordinary eager one.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from timm.layers import GroupNorm1, to_2tuple
from timm.models.metaformer import StarReLU
from torch import Tensor, nn

from frepro.ops import depthwise_conv, eager, gelu, linear, star_relu

__all__ = ["Mlp", "Sequential", "call", "conv1x1", "depthwise", "is_private", "is_untouched"]


def conv1x1(in_channels: int, out_channels: int, bias: bool = True, **dd: Any) -> nn.Conv2d:
    """Return a linear layer on maps: (B, in, H, W) to (B, out, H, W)."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias, **dd)


def depthwise(dim: int, kernel_size: int | tuple[int, int], bias: bool = True, **dd: Any) -> nn.Conv2d:
    """Return a depthwise convolution with an odd kernel size and "same" padding: (B, C, H, W) to (B, C, H, W)."""
    rows, columns = to_2tuple(kernel_size)
    return nn.Conv2d(dim, dim, (rows, columns), padding=(rows // 2, columns // 2), groups=dim, bias=bias, **dd)


def call(layer: nn.Module, x: Tensor, *, made_by: nn.Module | None = None) -> Tensor:
    """Return ``layer(x)``, computed by the operation in ``OPERATIONS`` if possible.

    The operation replaces the layer's call if the layer is untouched and the call is not being recorded in a graph,
    which states the module that each of its nodes comes from. All other tests for ordinary calls are the operation's.

    Args:
        layer: The layer.
        x: Its input.
        made_by: The layer that returned ``x``, if only ``layer`` needs ``x``: at inference, an activation then
            overwrites it. A second map of that size would be memory that the system allocates and frees for each image.
    """
    operation = OPERATIONS.get(type(layer))
    if operation is None or eager.is_graphed() or not is_untouched(layer):
        return layer(x)
    return operation(layer, x, made_by is not None and is_private(made_by))


def is_untouched(layer: nn.Module, kind: type[nn.Module] | None = None) -> bool:
    """Return whether skipping the layer's call changes nothing, and whether its class is exactly ``kind``, if given.

    Skipping the call would also skip hooks, and a ``forward`` that was assigned to the instance.
    """
    return (
        (kind is None or type(layer) is kind)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
        and not (torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks)
        and "forward" not in layer.__dict__
        and (not layer._modules or all(child is None or is_untouched(child) for child in layer._modules.values()))
    )


def is_private(*layers: nn.Module) -> bool:
    """Return whether the result of each layer is a new tensor without other users, which may be overwritten."""
    return not eager.is_graphed() and all(type(layer) in OF_NEW_MAPS and is_untouched(layer) for layer in layers)


def _gelu(layer: nn.GELU, x: Tensor, inplace: bool) -> Tensor:
    return gelu(x, inplace=inplace) if layer.approximate == "none" else layer(x)


def _star_relu(layer: StarReLU, x: Tensor, inplace: bool) -> Tensor:
    is_plain = type(layer.relu) is nn.ReLU
    return star_relu(x, layer.scale, layer.bias, inplace=inplace) if is_plain else layer(x)


def _conv(layer: nn.Conv2d, x: Tensor, inplace: bool) -> Tensor:
    """Call the operation that computes the same, if there is one."""
    rows, columns = layer.kernel_size
    keeps_size = layer.padding == (rows // 2, columns // 2) and layer.stride == layer.dilation == (1, 1)
    if not keeps_size or layer.padding_mode != "zeros" or x.ndim != 4:
        return layer(x)
    if layer.groups == 1 and rows == columns == 1:
        return linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    if layer.groups == layer.in_channels == layer.out_channels and rows % 2 == columns % 2 == 1:
        return depthwise_conv(x, layer.weight, layer.bias)
    return layer(x)


# Looked up by the exact class: a subclass, or a layer that was replaced by another one, is called as usual.
OPERATIONS: dict[type[nn.Module], Callable[[Any, Tensor, bool], Tensor]] = {
    nn.Linear: lambda layer, x, inplace: linear(x, layer.weight, layer.bias),
    nn.Conv2d: _conv,
    nn.GELU: _gelu,
    StarReLU: _star_relu,
}
OF_NEW_MAPS = {nn.Linear, nn.Conv2d, GroupNorm1, nn.GELU, nn.ReLU, StarReLU}


class Sequential(nn.Sequential):
    """``torch.nn.Sequential`` that calls its layers through ``call``."""

    def forward(self, x: Tensor) -> Tensor:
        before = None
        for layer in self:
            x, before = call(layer, x, made_by=before), layer
        return x


class Mlp(nn.Module):
    """Linear layer, activation, linear layer: (..., dim) to (..., out_dim or dim).

    With ``conv1x1`` as ``layer``, (B, dim, H, W) to (B, out_dim or dim, H, W).

    At inference on a CPU, positions are processed in parts that keep the hidden map, the largest of a model, below
    ``MOST_HIDDEN`` bytes: the allocator returns larger blocks to the system, which has to clear their pages each time.

    Args:
        dim: Channels of the input.
        hidden_dim: Channels of the hidden map.
        out_dim: Channels of the result; ``None`` means ``dim``.
        act_layer: Called without arguments; returns the activation.
        bias: Whether the linear layers have a bias.
        layer: Called as ``layer(in, out, bias=, device=, dtype=)``; returns a linear layer.
    """

    MOST_HIDDEN = 16 * 2**20

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        out_dim: int | None = None,
        *,
        act_layer: Callable = nn.GELU,
        bias: bool = True,
        layer: Callable = nn.Linear,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.fc1 = layer(dim, hidden_dim, bias=bias, **dd)
        self.act = act_layer()
        self.fc2 = layer(hidden_dim, out_dim or dim, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        parts = self._parts(x)
        if parts == 1:
            return self._layers(x)
        tokens = x.flatten(0, -2)
        return torch.cat([self._layers(part) for part in tokens.chunk(parts)]).view(*x.shape[:-1], -1)

    def _layers(self, x: Tensor) -> Tensor:
        return call(self.fc2, call(self.act, call(self.fc1, x), made_by=self.fc1))

    def _parts(self, x: Tensor) -> int:
        if type(self.fc1) is not nn.Linear or torch.is_grad_enabled() or eager.is_graphed():
            return 1
        hidden = x.numel() // x.shape[-1] * self.fc1.out_features * x.element_size()
        if hidden <= self.MOST_HIDDEN or x.device.type != "cpu" or not eager.may_overwrite(x):
            return 1
        # Hooks expect one call of each layer.
        return math.ceil(hidden / self.MOST_HIDDEN) if is_private(self.fc1, self.act, self.fc2) else 1
