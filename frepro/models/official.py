"""Loading of the authors' checkpoints, without running any code in them.

frepro's models have the official tensor names, so loading is strict: it is an error that a tensor is missing or left
over, and the error names it. Files may have any form that the authors' training scripts write: a bare state dict, or
one stored together with optimizer, arguments (``argparse.Namespace``) and moving average.
"""

import argparse
import datetime
import math
import os
import pickle
import re
from collections.abc import Collection, Mapping
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

# Prefixes of wrappers, in any order: DataParallel, torch.compile, and the backbone of a detector or segmenter.
PREFIXES = ("module.", "_orig_mod.", "backbone.")

_NUMPY_FUNCTIONS: tuple[Any, ...] = (np.float64().__reduce__()[0], np.empty(0).__reduce__()[0])  # scalar, _reconstruct

# Harmless types that training scripts store along with the weights; torch itself allows only tensors and plain
# containers. Some have several names in files: those of Python 2 (in pickle protocols up to 2), of numpy 1.x, and of
# newer and older versions of pathlib.
_SAFE: list[Any] = [
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
        for function in _NUMPY_FUNCTIONS
    ),
    *(
        (kind, f"{module}.{kind.__name__}")
        for module in ("builtins", "__builtin__")
        for kind in (bytearray, bytes, complex, frozenset, range, set, slice)
    ),
    (range, "__builtin__.xrange"),
    # Paths are read as pure ones, which work for paths of other systems and cannot access files.
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
    """Return a frepro model with the authors' weights, in evaluation mode.

    Args:
        model_name: A registered name, such as "dfformer_s18" or "vimf_v1_tiny".
        weights: Path of a checkpoint (.pth, .pt, .bin or .safetensors), or the content of one.
        ema: Load the moving average of the weights instead of the last weights.
        img_size: Image size to which filters and position embeddings are resized after loading, (H, W) or one number,
            in pixels; ``None`` for the checkpoint's size.
        **model_args: Further arguments of the model. The default number of classes is the checkpoint's.

    Raises:
        FreproError: The model is unknown; the file cannot be read or contains anything but data; the checkpoint has no
            moving average; or tensors, which the message names, are missing, left over or of another shape.
    """
    if not timm.is_model(model_name):
        raise unknown("model", model_name, timm.list_models())
    named = str(weights) if isinstance(weights, str | Path) else "this checkpoint"
    tensors = unwrap(read(weights) if isinstance(weights, str | Path) else weights, ema=ema, named=named)
    classifier = (timm.get_pretrained_cfg(model_name) or timm.models.PretrainedCfg()).classifier
    head = tensors.get(f"{classifier}.weight")
    if head is not None:
        model_args = {"num_classes": head.shape[0], **model_args}
    model: Any = timm.create_model(model_name, **model_args)  # Any: nn.Module does not declare timm's attributes
    side = image_side(model, tensors)
    if side is not None and "img_size" not in model_args:
        other = timm.create_model(model_name, img_size=side, **model_args)
        model = model if misfits(other, tensors) else other
    load_strictly(model, tensors, named)
    if img_size is not None:
        model.set_input_size(img_size)
    return model.eval()


def misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.Size]]:
    """Return name -> (shape in the model, shape in the checkpoint) of tensors whose shapes differ."""
    own = model.state_dict()
    shapes = {name: (own[name].shape, tensors[name].shape) for name in own.keys() & tensors.keys()}
    return {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}


