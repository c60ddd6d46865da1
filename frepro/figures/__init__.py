"""Pictures of results, for people: labelled axes with units, readable at page width, safe for the colour-blind."""

from .comparison import comparison

__all__ = ["comparison"]
