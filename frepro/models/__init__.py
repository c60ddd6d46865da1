"""Backbones, one file a family; importing this package registers them with timm."""

from . import dfformer, spanet

__all__ = ["dfformer", "spanet"]
