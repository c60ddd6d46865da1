"""Format findings as tables in text and HTML. Labels, units and decimals are those of ``recipes.METRICS``."""

from .claims import claims
from .sizes import sizes, vim_flops
from .tables import (
    backbones,
    configuration,
    costs,
    dense_scores,
    published_beside_measured,
    scores,
    summary,
)
from .view import NO_MODEL, NOT_RUN, View, number
from .weights import weights

__all__ = [
    "NOT_RUN",
    "NO_MODEL",
    "View",
    "backbones",
    "claims",
    "configuration",
    "costs",
    "dense_scores",
    "number",
    "published_beside_measured",
    "scores",
    "sizes",
    "summary",
    "vim_flops",
    "weights",
]
