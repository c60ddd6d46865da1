"""Transforms from annotated images to the samples of detectors and segmenters: resize, crop, flip, with annotations.

An augmented sample depends on seed, epoch and index alone, as in ``data.loading``. The steps follow mmdetection's and
mmsegmentation's recipes and are built from torchvision's transforms.
"""

import random
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from frepro.data.ade20k import Ade20k
from frepro.data.annotated import IGNORED, AnnotatedImage
from frepro.data.coco import Coco
from frepro.data.loading import Samples, spread
from frepro.data.scenes import SIZE, Scenes
from frepro.data.sources import Source
from frepro.errors import FreproError
from frepro.recipes import Recipe

AnnotatedImages = Scenes | Coco | Ade20k


def open_annotated(source: Source, split: str, size: int = SIZE, masks: bool = True) -> AnnotatedImages:
    """Return the annotated images of a split.

    Args:
        split: "train" or "test".
        size: Size of the embedded scenes in pixels per side.
        masks: Read the masks of objects from COCO's files, which may lack them.
    """
    if source.root is None:
        return Scenes(split, size)
    return Coco(source.root, split, masks) if source.reader == "coco" else Ade20k(source.root, split)


class DenseSamples(Samples):
    """Transformed annotated images, indexed by (epoch, index); ``transform`` is one of the two classes below."""

    images: AnnotatedImages

    def transformed(self, item: AnnotatedImage) -> tuple[Tensor, Any]:
        return self.transform(item)


def dense_samples(
    source: Source, split: str, recipe: Recipe, transform: Any, seed: int, masks: bool = True
) -> DenseSamples:
    """Return samples of annotated images, as many as the recipe uses; see ``open_annotated``."""
    images = open_annotated(source, split, recipe.img_size, masks)
    return DenseSamples(images, transform, seed, spread(len(images), split, recipe), split)


def collate(samples: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Return lists of images, which may differ in size, and of their targets."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class Detection:
    """An annotated image in the format of torchvision's detectors, which resize and normalise it themselves.

    Returns an image (3, H, W) with values in [0, 1], and a mapping of boxes (N, 4), labels (N,) from 1 (0 is the
    background), masks (N, H, W) uint8 if they were read, area (N,), iscrowd (N,) and image_id. In training, crowds are
    left out.

    Args:
        crop: In training, resize every second image to a short side of 400, 500 or 600, and crop it to sides of 384 to
            600 pixels, as DETR does before it resizes (mmdetection's multi-scale recipe of SPANetV2).
        mirror: In training, mirror every second image. Not for digits: a mirrored digit is a different symbol.
    """

    def __init__(self, train: bool, crop: bool = False, mirror: bool = True) -> None:
        self.train, self.crop = train, crop
        self.resize = v2.RandomShortestSize([400, 500, 600], max_size=4200)
        self.mirror = v2.RandomHorizontalFlip(0.5 if mirror else 0.0)
        self.sanitize = v2.SanitizeBoundingBoxes(
            # Boxes and masks are recognised by their types.
            labels_getter=lambda inputs: [inputs[1][key] for key in ("labels", "area", "iscrowd")]
        )

    def __call__(self, annotated: AnnotatedImage) -> tuple[Tensor, dict[str, Tensor]]:
        kept = ~annotated.crowd if self.train else torch.ones_like(annotated.crowd)
        image = F.to_dtype(F.to_image(annotated.image), torch.float32, scale=True)
        target: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(annotated.boxes[kept], format="XYXY", canvas_size=image.shape[-2:]),
            "labels": annotated.labels[kept] + 1,
        }
        if annotated.masks is not None:
            target["masks"] = tv_tensors.Mask(annotated.masks[kept].to(torch.uint8))
        target |= {"area": annotated.areas[kept], "iscrowd": annotated.crowd[kept]}
        if self.train:
            if self.crop and random.random() < 0.5:
                image, target = self.resize(image, target)
                height, width = (random.randint(min(384, side), min(600, side)) for side in image.shape[-2:])
                image, target = self.sanitize(v2.RandomCrop((height, width))(image, target))
            image, target = self.mirror(image, target)
        plain = {key: value.as_subclass(Tensor) for key, value in target.items()}
        return image.as_subclass(Tensor), {**plain, "image_id": torch.tensor(annotated.image_id)}


