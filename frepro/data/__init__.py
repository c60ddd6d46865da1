"""Data sets behind one interface: embedded images, ImageNet-style folders, and timm's ``create_dataset``."""

from .sources import Source, locate

__all__ = ["Source", "locate"]
