"""Creation of any frepro or timm model by name, for a given image size."""

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
    """Create a frepro or timm model.

    Args:
        name: Registered name of the model.
        img_size: Image size in pixels per side.
        model_args: Arguments that the user chose; error messages name them.
        **more: Further arguments of the model, such as ``num_classes`` and ``drop_path_rate``.

    Raises:
        FreproError: The model is unknown, or it does not accept such arguments.
    """
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    with fitting(name, model_args):
        model = timm.create_model(name, **sized(name, img_size), **more, **model_args)
    check_parameters(model, name, model_args)
    return model


# Arguments of timm's create_model itself, and arguments that task and data determine.
RESERVED = {*inspect.signature(timm.create_model).parameters} - {"model_name", "kwargs"}
RESERVED |= {"num_classes", "in_chans", "features_only", "out_indices"}


# The largest numbers in arguments. Larger ones are typing errors, and would exhaust the machine before they fail.
MOST_LAYERS, MOST = 1000, 2**16


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


@contextmanager
def fitting(name: str, model_args: dict[str, Any]) -> Iterator[None]:
    """Turn any error of a model about its arguments into one line that names model and arguments.

    Raises:
        FreproError: The model cannot be created, or the user may not choose one of the arguments.
    """
    for argument in model_args:
        if argument in RESERVED:
            raise FreproError(f"{argument} of {name!r} is set by the recipe, the data and the weights: leave it out")
        limit = MOST_LAYERS if "depth" in argument or argument == "layers" else MOST
        if any(type(number) is int and abs(number) > limit for number in _leaves(model_args[argument])):
            raise FreproError(f"{argument} of {name!r} has a number above {limit:,}: use a smaller one")
    try:
        with warnings.catch_warnings():
            # ``check_parameters`` reports them.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            yield
    except (FreproError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the model raises, the user's arguments are the cause
        misspelt = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if misspelt and get_close_matches(misspelt[1], known := arguments(name), cutoff=0.5):
            raise unknown(f"argument of {name}", misspelt[1], known) from error
        raise FreproError(f"model {name!r} cannot be created with {model_args}: {one_line(error)}") from error


def check_parameters(network: nn.Module, name: str, model_args: dict[str, Any]) -> None:
    """Raise FreproError for a network with empty parameters: it would run, but those layers would learn nothing."""
    for parameter, tensor in network.named_parameters():
        if tensor.numel() == 0:
            shape = " x ".join(map(str, tensor.shape))
            raise FreproError(
                f"model {name!r} with {model_args} has an empty parameter {parameter} ({shape}): use sizes above 0"
            )


def arguments(name: str) -> list[str]:
    """Return the names of a model's arguments, as declared by its class and the base classes."""
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
            if "num_classes" in named:  # a complete model, not one of its parts
                found |= dict.fromkeys(named)
    return list(found)


def sized(name: str, img_size: int | tuple[int, int]) -> dict[str, Any]:
    """Return ``{"img_size": img_size}`` for a model whose parameters depend on the image size; ``{}`` for others."""
    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": img_size} if cfg is not None and cfg.fixed_input_size else {}


def normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per colour channel, with which images must be normalised for a model."""
    cfg = timm.get_pretrained_cfg(model)
    return (cfg.mean, cfg.std) if cfg is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
