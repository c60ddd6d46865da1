"""Checks of the arguments of an experiment. Each raises a ``FreproError`` with cause and remedy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frepro import papers
from frepro.data import Source
from frepro.errors import FreproError, unknown
from frepro.recipes import Recipe
from frepro.store import provenance
from frepro.training.runs import Run

if TYPE_CHECKING:
    from frepro.experiment import Experiment
    from frepro.experiment.spec import Spec

MOST_SEEDS = 1000  # more are likely a typing error: each seed is a training run of every variant


# Stands for seeds whose number is chosen by results: the least, with which a claim can be decided, up to the most.
AUTO = "auto"
FIRST_SEEDS, LAST_SEEDS = 3, 50


class GrownSeeds(tuple[int, ...]):
    """Seeds 0, 1, ... whose number was chosen by results, as by ``SEEDS=auto``."""


def read_seeds(seeds: Any) -> Any:
    """Return ``GrownSeeds`` for "auto:12", the first twelve, and any other value as it is.

    Raises:
        FreproError: The text is another, or the number is too small or too large.
    """
    if not isinstance(seeds, str):
        return seeds
    word, _, count = seeds.partition(":")
    if word != AUTO or not count.isascii() or not count.isdigit() or len(count) > 3:
        raise FreproError(f"seeds must be a list of integers, or text like 'auto:12', not {seeds!r}")
    if not FIRST_SEEDS <= int(count) <= LAST_SEEDS:
        raise FreproError(f"seeds that are chosen by results are {FIRST_SEEDS} to {LAST_SEEDS}, not {count}")
    return GrownSeeds(range(int(count)))


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


def check_networks(spec: "Spec") -> None:
    """Raise an error unless ``trained`` of a table of detectors or segmenters maps its networks to models."""
    given = {} if spec.trained is None else spec.trained
    if not isinstance(given, Mapping):
        raise FreproError(
            f"Table {spec.table} of {spec.paper} is on {spec.published.dataset}: trained must map networks "
            f"({', '.join(spec.networks)}) to models, as {{{next(iter(spec.networks))!r}: ['spanet_small']}}"
        )
    for network in given:
        if network not in spec.networks:
            raise unknown("network of this table", network, spec.networks)


def check_starts(spec: "Spec") -> None:
    """Raise an error unless ``starts`` maps classifiers to variants that start from random weights themselves."""
    labels, starts = [label for label, *_ in spec.variants], spec.starts or {}
    if not isinstance(starts, Mapping):
        raise FreproError(f"starts must map labels of variants to labels, not {spec.starts!r}")
    if starts and spec.networks:
        raise FreproError("starts is for tables of classifiers: give the weights of backbones as backbones")
    for label in (*starts, *starts.values()):
        if label not in labels:
            raise unknown("variant in starts", label, labels)
    if again := [label for label in starts.values() if label in starts]:
        raise FreproError(f"{again[0]} starts from another variant itself: start from that one")


def check_paper(spec: "Spec", source: Source) -> None:
    """Raise an error if profile "paper" would train on embedded data, or without weights of the backbones."""
    if source.embedded:
        raise FreproError(
            "profile paper needs the real data set: add DATA=/path/to/it (for ImageNet, a folder with train/ and "
            "val/; to evaluate weights, val/ alone), or use profile demo, which trains on embedded data"
        )
    if spec.networks and spec.backbones is None and spec.checkpoints is None:
        raise FreproError(
            "profile paper starts from backbones trained on ImageNet: add BACKBONES=/folder with files such as "
            "spanet_small.pth, or BACKBONES=none for random weights"
        )


def check_authors(spec: "Spec") -> None:
    """Raise an error if the authors' weights cannot be evaluated in a profile or for a kind of table."""
    if spec.networks:
        raise FreproError(
            f"nobody has published weights of detectors or segmenters in Table {spec.table} of {spec.paper}: give a "
            "folder of your own, or omit the table"
        )
    if spec.profile != "paper":
        raise FreproError(
            f"the authors' weights are for models of full size, not for the small ones of profile {spec.profile}: "
            "use profile paper"
        )


def check_weights(experiment: "Experiment") -> None:
    """Raise an error if an experiment would train on test images alone, or its weights have none for its variants."""
    if experiment.runs:
        experiment.source.check_can_train()
    if experiment.is_of_authors:
        if not experiment.published_weights:
            reasons = "; ".join(dict.fromkeys(experiment.unpublished.values()))
            raise FreproError(f"no weights for Table {experiment.table} of {experiment.paper}: {reasons}")
    elif experiment.checkpoints is not None:
        if not experiment.evaluated:
            names = [
                f"{each.network}_{each.model}" if each.network else each.model for each in experiment.trained_variants
            ]
            given = experiment.checkpoints
            files = given if isinstance(given, str) else ", ".join(given)
            raise FreproError(f"no weights of this table at {files}: add files such as {names[0]}.pth")
    elif experiment.backbones not in (None, "none"):
        for learner in experiment.trained_variants:
            if not experiment.networks and learner.label not in (experiment.starts or {}):
                continue
            if (start := learner.runs[0].start) is None or isinstance(start, Run):
                given = experiment.backbones if isinstance(experiment.backbones, str) else "backbones"
                model = learner.model if start is None else start.model
                raise FreproError(f"no weights of {model} in {given}: add {model}.pth, or omit the model")
