"""An image with what is in it: the one kind of sample that scenes, COCO and ADE20K give."""

import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from frepro.errors import damaged

IGNORED = 255  # in a semantic map: belongs to no class, and counts neither in loss nor in metric

# What Pillow raises for the kinds of damage that it knows.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image of H x W pixels with N objects; N may be 0.

    Classes count from 0 without gaps, whatever numbers the files use. Pixel (x, y) is the square from (x, y) to
    (x + 1, y + 1), so that a mask of one pixel has a box of width and height 1.

    Attributes:
        image: RGB picture.
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels; width and height are over 0.
        labels: (N,) int64, the objects' classes.
        masks: (N, H, W) bool, the part of each object that is to be seen.
        areas: (N,) float32, pixels of each object; by them COCO's metrics call it small, medium or large.
        crowd: (N,) bool, whether it is a region full of objects (COCO's iscrowd), which is no example to learn from.
        semantic: (H, W) uint8, the class of every pixel, 255 where it is ignored; none where the data have no such map.
        image_id: Number of the image within its split.
    """

    image: Image.Image
    boxes: Tensor
    labels: Tensor
    masks: Tensor
    areas: Tensor
    crowd: Tensor
    semantic: Tensor | None
    image_id: int


def tight_boxes(masks: Tensor) -> Tensor:
    """The smallest boxes that hold the masks; (N, H, W) bool to (N, 4) float32. Every mask has a pixel."""
    boxes = torch.zeros(len(masks), 4)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).squeeze(1)
    return boxes


def check_regular(path: Path) -> None:
    """Raise OSError for what is no regular file; to open a pipe would wait for somebody to write into it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")


def read_image(path: Path, mode: str | None = None) -> Image.Image:
    """A decoded image file, converted to a mode of Pillow's such as "RGB", or as it is.

    Raises:
        DamagedImageError: The file is missing or damaged.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            image.load()
            return image if mode is None else image.convert(mode)
    except FileNotFoundError:
        raise damaged(path, "it is missing; `frepro data check` lists what else is") from None
    except DAMAGE as error:
        raise damaged(path, error) from error
