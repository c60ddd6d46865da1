"""The authors' checkpoints: read without running anything that is in them, and loaded name by name.

frepro's models have the official tensor names, so that loading is strict: a tensor that is missing or left over is an
error that names it. Files are what the authors' trainers wrote: a bare state dict, or one wrapped together with
optimizer, arguments (``argparse.Namespace``) and moving average.
"""

import argparse
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from frepro.errors import FreproError, unknown

WEIGHTS = ("state_dict", "model", "module")
AVERAGES = ("state_dict_ema", "model_ema")

# Harmless types that trainers store beside the weights; torch allows no others but tensors and plain containers.
_SAFE = [argparse.Namespace, np.dtype, np._core.multiarray.scalar, *(type(np.dtype(c)) for c in "fdilq?")]


def load_official(
    model_name: str,
    weights: str | Path | Mapping[str, Any],
    *,
    ema: bool = False,
    img_size: int | tuple[int, int] | None = None,
    **model_args: Any,
) -> nn.Module:
    """A frepro model with the authors' weights, in evaluation mode.

    Args:
        model_name: A registered name, as "dfformer_s18" or "vimf_v1_tiny".
        weights: A checkpoint (.pth, .pt, .bin or .safetensors), or what was read from one.
        ema: Take the moving average of the weights, where the checkpoint has one beside the last weights.
        img_size: Refit filters and position embeddings to this size after loading; none for the checkpoint's.
        **model_args: Further arguments of the model. The number of classes is the checkpoint's unless given.

    Raises:
        FreproError: No such model; a file that cannot be read or holds anything but data; a tensor that is missing,
            left over or of another shape, by name.
    """
    if not timm.is_model(model_name):
        raise unknown("model", model_name, timm.list_models())
    named = str(weights) if isinstance(weights, str | Path) else "this checkpoint"
    tensors = unwrap(read(weights) if isinstance(weights, str | Path) else weights, ema=ema, named=named)
    classifier = (timm.get_pretrained_cfg(model_name) or timm.models.PretrainedCfg()).classifier
    head = tensors.get(f"{classifier}.weight")
    if head is not None:
        model_args = {"num_classes": head.shape[0], **model_args}
    model = timm.create_model(model_name, **model_args)
    side = _side(model, tensors)
    if side is not None and "img_size" not in model_args:
        other = timm.create_model(model_name, img_size=side, **model_args)
        model = model if _misfits(other, tensors) else other
    load_strictly(model, tensors, named)
    if img_size is not None:
        model.set_input_size(img_size)
    return model.eval()


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Tensors that have another shape in a model than in a checkpoint, with both."""
    own = model.state_dict()
    shapes = {name: (own[name].shape, tensors[name].shape) for name in own.keys() & tensors.keys()}
    return {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}


def _side(model: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """Pixels a side of the images that weights were made for, where that alone can be why they do not fit a model.

    Of a filter, the first side that differs is its height; position embeddings are as many as there are patches.
    """
    sides = set()
    for name, shapes in _misfits(model, tensors).items():
        own, given = next(pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1])
        ratio = math.sqrt(given / own) if name == "pos_embed" else given / own
        sides.add(32 * round(model.pretrained_cfg["input_size"][1] * ratio / 32))
    return sides.pop() if len(sides) == 1 and model.pretrained_cfg["fixed_input_size"] else None


def read(path: str | Path) -> Mapping[str, Any]:
    """What is in a checkpoint file. Pickles are read as data: one that would run code is refused.

    Raises:
        FreproError: No such file, a damaged one, or one that holds more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise FreproError(f"no checkpoint at {path}: give a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise FreproError(f"{path} is not a safetensors file that can be read: {error}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise FreproError(
                f"{path} is refused: it holds python objects that loading would run; only data are read"
            ) from error
        raise FreproError(f"{path} is damaged, or no checkpoint: download it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise FreproError(f"{path} is damaged, or no checkpoint: download it again") from error
    if not isinstance(content, Mapping):
        raise FreproError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def unwrap(content: Mapping[str, Any], *, ema: bool = False, named: str = "this checkpoint") -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the wrappers of trainers and without a ``module.`` prefix."""
    wrappers = AVERAGES if ema else WEIGHTS
    averages = [key for key in AVERAGES if key in content]
    if ema and not averages:
        raise FreproError(f"{named} has no moving average ({', '.join(AVERAGES)}): leave ema out")
    for key in wrappers:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    else:
        if averages:  # nothing but the average
            content = content[averages[0]]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise FreproError(f"{named} holds no weights: its keys are {', '.join(map(str, list(content)[:8]))}")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], named: str) -> None:
    """Load a state dict that fits exactly; fixed parameters (SPANet's masks) alone may be missing from it.

    Raises:
        FreproError: With the names of what is missing, left over or of another shape.
    """
    own = model.state_dict()
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    faults = {
        "missing": sorted(set(own) - set(tensors) - fixed),
        "left over": sorted(set(tensors) - set(own)),
        "of another shape": sorted(
            f"{name} ({'x'.join(map(str, tensors[name].shape))} for {'x'.join(map(str, own[name].shape))})"
            for name in set(own) & set(tensors)
            if own[name].shape != tensors[name].shape
        ),
    }
    said = [f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names]
    if said:
        raise FreproError(f"{named} does not fit {type(model).__name__}: {'; '.join(said)}")
    model.load_state_dict({**{name: own[name] for name in fixed}, **tensors})


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
