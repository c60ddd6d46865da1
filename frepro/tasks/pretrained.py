"""Detectors and segmenters whose backbones start from weights pre-trained on ImageNet."""

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import timm
from safetensors import SafetensorError
from torch import nn

from frepro.errors import FreproError, one_line
from frepro.models.create import check_parameters, fitting, sized
from frepro.models.official import load_official
from frepro.store import provenance
from frepro.tasks.pyramid import Stages

if TYPE_CHECKING:
    from frepro.training.runs import Run, Start

# The errors that timm raises for a file that is damaged or belongs to another model.
UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, SafetensorError, pickle.UnpicklingError)


def make_network(create: Callable, run: "Run", *args: Any, **settings: Any) -> nn.Module:
    """Return a detector or segmenter on a run's backbone, with the weights of the run's file if there is one.

    Args:
        create: ``tasks.detectors.create`` or ``tasks.segmenters.create``.
        args: Its positional arguments after the backbone.
        settings: Its keyword arguments, except those of the backbone.

    Raises:
        FreproError: The backbone does not accept its arguments, or the file does not match it.
    """
    with fitting(run.model, run.all_model_args):
        network = create(
            run.recipe.network,
            run.model,
            *args,
            **settings,
            **sized(run.model, run.recipe.img_size),
            **run.all_model_args,
        )
    check_parameters(network, run.model, run.all_model_args)
    if run.start is not None:
        start_from(network, run, run.start)
    return network


def start_from(network: nn.Module, run: "Run", start: "Start") -> None:
    """Load the weights that a run starts from into the backbone of a network.

    The file holds a complete classifier, whose last norm and head are ignored. Filters and position embeddings are
    resized to the recipe's image size.

    Raises:
        FreproError: The file does not match the backbone.
    """
    body = next(module for module in network.modules() if isinstance(module, Stages)).body
    file, args = start.file, run.all_model_args
    if run.model in provenance.own_models():
        size = run.recipe.img_size if body.pretrained_cfg["fixed_input_size"] else None
        whole = load_official(run.model, file, img_size=size, **args)
    else:
        try:
            whole = timm.create_model(run.model, checkpoint_path=str(file), **args)
        except UNREADABLE as error:
            raise FreproError(f"{file} holds no weights of {run.model}: {one_line(error)}") from error
    weights, own = whole.state_dict(), body.state_dict()
    faults = [name for name, tensor in own.items() if name not in weights or weights[name].shape != tensor.shape]
    if faults:
        raise FreproError(f"{file} does not fit {run.model}: {', '.join(faults[:8])}")
    body.load_state_dict({name: weights[name] for name in own})
