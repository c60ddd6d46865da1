"""Operations with one meaning each: spectral filters and the selective scan; every fast form equals its reference."""

from .selective_scan import selective_scan
from .spectral import (
    amplitude_spectrum,
    dynamic_filter,
    global_filter,
    resize_filter,
    spectral_pool,
    spectral_pooling_mask,
    spectral_rescale,
)

__all__ = [
    "amplitude_spectrum",
    "dynamic_filter",
    "global_filter",
    "resize_filter",
    "selective_scan",
    "spectral_pool",
    "spectral_pooling_mask",
    "spectral_rescale",
]
