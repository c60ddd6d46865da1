"""List the tables and figures, find out which are stale, and make them again.

An artefact is up to date when the store has every run that it depends on, and when its result was made from the current
notebook, parameters, published numbers, recipe, data and code. A fingerprint of each of these is stored by name with
the result, so that the plan can say why a result is stale. The plan is made before anything runs, without importing
torch, and estimates the cost from how long the same runs took before. A table depends on an ``Experiment``. A figure
depends on the code that its notebook uses, and on the networks that are ``Trained`` for it.
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
