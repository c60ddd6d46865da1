"""Checks of the arguments of an experiment. Each raises a ``FreproError`` with cause and remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

from frepro import papers
from frepro.errors import FreproError, unknown
from frepro.recipes import Recipe
from frepro.store import provenance

MOST_SEEDS = 1000  # more are likely a typing error: each seed is a training run of every variant


def check_seeds(seeds: Any) -> None:
    found = seeds if isinstance(seeds, list | tuple) else []
    if not found or not all(type(s) is int and s >= 0 for s in found) or len(set(found)) != len(found):
        raise FreproError(f"seeds must be a list of distinct integers of 0 or more, not {seeds!r}")
    if len(found) > MOST_SEEDS:
        raise FreproError(
            f"{len(found):,} seeds are too many, since each trains every variant: use {MOST_SEEDS:,} or fewer"
        )


def check_sizes(sizes: Any, native_size: Any) -> None:
    """Raise an error unless sizes are a list of (height, width), and the native size is positive or ``None``."""

    def is_length(value: Any) -> bool:
        return type(value) is int and value > 0

    pairs = sizes if isinstance(sizes, list | tuple) else [()]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_length, pair)) for pair in pairs):
        raise FreproError(f"sizes must be a list of [height, width] in pixels, such as [[512, 512]], not {sizes!r}")
    if native_size is not None and not is_length(native_size):
        raise FreproError(
            f"native_size must be a number of pixels, or None for the size of the images, not {native_size!r}"
        )


def check_images(images: Any, networks: Sequence[str]) -> None:
    """Raise an error unless images are a mapping from networks to (height, width)."""
    if not isinstance(images, Mapping | None):
        raise FreproError(f"images must map networks to [height, width], as {{'upernet': [512, 2048]}}, not {images!r}")
    for network, size in (images or {}).items():
        if network not in networks:
            raise unknown("network of this table", network, networks)
        check_sizes([size], None)


def check_model(name: str) -> None:
    """Raise an error for an unknown model. This imports timm only for names that are not frepro's."""
    own = provenance.own_models()
    if name in own or name in papers.models():  # a test holds that timm has every model of the papers' tables
        return
    import timm

    if not timm.is_model(name):
        raise unknown("model", name, [*own, *timm.list_models()])


def misfit(recipe: Recipe, model: str) -> str | None:
    """Return why a recipe cannot make a model small, in one line; ``None`` if it can, or leaves the size alone."""
    from frepro.models.create import arguments

    asked = recipe.of(model).model_args
    if lacking := [name for name in asked if name not in arguments(model)]:
        return (
            f"the recipe makes models small by {', '.join(asked)}, but {model} has no argument {lacking[0]}: use a "
            f"recipe for models with the arguments of {model}, or add its model_args under by_model"
        )
    return None