def image_side(model: Any, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the image size of a checkpoint, in pixels per side, if it may be the only reason for a misfit.

    The first axis in which a filter differs is its height; the number of position embeddings is that of the patches.
    """
    sides = set()
    for name, shapes in misfits(model, tensors).items():
        own, given = next(pair for pair in zip(*shapes, strict=False) if pair[0] != pair[1])
        ratio = math.sqrt(given / own) if name == "pos_embed" else given / own
        sides.add(32 * round(model.pretrained_cfg["input_size"][1] * ratio / 32))
    return sides.pop() if len(sides) == 1 and model.pretrained_cfg["fixed_input_size"] else None


def read(path: str | Path) -> Mapping[str, Any]:
    """Return the content of a checkpoint file. Pickles are read as data only: one that would run code is refused.

    Raises:
        FreproError: The file does not exist, is damaged, or contains anything but data.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, also for a path that is too long or has a null byte
        raise FreproError(f"no checkpoint at {path}: give a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise FreproError(f"{path} is not a readable safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise FreproError(
                f"{path} is refused: it holds Python objects ({printable(named[1])}) that are not plain data, and "
                "loading them could run code: save only its state dict"
            ) from error
        if "Can only" in str(error) or "Trying to call" in str(error):
            raise FreproError(
                f"{path} is refused: it holds Python objects that cannot be read as data: save only its state dict"
            ) from error
        is_other_protocol = "Unsupported operand" in str(error)
        other = ", or was not saved with pickle protocol 2, torch.save's default" if is_other_protocol else ""
        raise FreproError(f"{path} is damaged or not a checkpoint{other}: download it again") from error
    except Exception as error:  # a damaged file may cause any exception
        raise FreproError(f"{path} is damaged or not a checkpoint: download it again") from error
    if not isinstance(content, Mapping):
        raise FreproError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def unwrap(content: Mapping[str, Any], *, ema: bool = False, named: str = "this checkpoint") -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint, without wrappers (``WEIGHTS``, ``AVERAGES``) and name ``PREFIXES``.

    Args:
        content: Content of a checkpoint.
        ema: Return the moving average of the weights instead of the last weights.
        named: Name of the checkpoint in messages.

    Raises:
        FreproError: The checkpoint holds no weights, or no moving average.
    """
    wrappers = AVERAGES if ema else WEIGHTS
    averages = [key for key in AVERAGES if key in content]
    if ema and not averages:
        raise FreproError(f"{named} has no moving average ({', '.join(AVERAGES)}): load it without ema")
    for key in wrappers:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    else:
        if averages:  # the checkpoint holds only the average
            content = content[averages[0]]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise FreproError(f"{named} holds no weights: its keys are {', '.join(map(str, list(content)[:8]))}")
    while prefix := next((p for p in PREFIXES if all(str(key).startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], named: str) -> None:
    """Load a state dict that must fit exactly; only fixed parameters (SPANet's masks) may be missing from it.

    Raises:
        FreproError: As in ``check_fit``.
    """
    check_fit(model, tensors, named)
    own = model.state_dict()
    model.load_state_dict({**{name: own[name] for name in _fixed(model)}, **tensors})


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], named: str, adapted: Collection[str] = ()) -> None:
    """Raise an error for a state dict that does not fit a model; only fixed parameters may be missing from it.

    Args:
        model: Model that the tensors are for.
        tensors: The state dict.
        named: Name of the checkpoint in messages.
        adapted: Names of tensors that may be missing or of another shape.

    Raises:
        FreproError: Tensors, which the message names, are missing, left over or of another shape, or have values that
            are not finite or not of the model's kind of number.
    """
    own = model.state_dict()
    faults = {
        "missing": sorted(set(own) - set(tensors) - _fixed(model) - set(adapted)),
        "left over": sorted(set(tensors) - set(own) - set(adapted)),
        "of another shape": sorted(
            f"{name} ({'x'.join(map(str, tensors[name].shape))} for {'x'.join(map(str, own[name].shape))})"
            for name in (set(own) & set(tensors)) - set(adapted)
            if own[name].shape != tensors[name].shape
        ),
    }
    said = [f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names]
    if said:
        raise FreproError(f"{named} does not fit {type(model).__name__}: {'; '.join(said)}")
    check_values(own, {name: tensor for name, tensor in tensors.items() if name in own}, named)


def _fixed(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def check_values(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], named: str) -> None:
    """Raise FreproError for tensors of the right shapes whose values the model cannot compute with."""
    wrong: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        wanted = own[name].dtype
        if tensor.layout != torch.strided:
            fault = "sparse"
        elif tensor.is_meta:
            fault = "without values"
        elif kind_of(tensor.dtype) != kind_of(wanted):
            given, right = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, wanted))
            fault = f"of type {given} instead of {right}"
        elif kind_of(wanted) in ("real", "complex") and not tensor.to(wanted).isfinite().all():
            fault = "not finite"
        else:
            continue
        wrong.setdefault(fault, []).append(name)
    if wrong:
        fault, names = next(iter(wrong.items()))
        raise FreproError(f"{named} has weights that are {fault}, {len(names)} in all, first {names[0]}: use others")


def kind_of(dtype: torch.dtype) -> str:
    """Return the kind of number of a dtype: "real", "complex", "bool" or "whole"."""
    if dtype.is_floating_point:
        return "real"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype == torch.bool else "whole"


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
