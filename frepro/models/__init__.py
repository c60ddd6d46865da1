"""Backbones, one file a family; importing this package registers them with timm."""

from . import dfformer

__all__ = ["dfformer"]
