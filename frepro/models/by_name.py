"""Activations and norms by name, for variants in notebooks and on the command line."""

from collections.abc import Callable

from timm.layers import get_act_layer, get_norm_layer
from timm.layers.create_act import _ACT_LAYER_DEFAULT
from timm.layers.create_norm import _NORM_MAP
from timm.models.metaformer import StarReLU
from torch import nn

from frepro.errors import unknown

ACTIVATIONS = {"star_relu": StarReLU, "gelu": nn.GELU}


def activation(layer: Callable | str) -> Callable:
    """Return the activation of that name, "star_relu" or one of timm's ("gelu", "relu", "silu", "tanh" ...).

    Raises:
        FreproError: There is no activation of that name.
    """
    if not isinstance(layer, str):
        return layer
    if layer in ACTIVATIONS:
        return ACTIVATIONS[layer]
    if layer not in _ACT_LAYER_DEFAULT:
        raise unknown("activation", layer, [*ACTIVATIONS, *_ACT_LAYER_DEFAULT])
    return get_act_layer(layer)


def norm(layer: Callable | str) -> Callable:
    """Return the norm of that name in timm ("layernorm", "rmsnorm", "groupnorm1" ...).

    Names that end in "2d", and group and batch norms, are for maps (B, C, H, W); the others for (..., C).

    Raises:
        FreproError: There is no norm of that name.
    """
    if not isinstance(layer, str):
        return layer
    if layer not in _NORM_MAP:
        raise unknown("norm", layer, _NORM_MAP)
    return get_norm_layer(layer)
