"""What a user can get wrong in an experiment, each with a line that names cause and remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

from frepro.errors import FreproError, unknown
from frepro.store import provenance

MOST_SEEDS = 1000  # more are a slip of the keyboard: each is a training run of every variant


def check_seeds(seeds: Any) -> None:
    found = seeds if isinstance(seeds, list | tuple) else []
    if not found or not all(type(s) is int and s >= 0 for s in found) or len(set(found)) != len(found):
        raise FreproError(f"seeds are a list of different whole numbers, 0 or more, not {seeds!r}")
    if len(found) > MOST_SEEDS:
        raise FreproError(
            f"{len(found):,} seeds are too many, each a training run of every variant: use {MOST_SEEDS:,} or fewer"
        )


def check_sizes(sizes: Any, native_size: Any) -> None:
    """Raise for what is no list of heights and widths, or no number of pixels."""

    def is_length(value: Any) -> bool:
        return type(value) is int and value > 0

    pairs = sizes if isinstance(sizes, list | tuple) else [()]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_length, pair)) for pair in pairs):
        raise FreproError(f"sizes are a list of heights and widths in pixels, as [[512, 512]], not {sizes!r}")
    if native_size is not None and not is_length(native_size):
        raise FreproError(f"native_size is a number of pixels, or nothing for those of the images, not {native_size!r}")


def check_images(images: Any, networks: Sequence[str]) -> None:
    """Raise for what is no mapping of some networks to a height and width each."""
    if not isinstance(images, Mapping | None):
        raise FreproError(
            f"images name a height and width for a network, as {{'upernet': [512, 2048]}}, not {images!r}"
        )
    for network, size in (images or {}).items():
        if network not in networks:
            raise unknown("network of this table", network, networks)
        check_sizes([size], None)


def check_model(name: str) -> None:
    """Raise for a name that neither frepro nor timm knows; timm is imported only for names that are not ours."""
    own = provenance.own_models()
    if name in own:
        return
    import timm

    if not timm.is_model(name):
        raise unknown("model", name, [*own, *timm.list_models()])
