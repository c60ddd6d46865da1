"""Two photographs from scikit-learn, for figures of what models see: no download, the same on every machine.

"china.jpg" (a temple) and "flower.jpg" (a dahlia), 427 x 640 pixels, both CC BY 2.0. They are examples to look at, not
a data set: nothing measured on two photographs says how a model does on ImageNet.
"""

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms.v2.functional import resize, resized_crop


def photographs(size: int = 224) -> Tensor:
    """Return both complete photographs, resized to a square as in the SPANetV2 notebooks.

    Returns:
        (2, 3, size, size), values in [0, 1].
    """
    return torch.stack([resize(image, [size, size], antialias=True) for image in _load()]).clamp(0, 1)


def crops(count: int, size: int = 224, seed: int = 0) -> Tensor:
    """Return square crops, alternating between the photographs, at random places.

    Their sides are a quarter to all of the photographs' height.

    Returns:
        (count, 3, size, size), values in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    images = _load()
    pieces = []
    for i in range(count):
        image = images[i % len(images)]
        height, width = image.shape[1:]
        side, top, left = torch.rand(3, generator=generator).tolist()
        side = round(height * (0.25 + 0.75 * side))
        top, left = round(top * (height - side)), round(left * (width - side))
        pieces.append(resized_crop(image, top, left, side, side, [size, size], antialias=True))
    return torch.stack(pieces).clamp(0, 1)  # resizing may exceed 1 by rounding


def normalised(
    images: Tensor,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
) -> Tensor:
    """Return (images - mean) / std per channel, the input of a model; (N, 3, H, W) to (N, 3, H, W)."""
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _load() -> list[Tensor]:
    from sklearn.datasets import load_sample_images  # the images are part of the package

    return [torch.tensor(image).permute(2, 0, 1) / 255 for image in load_sample_images().images]
