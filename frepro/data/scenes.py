"""Embedded scenes: bright digits on dimmed photographs, with all annotations.

One is sometimes a little in front of another. They are composed from scikit-learn's scans and photographs, so that
detection, instance and semantic segmentation run on any machine. A scene is a function of (seed, split, index, size)
alone. The scans and the parts of the photographs that training shows are not those of the test.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.random import Generator, default_rng
from PIL import Image
from torch.utils.data import Dataset

from frepro.data.annotated import IGNORED, AnnotatedImage, tight_boxes
from frepro.data.sources import DIGITS_TEST, DIGITS_TRAIN, SCENES_TEST, SCENES_TRAIN

REVISION = {"scenes": 1}

SIZE = 128  # pixels of a side
SCENES = {"train": SCENES_TRAIN, "test": SCENES_TEST}
CLASSES = [str(digit) for digit in range(10)]
SEMANTIC_CLASSES = ["ground", *CLASSES]

EMPTY = 1 / 32  # share of scenes without a digit
MOST = 4  # digits in a scene
SIDES = (0.3, 0.6)  # of a scan with a border of one of its pixels, as shares of the scene's side
VISIBLE = 0.9  # least share of a digit that those in front of it leave to be seen
APART = 0.3  # least distance of a digit's colour from its ground and from other digits; black and white are 1.73 apart
TRIALS = 20  # for a place and a colour that keep these two
DIMMED = 0.5  # brightness of a photograph, relative to its own
BRIGHT = (0.6, 1.0)  # red, green and blue of a digit
STROKE = 0.35  # darkness of a scan from which on a pixel is of the digit; 1 is black
EDGE = (0.4, 0.6)  # a pixel that a digit covers by a share between these is ignored in the semantic map

SCENE = 3  # what random numbers are for
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Placement:
    """One digit of a scene: which of scikit-learn's scans, where (pixels), and in which RGB colour (0 to 1)."""

    scan: int
    left: int
    top: int
    side: int
    colour: tuple[float, float, float]


class Scenes(Dataset):
    """Annotated scenes of a split; classes are the digits, semantic classes the ground and the digits.

    Args:
        split: "train" or "test".
        size: Pixels of a side.
        seed: Another one gives other scenes.
        length: How many; those of a shorter set are the first of a longer one.
    """

    classes = CLASSES
    semantic_classes = SEMANTIC_CLASSES

    def __init__(self, split: str, size: int = SIZE, seed: int = 0, length: int | None = None) -> None:
        self.split, self.size, self.seed = split, size, seed
        self.length = SCENES[split] if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> AnnotatedImage:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return _scene(self.split, self.size, self.seed, index)

    def annotated(self, index: int) -> AnnotatedImage:
        """A scene composed anew, where an index gives the one that was composed before."""
        picture, placements = self.compose(index)
        semantic = np.zeros((self.size, self.size), dtype=np.uint8)
        masks = np.zeros((len(placements), self.size, self.size), dtype=bool)
        labels = np.array([_scans()[1][placement.scan] for placement in placements], dtype=np.int64)
        for i, placement in enumerate(placements):  # from back to front
            shape = _shape(placement, self.size)
            masks[:i] &= shape < 0.5
            masks[i] = shape >= 0.5
            semantic[masks[i]] = labels[i] + 1
            semantic[(shape > EDGE[0]) & (shape < EDGE[1])] = IGNORED
        masks = torch.from_numpy(masks)
        return AnnotatedImage(
            image=Image.fromarray(np.round(255 * picture).astype(np.uint8)),
            boxes=tight_boxes(masks),
            labels=torch.from_numpy(labels),
            masks=masks,
            areas=masks.sum((1, 2)).float(),
            crowd=torch.zeros(len(masks), dtype=torch.bool),
            semantic=torch.from_numpy(semantic),
            image_id=index,
        )

    def compose(self, index: int) -> tuple[np.ndarray, list[Placement]]:
        """A scene's picture (size, size, 3) with values in [0, 1], and its digits from back to front."""
        rng = default_rng((SCENE, self.seed, SPLITS.index(self.split), index))
        picture = _ground(rng, self.split, self.size)
        placements, whole = [], []
        visible = np.zeros((0, self.size, self.size), dtype=bool)
        count = 0 if rng.random() < EMPTY else int(rng.integers(1, MOST + 1))
        for _ in range(count):
            for _ in range(TRIALS):
                placement = _placement(rng, self.split, self.size)
                shape = _shape(placement, self.size)
                mask = shape >= 0.5
                left = visible & ~mask
                shows = all(left.sum((1, 2)) >= VISIBLE * np.array(whole))
                others = np.array([picture[mask].mean(0), *(each.colour for each in placements)])
                if shows and (np.linalg.norm(others - placement.colour, axis=1) >= APART).all():
                    picture += shape[..., None] * (np.array(placement.colour) - picture)
                    placements.append(placement)
                    whole.append(mask.sum())
                    visible = np.concatenate([left, mask[None]])
                    break
        return picture, placements


# Every epoch, and every run of a process, shows the same ones again.
@lru_cache(sum(SCENES.values()))
def _scene(split: str, size: int, seed: int, index: int) -> AnnotatedImage:
    return Scenes(split, size, seed).annotated(index)


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans of 8 x 8 pixels with values in [0, 1], and their digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images / 16, digits.target


@cache
def _photographs(split: str) -> list[np.ndarray]:
    """Both photographs in [0, 1]: their left halves train, their right halves test."""
    from sklearn.datasets import load_sample_images

    return [np.array_split(image, 2, axis=1)[SPLITS.index(split)] for image in load_sample_images().images]


def _ground(rng: Generator, split: str, size: int) -> np.ndarray:
    """A piece of a photograph, (size, size, 3) with values in [0, 1]; every second one is mirrored."""
    image = _photographs(split)[int(rng.integers(2))]
    side = int(rng.integers(96, min(image.shape[:2]) + 1))
    top, left = rng.integers(0, np.array(image.shape[:2]) - side + 1)
    piece = Image.fromarray(image[top : top + side, left : left + side])
    picture = DIMMED * np.asarray(piece.resize((size, size), Image.Resampling.BILINEAR)) / 255
    return picture[:, ::-1].copy() if rng.random() < 0.5 else picture


def _placement(rng: Generator, split: str, size: int) -> Placement:
    first, count = (0, DIGITS_TRAIN) if split == "train" else (DIGITS_TRAIN, DIGITS_TEST)
    side = int(rng.integers(round(SIDES[0] * size), round(SIDES[1] * size) + 1))
    left, top = rng.integers(0, size - side + 1, 2).tolist()
    return Placement(first + int(rng.integers(count)), left, top, side, tuple(rng.uniform(*BRIGHT, 3).tolist()))


def _shape(placement: Placement, size: int) -> np.ndarray:
    """How far a digit covers each pixel, (size, size): 1 inside, 0 outside, between them at its edge."""
    scan = Image.fromarray(np.pad(_scans()[0][placement.scan], 1).astype(np.float32))  # strokes end within
    scan = np.asarray(scan.resize((placement.side, placement.side), Image.Resampling.BICUBIC))
    shape = np.zeros((size, size))
    rows = slice(placement.top, placement.top + placement.side)
    columns = slice(placement.left, placement.left + placement.side)
    shape[rows, columns] = np.clip(4 * (scan - STROKE) + 0.5, 0, 1)
    return shape
