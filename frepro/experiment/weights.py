"""Find weights: files by the name of their model, and those that the authors of a model published."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frepro import papers
from frepro.errors import FreproError
from frepro.recipes import Classification
from frepro.store import provenance
from frepro.training.runs import Start

if TYPE_CHECKING:
    from frepro.experiment.spec import Spec
    from frepro.models.published import Published

Variant = tuple[str, str, dict[str, Any]]


def find_weights(given: Mapping[str, str] | str | None, name: str) -> Start | None:
    """Return the weights of a name; ``None`` if there are none.

    Args:
        given: Name -> file; or one file or a folder of files named after the model, as spanet_small.safetensors or
            SPANet-small.pth.
        name: Name of a model, or <network>_<model>.

    Raises:
        FreproError: There is no such file or folder.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return Start.of(Path(given[name])) if name in given else None
    path = Path(given)
    if not os.path.exists(path):
        raise FreproError(
            f"no weights at {path}: give a file, or a folder of files, such as {name}.safetensors or {name}.pth"
        )
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((Start.of(file) for file in files if named(file) == name), None)


def of_authors(spec: "Spec") -> "tuple[dict[str, Published], dict[str, str]]":
    """Return the weights that authors published for the variants of a table of classifiers.

    Those of compared models are timm's, by the tag of the row.

    Returns:
        Label -> weights, whether or not they have been downloaded; and label -> why there are none.
    """
    from frepro.models import published  # imports torch, which takes seconds

    found, lacking = {}, {}
    for label, model, args in spec.variants:
        row = spec.row(model)
        if args or spec.networks:
            lacking[label] = "nobody has published weights of this variant"
        elif model in published.RELEASES:
            released = " and ".join(published.RELEASES[model])
            lacking[label] = f"the authors' weights fit the code that they released, {released}"
        elif model not in provenance.own_models() and row is not None and row.weights:
            found[label] = published.of_timm(model, row.weights)
        elif (one := published.of_model(model)[0]).url is not None:
            found[label] = one
        elif model in provenance.own_models():
            lacking[label] = f"the authors' weights: {one.said}"
        else:
            lacking[label] = f"timm has no weights of {model} from ImageNet-1K alone at this size"
    return found, lacking


def with_releases(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Return variants with the models that authors released for some of them, each after its variant."""
    from frepro.models import published

    known = {model for _, model, _ in variants}
    found: list[Variant] = []
    for label, model, args in variants:
        found.append((label, model, args))
        released = [] if args else [each for each in published.RELEASES.get(model, ()) if each not in known]
        found += [(f"{label}, {each}", each, {}) for each in released]
    return tuple(found)


def paper_model(model: str) -> str:
    """Return the model of a paper that a released model is for; any other model as it is."""
    from frepro.models import published

    return next((name for name, released in published.RELEASES.items() if model in released), model)


def evaluated_as(recipe: Classification, weights: "Published") -> Classification:
    """Return a recipe with the image size, crop and interpolation that published weights are evaluated with."""
    import timm

    config: Any = timm.get_pretrained_cfg(weights.model)
    return replace(
        recipe.of(weights.model),
        img_size=config.input_size[-1],
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )


def named(file: Path) -> str:
    """Return the model name of a file of weights; empty for another kind of file.

    Files that ``frepro weights fetch`` wrote may have other names, as Vim-F's Ti_pre_checkpoint.pth.
    """
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        return ""
    name = file.stem.lower().replace("-", "_")
    if name in provenance.own_models():
        return name
    from frepro.models import published  # imports torch, which takes seconds

    for model, tag in papers.weights().items():
        if file.name == published.of_timm(model, tag).file:
            return model
    return published.model_of(file.name) or name
