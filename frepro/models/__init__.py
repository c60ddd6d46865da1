"""Backbones, one file a family; importing this package registers them with timm."""

from . import dfformer, gfnet, vim, vimf

__all__ = ["dfformer", "gfnet", "vim", "vimf"]
