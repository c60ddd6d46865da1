"""Any model of frepro or timm by name, for images of a size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import frepro.models  # noqa: F401 - registers them with timm
from frepro.errors import FreproError, unknown


def create_model(name: str, img_size: int, model_args: dict[str, Any], **more: Any) -> nn.Module:
    """A model of frepro or timm for images of so many pixels a side.

    Args:
        model_args: What the user chose, and an error may name.
        **more: Further arguments of the model, such as ``num_classes`` and ``drop_path_rate``.

    Raises:
        FreproError: No such model, or it does not take such arguments.
    """
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    with fitting(name, model_args):
        return timm.create_model(name, **sized(name, img_size), **more, **model_args)


@contextmanager
def fitting(name: str, model_args: dict[str, Any]) -> Iterator[None]:
    """Turn what a model says of arguments that it does not take into one line that names both."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        raise FreproError(f"model {name!r} cannot be made with {model_args}: {error}") from error


def sized(name: str, img_size: int | tuple[int, int]) -> dict[str, Any]:
    """The argument that makes a model for images of this size; none for one whose parameters do not depend on it."""
    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": img_size} if cfg is not None and cfg.fixed_input_size else {}


def normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a model expects."""
    cfg = timm.get_pretrained_cfg(model)
    return (cfg.mean, cfg.std) if cfg is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
