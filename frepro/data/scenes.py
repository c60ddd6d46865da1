"""Embedded scenes: bright digits on dimmed photographs, fully annotated.

Digits sometimes overlap slightly. Scenes are composed from scikit-learn's scans and photographs, so that detection,
instance and semantic segmentation run on any machine. A scene is a function of (seed, split, index, size) alone.
Training and test use different scans and different parts of the photographs.
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

SIZE = 128  # pixels per side
SCENES = {"train": SCENES_TRAIN, "test": SCENES_TEST}
CLASSES = [str(digit) for digit in range(10)]
SEMANTIC_CLASSES = ["ground", *CLASSES]

EMPTY = 1 / 32  # share of scenes without a digit
MOST = 4  # maximum number of digits in a scene
SIDES = (0.3, 0.6)  # side of a scan, including a border of one pixel, as a share of the scene's side
VISIBLE = 0.9  # minimum visible share of a digit that others overlap
APART = 0.3  # minimum colour distance of a digit from its background and other digits; black to white is 1.73
TRIALS = 20  # attempts to find a place and a colour that satisfy these two
DIMMED = 0.5  # brightness of a photograph, relative to its own
BRIGHT = (0.6, 1.0)  # red, green and blue of a digit
STROKE = 0.35  # darkness at which a scan's pixel belongs to the digit; 1 is black
EDGE = (0.4, 0.6)  # a pixel whose covered share lies in this range is ignored in the semantic map

SCENE = 3  # first number of a random seed: its purpose
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Placement:
    """One digit of a scene: the index of a scikit-learn scan, its place (pixels), and its RGB colour (0 to 1)."""

    scan: int
    left: int
    top: int
    side: int
    colour: tuple[float, float, float]


class Scenes(Dataset):
    """Annotated scenes of a split; classes are the digits, semantic classes the background and the digits.

    Args:
        split: "train" or "test".
        size: Pixels per side.
        seed: Seed of the scenes.
        length: Number of scenes; a shorter set has the first scenes of a longer one.
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
        """Compose a scene from scratch; indexing returns the cached one instead."""
        picture, placements = self.compose(index)
        semantic = np.zeros((self.size, self.size), dtype=np.uint8)
        visible = np.zeros((len(placements), self.size, self.size), dtype=bool)
        labels = np.array([_scans()[1][placement.scan] for placement in placements], dtype=np.int64)
        for i, placement in enumerate(placements):  # from back to front
            shape = _shape(placement, self.size)
            visible[:i] &= shape < 0.5
            visible[i] = shape >= 0.5
            semantic[visible[i]] = labels[i] + 1
            semantic[(shape > EDGE[0]) & (shape < EDGE[1])] = IGNORED
        masks = torch.from_numpy(visible)
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
        """Return a scene's image (size, size, 3) with values in [0, 1], and its digits from back to front."""
        rng = default_rng((SCENE, self.seed, SPLITS.index(self.split), index))
        picture = _ground(rng, self.split, self.size)
        placements: list[Placement] = []
        whole: list[int] = []  # pixels of each digit before others cover it
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
                    whole.append(int(mask.sum()))
                    visible = np.concatenate([left, mask[None]])
                    break
        return picture, placements


# Every epoch, and every run in the same process, uses the same scenes again.
@lru_cache(sum(SCENES.values()))
def _scene(split: str, size: int, seed: int, index: int) -> AnnotatedImage:
    return Scenes(split, size, seed).annotated(index)


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """Return all scans of 8 x 8 pixels with values in [0, 1], and their digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images / 16, digits.target


@cache
def _photographs(split: str) -> list[np.ndarray]:
    """Return both photographs with values in [0, 1]: left halves for training, right halves for test."""
    from sklearn.datasets import load_sample_images

    return [np.array_split(image, 2, axis=1)[SPLITS.index(split)] for image in load_sample_images().images]


def _ground(rng: Generator, split: str, size: int) -> np.ndarray:
    """Return a crop of a photograph, (size, size, 3) with values in [0, 1]; every second one is mirrored."""
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
    """Return how much of each pixel a digit covers, (size, size): 1 inside, 0 outside, in between at its edge."""
    strokes = Image.fromarray(np.pad(_scans()[0][placement.scan], 1).astype(np.float32))  # with a margin around them
    scan = np.asarray(strokes.resize((placement.side, placement.side), Image.Resampling.BICUBIC))
    shape = np.zeros((size, size))
    rows = slice(placement.top, placement.top + placement.side)
    columns = slice(placement.left, placement.left + placement.side)
    shape[rows, columns] = np.clip(4 * (scan - STROKE) + 0.5, 0, 1)
    return shape
