"""Bindings of the CPU kernel for the weight's gradient of the depthwise convolution."""

import ctypes

from torch import Tensor

from frepro.ops.cpu import call, pointer


def depthwise_gradient(x: Tensor, dy: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight, ``(C, 1, *size)``, and bias, (C,). x, dy: (B, C, H, W). All float32."""
    x, dy = (t.permute(0, 2, 3, 1).contiguous() for t in (x, dy))
    batch, channels = len(x), x.shape[3]
    dweight, dbias = x.new_empty(batch, *size, channels), x.new_empty(batch, channels)
    call(
        "depthwise_gradient",
        *map(pointer, (x, dy)),
        *map(ctypes.c_int64, (*x.shape, *size)),
        *map(pointer, (dweight, dbias)),
    )
    return dweight.sum(0).permute(2, 0, 1)[:, None].contiguous(), dbias.sum(0)
