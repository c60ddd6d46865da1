"""Operations with one meaning each: spectral filters here; every fast form equals its plain reference."""

from .spectral import (
    dynamic_filter,
    global_filter,
    resize_filter,
    spectral_pool,
    spectral_pooling_mask,
    spectral_rescale,
)

__all__ = [
    "dynamic_filter",
    "global_filter",
    "resize_filter",
    "spectral_pool",
    "spectral_pooling_mask",
    "spectral_rescale",
]
