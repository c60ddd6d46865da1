"""Any model of frepro or timm by name, for images of a size."""

import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import frepro.models  # noqa: F401 - registers them with timm
from frepro.errors import FreproError, one_line, unknown


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
        model = timm.create_model(name, **sized(name, img_size), **more, **model_args)
    check_parameters(model, name, model_args)
    return model


# What timm's create_model takes beside a model's own arguments, and arguments that task and data decide.
RESERVED = {*inspect.signature(timm.create_model).parameters} - {"model_name", "kwargs"}
RESERVED |= {"num_classes", "in_chans", "features_only", "out_indices"}


@contextmanager
def fitting(name: str, model_args: dict[str, Any]) -> Iterator[None]:
    """Turn what a model says of arguments that it does not take into one line that names both.

    Raises:
        FreproError: The model cannot be made, or an argument is not the user's to choose.
    """
    for argument in model_args:
        if argument in RESERVED:
            raise FreproError(f"{argument} of {name!r} is decided by recipe, data and given weights: leave it out")
    try:
        with warnings.catch_warnings():
            # ``check_parameters`` names them.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            yield
    except (FreproError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises, the cause is what the user named
        misspelt = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if misspelt and get_close_matches(misspelt[1], known := arguments(name), cutoff=0.5):
            raise unknown(f"argument of {name}", misspelt[1], known) from error
        raise FreproError(f"model {name!r} cannot be made with {model_args}: {one_line(error)}") from error


def check_parameters(network: nn.Module, name: str, model_args: dict[str, Any]) -> None:
    """Raise for a network with parameters that have no element, which computes, but learns nothing there."""
    for parameter, tensor in network.named_parameters():
        if tensor.numel() == 0:
            shape = " x ".join(map(str, tensor.shape))
            raise FreproError(
                f"model {name!r} with {model_args} has an empty parameter {parameter} ({shape}): use sizes over 0"
            )


def arguments(name: str) -> list[str]:
    """Return the names of the arguments that a model takes, as its class and the classes above it declare them."""
    module = sys.modules[timm.model_entrypoint(name).__module__]
    found: dict[str, None] = {}
    for each in vars(module).values():
        if isinstance(each, type) and issubclass(each, nn.Module) and each.__module__ == module.__name__:
            own = [of for of in each.__mro__ if issubclass(of, nn.Module) and of is not nn.Module]
            named = [
                name
                for of in own
                for name, parameter in inspect.signature(of).parameters.items()
                if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            ]
            if "num_classes" in named:  # a whole model, not one of its parts
                found |= dict.fromkeys(named)
    return list(found)


def sized(name: str, img_size: int | tuple[int, int]) -> dict[str, Any]:
    """The argument that makes a model for images of this size; none for one whose parameters do not depend on it."""
    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": img_size} if cfg is not None and cfg.fixed_input_size else {}


def normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a model expects."""
    cfg = timm.get_pretrained_cfg(model)
    return (cfg.mean, cfg.std) if cfg is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
