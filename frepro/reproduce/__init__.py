"""Which tables and figures there are, which of them are stale, and how they are made anew.

An artefact is up to date when every run that it rests on is in the store, and its result was made from the same
notebook, parameters, published numbers, recipe, data and code; each of these is kept by name beside the result, so that
the plan can say why a result is stale. It tells all of that before anything runs, without importing torch; what it
costs to run is taken from how long the same runs took before. A table rests on an ``Experiment``; a
figure on what its notebook draws or measures itself, and so on the code that this notebook uses, and on the networks
that are ``Trained`` for it.
"""

from .artefacts import Artefact, artefacts, find, listed, ranges, shown
from .notebook import Notebook
from .plans import SEEDS, FigurePlan, Plan, parts, plan
from .render import execute, make, render
from .staleness import because, changes, rendered_in

__all__ = [
    "SEEDS",
    "Artefact",
    "FigurePlan",
    "Notebook",
    "Plan",
    "artefacts",
    "because",
    "changes",
    "execute",
    "find",
    "listed",
    "make",
    "parts",
    "plan",
    "ranges",
    "render",
    "rendered_in",
    "shown",
]
