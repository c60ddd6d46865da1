"""Backbones, one file per family; importing this package registers them with timm."""

from . import dfformer, gfnet, spanet, spanetv2, vim, vimf

__all__ = ["dfformer", "gfnet", "spanet", "spanetv2", "vim", "vimf"]
