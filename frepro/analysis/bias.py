"""Shape and texture bias of a model (SPANetV2 Figure 4).

Geirhos et al., "ImageNet-trained CNNs are biased towards texture", ICLR 2019 (https://arxiv.org/abs/1811.12231), use
images with conflicting cues: the shape of one category with the texture of another. *Shape bias* is the share of shape
decisions among all decisions that follow either cue. The images (1,280 of 16 categories, github.com/rgeirhos/
texture-vs-shape) are not part of this package; they are named ``<shape><n>-<texture><m>.png``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from frepro.data import compositions
from frepro.errors import FreproError

MOST_NEITHER = 0.5  # share of decisions for neither cue above which no shape bias is stated

# The classes of ImageNet-1K in each of Geirhos et al.'s 16 categories (helper/human_categories.py of their repository).
IMAGENET_CATEGORIES = {
    "airplane": [404],
    "bear": [*range(294, 298)],
    "bicycle": [444, 671],
    "bird": [
        8, *range(10, 17), *range(18, 21), *range(22, 25), *range(80, 84), *range(87, 97), *range(98, 101),
        *range(127, 134), *range(135, 146),
    ],
    "boat": [472, 554, 625, 814, 914],
    "bottle": [440, 720, 737, 898, 899, 901, 907],
    "car": [436, 511, 817],
    "cat": [*range(281, 287)],
    "chair": [423, 559, 765, 857],
    "clock": [409, 530, 892],
    "dog": [
        *range(152, 192), *range(193, 204), *range(205, 227), *range(228, 242), *range(243, 251), *range(252, 258),
        259, *range(261, 264), *range(265, 269),
    ],
    "elephant": [385, 386],
    "keyboard": [508, 878],
    "knife": [499],
    "oven": [766],
    "truck": [555, 569, 656, 675, 717, 734, 864, 867],
}  # fmt: skip


# The classes of the embedded data "cues".
DIGIT_CATEGORIES = {f"digit {digit}": [digit] for digit in range(10)}


def cues(path: Path | str) -> tuple[str, str]:
    """Return the shape and texture category in a cue-conflict image's name: "cat7-elephant1.png" to (cat, elephant).

    Raises:
        ValueError: The name does not have this form.
    """
    match = re.fullmatch(r"([a-z]+)\d+-([a-z]+)\d+", Path(path).stem)
    if match is None:
        raise ValueError(f"{Path(path).name} is not named <shape><n>-<texture><m>, as cue-conflict images are")
    return match[1], match[2]


def read_conflicts(folder: Path | str, size: int = 224) -> tuple[Tensor, list[str], list[str]]:
    """Read all cue-conflict images below a folder, such as those of Geirhos et al.

    Returns:
        Images (N, 3, size, size) with values in [0, 1], and the categories of their shapes and of their textures.

    Raises:
        FreproError: There are no such images.
    """
    files = sorted(Path(folder).rglob("*.png"))
    if not files:
        raise FreproError(f"no cue-conflict images (<shape><n>-<texture><m>.png) below {folder}")
    decoded = [pil_to_tensor(Image.open(file).convert("RGB")) / 255 for file in files]
    images = torch.stack([resize(image, [size, size], antialias=True) for image in decoded])
    shapes, textures = zip(*(cues(file) for file in files), strict=True)
    return images.clamp(0, 1), list(shapes), list(textures)


def digit_conflicts(count: int) -> tuple[Tensor, list[str], list[str]]:
    """Return embedded images with conflicting cues (``data.compositions.conflicts``) as ``read_conflicts`` does."""
    pictures, shapes, textures = compositions.conflicts(count)
    names = list(DIGIT_CATEGORIES)
    images = torch.from_numpy(pictures).float()[:, None].repeat(1, 3, 1, 1)
    return images, [names[shape] for shape in shapes], [names[texture] for texture in textures]


def decide(logits: Tensor, categories: Mapping[str, Sequence[int]] = IMAGENET_CATEGORIES) -> list[str]:
    """Return the category that a model sees: the one with the highest mean probability, as in Geirhos et al.

    Args:
        logits: (N, classes).
        categories: The classes of each category; by default Geirhos et al.'s 16, which cover 207 of ImageNet's 1000.

    Returns:
        N categories.

    Raises:
        FreproError: The model does not have all of these classes.
    """
    needed = 1 + max(max(classes) for classes in categories.values())
    if logits.shape[1] < needed:
        raise FreproError(
            f"the categories need {needed} classes, but the model has {logits.shape[1]}: give a checkpoint for every "
            "model, or use profile paper"
        )
    probabilities = logits.softmax(dim=1)
    scores = torch.stack([probabilities[:, list(classes)].mean(dim=1) for classes in categories.values()], dim=1)
    names = list(categories)
    return [names[i] for i in scores.argmax(dim=1).tolist()]


def shape_bias(decisions: Sequence[str], shapes: Sequence[str], textures: Sequence[str]) -> float:
    """Return the share of shape decisions among decisions for shape or texture, in [0, 1]; 1 means shape alone.

    Images whose cues agree do not count, nor do decisions for a third category. NaN if no decision remains.

    Args:
        decisions, shapes, textures: A category for each image.
    """
    by_shape = by_texture = 0
    for decision, shape, texture in zip(decisions, shapes, textures, strict=True):
        if shape != texture:
            by_shape += decision == shape
            by_texture += decision == texture
    return by_shape / (by_shape + by_texture) if by_shape + by_texture else float("nan")


def shape_bias_if_meaningful(decisions: Sequence[str], shapes: Sequence[str], textures: Sequence[str]) -> float:
    """Return the shape bias, or NaN if most decisions follow neither cue: those that do may then be chance hits."""
    neither = cue_accuracy(decisions, shapes, textures)["neither"]
    return float("nan") if neither > MOST_NEITHER else shape_bias(decisions, shapes, textures)


def shape_bias_by_category(
    decisions: Sequence[str], shapes: Sequence[str], textures: Sequence[str]
) -> dict[str, float]:
    """Return the shape bias over the images of each shape category, sorted by name.

    All are NaN if most decisions on all images follow neither cue, as in ``shape_bias_if_meaningful``.
    """
    rows = list(zip(decisions, shapes, textures, strict=True))
    if cue_accuracy(decisions, shapes, textures)["neither"] > MOST_NEITHER:
        return dict.fromkeys(sorted(set(shapes)), float("nan"))
    return {
        category: shape_bias(*zip(*(row for row in rows if row[1] == category), strict=True))
        for category in sorted(set(shapes))
    }


def cue_accuracy(decisions: Sequence[str], shapes: Sequence[str], textures: Sequence[str]) -> dict[str, float]:
    """Return the shares of decisions for "shape", "texture" and "neither" among images with conflicting cues.

    The shares sum to 1. Unlike shape bias, they show how often a model is right at all.
    """
    rows = [row for row in zip(decisions, shapes, textures, strict=True) if row[1] != row[2]]
    if not rows:
        raise ValueError("there is no image whose cues conflict")
    shape = sum(decision == shape for decision, shape, _ in rows) / len(rows)
    texture = sum(decision == texture for decision, _, texture in rows) / len(rows)
    return {"shape": shape, "texture": texture, "neither": 1 - shape - texture}
