"""Embedded data that are harder than digits: composed from scikit-learn's scans and photographs, by seed and index.

*textured*
    A digit of one texture on a background of another: gratings of random frequencies, or crops of photographs; a bar
    may hide a part. There are ten classes, the digits. The digit is brighter or darker than its background on average,
    but often by less than the textures vary: a model that filters by frequency sees the shape more clearly.
*cues*
    A digit filled with a grating. In training, its frequency and direction belong to the digit, so both shape and
    texture determine the class. ``conflicts`` combines the shape of one class with the texture of another, as Geirhos
    et al. (ICLR 2019) do with photographs: the cue that a model follows is the one that it has learned.

Training and test use different scans and different parts of the photographs. Parts of the training images, "fit" and
"validation", also use different scans; recipes are chosen with these two.
"""

from functools import cache, lru_cache

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image
from torch.utils.data import Dataset

from frepro.data.sources import COMPOSED, DIGITS_FIT, DIGITS_TEST, DIGITS_TRAIN

REVISION = {"composed pictures": 2}

SIZE = 64  # pixels per side

# Standard deviations for values in [0, 1]: within a texture, and of the difference between the means of two textures,
# which is at least ``LEAST_APART``.
CONTRAST = (0.08, 0.18)
LEAST_APART, MEANS_APART = 0.06, 0.2
FREQUENCIES = (4.0, 16.0)  # of the gratings in a textured image, in cycles per image
BARS, HIDDEN = 0.5, 0.2  # share of images with a bar in front, and the largest share of the image that it covers

# Textures of the ten classes of cues: cycles per image, and direction as a fraction of half a turn.
CUES = [(frequency, direction / 5) for frequency in (6.0, 10.0) for direction in range(5)]

TEXTURED, CUE, CONFLICT = range(3)  # first number of a random seed: its purpose
# Part -> its scans. "fit" and "validation" are parts of "train".
SLICES = {
    "train": slice(0, DIGITS_TRAIN),
    "test": slice(DIGITS_TRAIN, DIGITS_TRAIN + DIGITS_TEST),
    "fit": slice(0, DIGITS_FIT),
    "validation": slice(DIGITS_FIT, DIGITS_TRAIN),
}
PARTS = tuple(SLICES)


class Textured(Dataset):
    """(grey PIL image, digit) of a part; all scans occur equally often, in a new composition each time."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.length = COMPOSED[part]
        scans, targets = _scans(part)
        self.targets = [int(targets[index % len(scans)]) for index in range(self.length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return _textured(self.part, index), self.targets[index]


class Cues(Dataset):
    """(grey PIL image, digit) of a part, with the texture that belongs to the digit."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.targets = _scans(part)[1].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return _cue(self.part, index), self.targets[index]


def digit_masks(part: str, count: int) -> np.ndarray:
    """Return where the digit is in the first images of ``Textured``: (count, SIZE, SIZE), 1 inside and 0 outside."""
    return np.stack([_shape(_generator(part, index), part, index) for index in range(count)])


def _generator(part: str, index: int) -> Generator:
    return default_rng((TEXTURED, PARTS.index(part), index))


# Every epoch, and every run in the same process, uses the same images again.
@lru_cache(COMPOSED["train"] + COMPOSED["test"])
def _textured(part: str, index: int) -> Image.Image:
    rng = _generator(part, index)
    shape = _shape(rng, part, index)
    figure, ground, bar = (_texture(rng, part) for _ in range(3))
    apart = rng.choice([-1, 1]) * (LEAST_APART + abs(rng.normal(0, MEANS_APART)))
    picture = shape * figure + (1 - shape) * ground + apart * (shape - shape.mean())
    return _image(np.where(_bar(rng), bar, picture) if rng.random() < BARS else picture)


@lru_cache(DIGITS_TRAIN + DIGITS_TEST)
def _cue(part: str, index: int) -> Image.Image:
    rng = default_rng((CUE, PARTS.index(part), index))
    return _image(_cued(rng, part, index, int(_scans(part)[1][index])))


