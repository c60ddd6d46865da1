"""Data sets: embedded pictures, ImageNet-style folders, and what ``timm.data.create_dataset`` reads, on one path."""

from .sources import Source, locate

__all__ = ["Source", "locate"]
