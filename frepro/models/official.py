"""The authors' checkpoints: read without running anything that is in them, and loaded name by name.

frepro's models have the official tensor names, so that loading is strict: a tensor that is missing or left over is an
error that names it. Files are what the authors' trainers wrote: a bare state dict, or one wrapped together with
optimizer, arguments (``argparse.Namespace``) and moving average.
"""

import argparse
import datetime
import math
import pickle
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from frepro.errors import FreproError, printable, unknown

WEIGHTS = ("state_dict", "model", "module")
AVERAGES = ("state_dict_ema", "model_ema")

# Prefixes of wrappers, in any order: of DataParallel, of torch.compile, and of a detector's or segmenter's backbone.
PREFIXES = ("module.", "_orig_mod.", "backbone.")

# Harmless types that trainers store beside the weights; torch allows no others but tensors and plain containers. Some
# go by several names in a file: of Python 2 in pickle's protocols up to 2, of numpy 1.x, of newer and older pathlibs.
_SAFE = [
    argparse.Namespace,
    SimpleNamespace,
    Decimal,
    Fraction,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in np.typecodes["All"]),
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for core in ("core", "_core")
        for function in (np.float64().__reduce__()[0], np.empty(0).__reduce__()[0])  # scalar, _reconstruct
    ),
    *(
        (kind, f"{module}.{kind.__name__}")
        for module in ("builtins", "__builtin__")
        for kind in (bytearray, bytes, complex, frozenset, range, set, slice)
    ),
    (range, "__builtin__.xrange"),
    # A path of another system cannot be made here, and a pure one touches no file.
    *(
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, kind in (
            ("PosixPath", PurePosixPath),
            ("WindowsPath", PureWindowsPath),
            ("PurePosixPath", PurePosixPath),
            ("PureWindowsPath", PureWindowsPath),
        )
    ),
]


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
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise FreproError(
                f"{path} is refused: it holds python objects ({printable(named[1])}) that are no plain data, and to "
                "make them could run code: save its state dict alone"
            ) from error
        if "Can only" in str(error) or "Trying to call" in str(error):
            raise FreproError(
                f"{path} is refused: it holds python objects that cannot be read as data: save its state dict alone"
            ) from error
        other = ", or not of torch.save's own pickle protocol, 2" if "Unsupported operand" in str(error) else ""
        raise FreproError(f"{path} is damaged, or no checkpoint{other}: download it again") from error
    except Exception as error:  # what the bytes of a damaged file lead to has no bounds
        raise FreproError(f"{path} is damaged, or no checkpoint: download it again") from error
    if not isinstance(content, Mapping):
        raise FreproError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def unwrap(content: Mapping[str, Any], *, ema: bool = False, named: str = "this checkpoint") -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the wrappers of trainers and the ``PREFIXES`` of names."""
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
    while prefix := next((p for p in PREFIXES if all(str(key).startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], named: str) -> None:
    """Load a state dict that fits exactly; fixed parameters (SPANet's masks) alone may be missing from it.

    Raises:
        FreproError: With the names of what is missing, left over or of another shape, or of what holds no weights:
            values that are not finite, or not numbers of the kind that the model computes with.
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
    check_values(own, tensors, named)
    model.load_state_dict({**{name: own[name] for name in fixed}, **tensors})


def check_values(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], named: str) -> None:
    """Raise for tensors that have the shapes of a model's own, but hold no weights that it could compute with."""
    wrong: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        wanted = own[name].dtype
        if tensor.layout != torch.strided:
            fault = "sparse"
        elif tensor.is_meta:
            fault = "without values"
        elif kind_of(tensor.dtype) != kind_of(wanted):
            given, right = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, wanted))
            fault = f"of type {given} where {right} belongs"
        elif kind_of(wanted) in ("real", "complex") and not tensor.to(wanted).isfinite().all():
            fault = "not finite"
        else:
            continue
        wrong.setdefault(fault, []).append(name)
    if wrong:
        fault, names = next(iter(wrong.items()))
        raise FreproError(f"{named} has weights that are {fault}, {len(names)} in all, first {names[0]}: use others")


def kind_of(dtype: torch.dtype) -> str:
    """Real, complex, bool, or whole numbers."""
    if dtype.is_floating_point:
        return "real"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype == torch.bool else "whole"


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
