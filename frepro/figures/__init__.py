"""Figures of results, with labelled axes and units, readable at page width and safe for colour-blind readers."""

from .accuracy import accuracy_against_cost
from .comparison import comparison, dense_comparison
from .insight import (
    context_maps,
    filter_gallery,
    pictures,
    relative_log_amplitude,
    shape_bias,
    similarity,
    spectrum_maps,
)
from .predictions import predictions
from .responses import frequency_responses
from .scanning import scanning
from .scenes import scenes
from .style import noted

__all__ = [
    "accuracy_against_cost",
    "comparison",
    "context_maps",
    "dense_comparison",
    "filter_gallery",
    "frequency_responses",
    "noted",
    "pictures",
    "predictions",
    "relative_log_amplitude",
    "scanning",
    "scenes",
    "shape_bias",
    "similarity",
    "spectrum_maps",
]
