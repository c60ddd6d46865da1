"""Operations with one meaning each: spectral filters here; every fast form equals its plain reference."""

from .spectral import dynamic_filter, global_filter, resize_filter

__all__ = ["dynamic_filter", "global_filter", "resize_filter"]
