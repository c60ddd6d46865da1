"""Spectral filters, the selective scan, and the layers that the models spend their time in.

Each operation has a reference implementation in plain PyTorch and may have faster ones, which compute the same result;
see ``frepro.ops.backends``.
"""

from .causal_conv import causal_conv
from .depthwise import depthwise_conv
from .pointwise import gelu, linear, star_relu
from .selective_scan import selective_scan
from .spectral import (
    amplitude_spectrum,
    dynamic_filter,
    global_filter,
    pooled_linear,
    resize_filter,
    spectral_pool,
    spectral_pooling_mask,
    spectral_rescale,
)

__all__ = [
    "amplitude_spectrum",
    "causal_conv",
    "depthwise_conv",
    "dynamic_filter",
    "gelu",
    "global_filter",
    "linear",
    "pooled_linear",
    "resize_filter",
    "selective_scan",
    "spectral_pool",
    "spectral_pooling_mask",
    "spectral_rescale",
    "star_relu",
]
