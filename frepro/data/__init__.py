"""Data sets: the embedded digits, ImageNet-style folders, and what ``timm.data.create_dataset`` reads, on one path."""

from .sources import Source, locate

__all__ = ["Source", "locate"]
