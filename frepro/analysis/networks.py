"""Models with the weights that they are looked at with: from a file each, or at random initialisation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

import frepro.models  # noqa: F401 - registers them with timm
from frepro.analysis.illustration import Illustration
from frepro.data.pictures import normalised
from frepro.errors import FreproError, unknown
from frepro.models.official import load_official
from frepro.store import provenance

NOT_SHOWN = "this is no test of the paper's claim"


def load(
    models: Mapping[str, str], checkpoints: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, nn.Module]:
    """The models by label, in evaluation mode.

    Args:
        models: Label -> name of frepro or timm.
        checkpoints: Name -> a file with its weights: for ours the authors' (``models.official``), for timm's one that
            timm wrote. A model without one is initialised at random.
        seed: Of the initialisation, the same for each.

    Raises:
        FreproError: No such model, a checkpoint for a model that is not there, or a file that does not fit.
    """
    checkpoints = checkpoints or {}
    for name in checkpoints:
        if name not in models.values():
            raise unknown("model with a checkpoint", name, list(models.values()))
    return {label: _load(name, checkpoints.get(name), seed) for label, name in models.items()}


def _load(name: str, checkpoint: str | None, seed: int) -> nn.Module:
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise FreproError(f"no checkpoint at {checkpoint}: give a .pth or .safetensors file")
    if checkpoint is not None and name in provenance.own_models():
        return load_official(name, checkpoint)
    torch.manual_seed(seed)
    try:
        return timm.create_model(name, checkpoint_path=checkpoint or "").eval()
    except (OSError, RuntimeError) as error:
        raise FreproError(f"{checkpoint} does not give {name} its weights: {str(error).splitlines()[0]}") from error


def prepared(model: nn.Module, images: Tensor, *, own_size: bool = False) -> Tensor:
    """Images with values in [0, 1] as a model of timm or frepro takes them: (N, 3, H, W) to (N, 3, H, W).

    Args:
        own_size: Also resize them to the size that the model was made or trained for.
    """
    size = list(model.pretrained_cfg["input_size"][1:])
    if own_size and list(images.shape[2:]) != size:
        images = resize(images, size, antialias=True).clamp(0, 1)
    return normalised(images, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, batch: int = 100) -> Tensor:
    """What a model answers to images with values in [0, 1], at its own size: (N, 3, H, W) to (N, classes)."""
    return torch.cat([model(prepared(model, part, own_size=True)) for part in images.split(batch)])


def illustration(
    paper: str,
    figure: int,
    models: Mapping[str, str],
    checkpoints: Mapping[str, str] | None = None,
    seed: int = 0,
    images: str = "",
) -> Illustration:
    """What stands behind a figure of models: where the weights of each come from, and what is not the paper's.

    Args:
        images: What the models were shown in place of ImageNet's images, in words.
    """
    checkpoints = checkpoints or {}
    sources = [source(name, checkpoints.get(name), seed) for name in models.values()]
    random = [label for label, name in models.items() if name not in checkpoints]
    return Illustration(paper, figure, sources=sources, stands_in=stands_in(random, images=images))


def source(model: str, checkpoint: str | None, seed: int = 0) -> dict[str, Any]:
    """Where the weights of a model come from, in words: a file, or none, which is random initialisation."""
    if checkpoint is not None:
        return {"model": model, "weights": Path(checkpoint).name}
    return {"model": model, "weights": "random initialisation", "seed": seed}


def stands_in(
    random: Sequence[str],
    trained: Sequence[str] = (),
    data: str = "",
    images: str = "",
    in_place_of: str = "ImageNet's images",
) -> str:
    """What stands in for what the paper used, in a sentence; empty where nothing does.

    Args:
        random, trained: Labels of the models with random weights, and of small ones trained here.
        data: What these were trained on.
        images: What the models were shown in place of ImageNet's images.
    """
    parts = [f"Random weights stand in for trained ones of {', '.join(random)}"] if random else []
    if trained:
        small = f"Small networks trained on the data set {data}"
        parts.append(f"{small} stand in for {', '.join(trained)} trained on ImageNet-1K")
    parts += [f"{images} stand in for {in_place_of}"] if images else []
    return "; ".join([*parts, NOT_SHOWN] if parts else [])