class Segmentation:
    """An annotated image and its semantic map, prepared as in mmsegmentation's recipes for ADE20K.

    In training, the image is resized by a random ratio, cropped to a square in which no class has more than three
    quarters of the labelled pixels (ten trials), mirrored, changed in colour, and padded to the square with the mean
    colour and 255. In evaluation, it is only resized, and its map keeps the size of the file, at which it is scored.
    Returns an image (3, H, W), normalised, and a map (H, W) int64.

    Args:
        side: Length that the short side of images is resized to, and side of the square.
        long: Maximum length of the long side, before the random ratio.
        ratios: Minimum and maximum of the random ratio.
        mirror: In training, mirror every second image. Not for digits: a mirrored digit is a different symbol.
        distort: In training, change colours.
        multiple: In evaluation, round sides up to multiples of this number of pixels.
    """

    MOST = 0.75
    TRIALS = 10
    LEAST = 32  # minimum pixels per side in evaluation, which does not pad: networks halve a side five times

    def __init__(
        self,
        train: bool,
        side: int,
        mean: tuple,
        std: tuple,
        long: int = 2048,
        ratios: tuple[float, float] = (0.5, 2.0),
        mirror: bool = True,
        distort: bool = True,
        multiple: int = 1,
    ) -> None:
        self.train, self.side, self.long, self.mean, self.std = train, side, long, list(mean), list(std)
        self.multiple = 1 if train else multiple
        self.ratios = ratios
        self.mirror = v2.RandomHorizontalFlip(0.5 if mirror else 0.0)
        # mmsegmentation adds up to 32 of 255 to the brightness, whereas torchvision multiplies; hue is in turns.
        colours = v2.RandomPhotometricDistort(brightness=(0.875, 1.125), hue=(-0.1, 0.1))
        self.colours = colours if distort else v2.Identity()

    def __call__(self, annotated: AnnotatedImage) -> tuple[Tensor, Tensor]:
        if annotated.semantic is None:
            raise FreproError("these images have no semantic maps: use data in the layout of ADE20K, or the scenes")
        image = F.to_dtype(F.to_image(annotated.image), torch.float32, scale=True)
        semantic = tv_tensors.Mask(annotated.semantic[None].long())
        if self.train:
            ratio = random.uniform(*self.ratios)
            image, semantic = self.resized(image, ratio), self.resized(semantic, ratio)
            image, semantic = self.cut(image, semantic)
            image, semantic = self.mirror(image, semantic)
            image = self.colours(image)
        else:
            image = self.resized(image, 1)
        image = F.normalize(image, self.mean, self.std)
        if self.train:
            height, width = image.shape[-2:]
            border = [0, 0, self.side - width, self.side - height]
            image, semantic = F.pad(image, border, fill=0), F.pad(semantic, border, fill=IGNORED)
        return image.as_subclass(Tensor), semantic.as_subclass(Tensor)[0]

    def resized(self, picture: Tensor, ratio: float) -> Tensor:
        """Return an image, or a map by nearest neighbours, resized with its aspect ratio kept."""
        height, width = picture.shape[-2:]
        ratio *= min(self.side / min(height, width), self.long / max(height, width))
        least = 1 if self.train else self.LEAST
        sides = (max(least, round(side * ratio)) for side in (height, width))
        return F.resize(picture, [-(-side // self.multiple) * self.multiple for side in sides])

    def cut(self, image: Tensor, semantic: Tensor) -> tuple[Tensor, Tensor]:
        """Return a square crop of both; a side that is shorter than the square is kept whole."""
        height, width = (min(self.side, side) for side in image.shape[-2:])
        if (height, width) == image.shape[-2:]:
            return image, semantic
        for _ in range(self.TRIALS):
            top, left = (random.randint(0, most) for most in (image.shape[-2] - height, image.shape[-1] - width))
            piece = F.crop(semantic, top, left, height, width)
            counts = torch.bincount(piece[piece != IGNORED])
            if counts.sum() > 0 and counts.max() <= self.MOST * counts.sum():
                break
        return F.crop(image, top, left, height, width), piece
