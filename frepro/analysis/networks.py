"""Models with the weights to be analysed: from one file each, or randomly initialised."""

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
    """Return the models by label, in evaluation mode.

    Args:
        models: Label -> name of a frepro or timm model.
        checkpoints: Name -> a file with its weights: the authors' for ours (``models.official``), one written by timm
            for timm's. A model without one is initialised randomly.
        seed: Seed of the initialisation, the same for each.

    Raises:
        FreproError: There is no such model, a checkpoint is for a model that is not listed, or a file does not match.
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
        raise FreproError(f"{checkpoint} holds no weights of {name}: {str(error).splitlines()[0]}") from error


def prepared(model: nn.Module, images: Tensor, *, own_size: bool = False) -> Tensor:
    """Normalise images with values in [0, 1] for a timm or frepro model: (N, 3, H, W) to (N, 3, H, W).

    Args:
        own_size: Also resize them to the size for which the model was created or trained.
    """
    config: Any = model.pretrained_cfg  # a dictionary, which the annotations of nn.Module leave out
    size = list(config["input_size"][1:])
    if own_size and list(images.shape[2:]) != size:
        images = resize(images, size, antialias=True).clamp(0, 1)
    return normalised(images, config["mean"], config["std"])


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, batch: int = 100) -> Tensor:
    """Return a model's logits for images with values in [0, 1], at its own size: (N, 3, H, W) to (N, classes)."""
    return torch.cat([model(prepared(model, part, own_size=True)) for part in images.split(batch)])


def illustration(
    paper: str,
    figure: int,
    models: Mapping[str, str],
    checkpoints: Mapping[str, str] | None = None,
    seed: int = 0,
    images: str = "",
) -> Illustration:
    """Return the illustration of a figure of models: the origin of their weights, and what differs from the paper.

    Args:
        images: The images shown to the models in place of ImageNet's, in words.
    """
    checkpoints = checkpoints or {}
    sources = [source(name, checkpoints.get(name), seed) for name in models.values()]
    random = [label for label, name in models.items() if name not in checkpoints]
    return Illustration(paper, figure, sources=sources, stands_in=stands_in(random, images=images))


def source(model: str, checkpoint: str | None, seed: int = 0) -> dict[str, Any]:
    """Return the origin of a model's weights: a file, or random initialisation for ``None``."""
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
    """Return a sentence that says what replaces something that the paper used; empty if nothing does.

    Args:
        random, trained: Labels of the models with random weights, and of small ones trained here.
        data: The data set that the latter were trained on.
        images: The images shown to the models in place of ImageNet's.
    """
    parts = [f"Random weights stand in for trained ones of {', '.join(random)}"] if random else []
    if trained:
        small = f"Small networks trained on the data set {data}"
        parts.append(f"{small} stand in for {', '.join(trained)} trained on ImageNet-1K")
    parts += [f"{images} stand in for {in_place_of}"] if images else []
    return "; ".join([*parts, NOT_SHOWN] if parts else [])
