"""Pictures of results, for people: labelled axes with units, readable at page width, safe for the colour-blind."""

from .comparison import comparison
from .insight import (
    context_maps,
    filter_gallery,
    frequency_responses,
    relative_log_amplitude,
    shape_bias,
    similarity,
    spectrum_maps,
)

__all__ = [
    "comparison",
    "context_maps",
    "filter_gallery",
    "frequency_responses",
    "relative_log_amplitude",
    "shape_bias",
    "similarity",
    "spectrum_maps",
]
