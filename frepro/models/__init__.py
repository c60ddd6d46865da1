"""Backbones, one file a family; importing this package registers them with timm."""

from . import dfformer, spanet, spanetv2

__all__ = ["dfformer", "spanet", "spanetv2"]