def conflicts(count: int) -> tuple[np.ndarray, list[int], list[int]]:
    """Return images whose shape and texture belong to different classes of ``Cues``, from scans not used in training.

    Returns:
        Images (count, SIZE, SIZE) with values in [0, 1], the class of each shape, and the class of each texture.
    """
    _, targets = _scans("test")
    pictures, shapes, textures = [], [], []
    for index in range(count):
        rng = default_rng((CONFLICT, index))
        shape = int(targets[index % len(targets)])
        texture = (shape + int(rng.integers(1, len(CUES)))) % len(CUES)
        pictures.append(_cued(rng, "test", index, texture))
        shapes.append(shape)
        textures.append(texture)
    return np.stack(pictures).clip(0, 1), shapes, textures


def grating(size: int, frequency: float, direction: float, phase: float) -> np.ndarray:
    """Return a wave of mean 0 and variance 1, (size, size).

    Args:
        frequency: Cycles per image.
        direction: Direction of the wave, in half turns: 0 across the columns, 0.5 across the rows.
        phase: Phase, in turns.
    """
    along = np.arange(size) / size
    x, y = np.cos(np.pi * direction) * along[None, :], np.sin(np.pi * direction) * along[:, None]
    return np.sqrt(2) * np.sin(2 * np.pi * (frequency * (x + y) + phase))


def _cued(rng: Generator, part: str, index: int, texture: int) -> np.ndarray:
    shape = _shape(rng, part, index)
    frequency, direction = CUES[texture]
    wave = grating(SIZE, frequency + rng.normal(0, 0.2), direction + rng.normal(0, 0.02), rng.random())
    return 0.5 + shape * wave * rng.uniform(*CONTRAST) + (1 - shape) * rng.normal(0, 0.1)


@cache
def _scans(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scans of 8 x 8 pixels with values in [0, 1], and their digits; split as in ``loading.Digits``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images[SLICES[part]] / 16, digits.target[SLICES[part]]


@cache
def _photographs(part: str) -> list[np.ndarray]:
    """Return the brightness of both photographs in [0, 1]: left halves for training, right halves for test."""
    from sklearn.datasets import load_sample_images

    whole = [np.asarray(Image.fromarray(image).convert("L")) / 255 for image in load_sample_images().images]
    return [np.array_split(image, 2, axis=1)[int(part == "test")] for image in whole]


def _shape(rng: Generator, part: str, index: int) -> np.ndarray:
    """Return a mask of a scan's digit at a random place and size: 1 inside, 0 outside, in between at its edge."""
    scans, _ = _scans(part)
    side = int(rng.integers(round(0.75 * SIZE), SIZE + 1))
    left, top = rng.integers(0, SIZE - side + 1, 2)
    scan = Image.fromarray(scans[index % len(scans)].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    shape = np.zeros((SIZE, SIZE))
    shape[top : top + side, left : left + side] = np.clip(4 * (np.asarray(scan) - 0.4) + 0.5, 0, 1)
    return shape


def _texture(rng: Generator, part: str) -> np.ndarray:
    """Return a grating or a crop of a photograph, with mean 0.5 and a random contrast."""
    if rng.random() < 0.5:
        pattern = grating(SIZE, rng.uniform(*FREQUENCIES), rng.random(), rng.random())
    else:
        image = _photographs(part)[int(rng.integers(2))]
        side = int(rng.integers(SIZE, 4 * SIZE))
        top, left = rng.integers(0, np.array(image.shape) - side + 1)
        piece = Image.fromarray(image[top : top + side, left : left + side].astype(np.float32))
        pattern = np.asarray(piece.resize((SIZE, SIZE), Image.Resampling.BOX))
        pattern = (pattern - pattern.mean()) / max(pattern.std(), 0.02)  # the sky has hardly any contrast
    return 0.5 + rng.uniform(*CONTRAST) * pattern


def _bar(rng: Generator) -> np.ndarray:
    """Return a mask of what stands in front: a horizontal or vertical bar of random width across the image."""
    width = int(rng.integers(0, round(HIDDEN * SIZE) + 1))
    start = int(rng.integers(0, SIZE - width + 1))
    hidden = np.zeros((SIZE, SIZE), dtype=bool)
    hidden[start : start + width] = True
    return hidden if rng.random() < 0.5 else hidden.T


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(255 * picture.clip(0, 1)).astype(np.uint8))
