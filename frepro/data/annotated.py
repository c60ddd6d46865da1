"""An image with its annotations: the common sample type of scenes, COCO and ADE20K."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from frepro.data.listing import check_regular
from frepro.errors import damaged

IGNORED = 255  # in a semantic map: a pixel of no class, which counts neither in the loss nor in the metric

# The errors that Pillow raises for damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# What a file may contain, whatever its suffix. Pillow reads some other formats by starting programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# Pillow's modes of 16 bits and more, which it converts to 8 by clipping: nearly all pixels would be white.
DEEP = ("I", "F")


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image of H x W pixels with N objects; N may be 0.

    Classes count from 0 without gaps, whatever numbers the files use. Pixel (x, y) is the square from (x, y) to
    (x + 1, y + 1), so a mask of one pixel has a box of width and height 1.

    Attributes:
        image: RGB image.
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels, with positive width and height.
        labels: (N,) int64, the objects' classes.
        masks: (N, H, W) bool, the visible part of each object; ``None`` if they were not asked for.
        areas: (N,) float32, area of each object in pixels; COCO's metrics use it to tell small, medium and large
            objects.
        crowd: (N,) bool, whether an object is a region full of objects (COCO's iscrowd), which is not used in training.
        semantic: (H, W) uint8, the class of every pixel, 255 where it is ignored; ``None`` if the data have no such
            map.
        image_id: Number of the image within its split.
    """

    image: Image.Image
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    areas: Tensor
    crowd: Tensor
    semantic: Tensor | None
    image_id: int


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the smallest boxes that contain the masks, each of which has a pixel; (N, H, W) bool to (N, 4) float32."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).squeeze(1)
    return boxes


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; its pixels are not decoded yet.

    Raises:
        FileNotFoundError: It is missing.
        OSError, ...: One of ``DAMAGE``.
    """
    check_regular(path)
    with Image.open(path, formats=FORMATS) as image:
        if image.mode.startswith(DEEP):
            raise OSError(f"it has more than 8 bits per pixel (Pillow's mode {image.mode}): convert it to 8")
        yield image


def read_image(path: Path, mode: str | None = None) -> Image.Image:
    """Return a decoded image file, converted to a Pillow mode such as "RGB"; ``None`` keeps its mode.

    Raises:
        DamagedImageError: The file is missing or damaged, or has more than 8 bits per pixel and channel.
    """
    try:
        with opened(path) as image:
            image.load()
            return image if mode is None else image.convert(mode)
    except FileNotFoundError:
        raise damaged(path, "it is missing; `frepro data check` lists all missing files") from None
    except DAMAGE as error:
        raise damaged(path, error) from error
