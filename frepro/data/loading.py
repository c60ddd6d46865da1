"""From a data set to batches: what a sample looks like depends on seed, epoch and index alone.

Order and augmentation are functions of (seed, epoch, index), not of the state of some generator. So a run that was
stopped goes on with the very samples that it would have seen, and the number of processes or workers changes nothing.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform
from timm.data.readers import create_reader
from torch.utils.data import DataLoader, Dataset

from frepro.data import compositions
from frepro.data.sources import DIGITS_TEST, DIGITS_TRAIN, EMBEDDED, Source
from frepro.errors import FreproError
from frepro.recipes import Recipe

# What a seed is for; the first of its numbers, so that the streams of one run have nothing in common.
MODEL, SAMPLE, STEP = 1, 2, 3


def seed_all(*numbers: int) -> None:
    """Seed python, numpy and torch with a hash of some whole numbers, such as (SAMPLE, seed, epoch, index)."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Digits(Dataset):
    """scikit-learn's digits: 1,797 scans of 8 x 8 pixels (UCI, "Optical Recognition of Handwritten Digits")."""

    def __init__(self, split: str) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        part = slice(0, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, DIGITS_TRAIN + DIGITS_TEST)
        self.images = np.round(digits.images[part] * (255 / 16)).astype(np.uint8)  # scans have 17 levels
        self.targets = digits.target[part].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), self.targets[index]


class Folder(Dataset):
    """A folder with a folder of images for each class; classes are numbered in the order of their names."""

    def __init__(self, folder: str) -> None:
        # timm's own ImageDataset passes over damaged files in silence; we read with its reader and name them.
        self.reader = create_reader("", root=folder)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, target = self.reader[index]
        with file:
            try:
                return Image.open(file).convert("RGB"), target
            except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for the kinds of damage it knows
                path = Path(self.reader.filename(index, absolute=True))
                raise FreproError(f"damaged image {path}: {error}: replace or remove the file") from error


class Samples(Dataset):
    """Transformed samples, asked for by (epoch, index); index + n length is another draw of the same image."""

    def __init__(self, images: Dataset, transform: Any, seed: int, chosen: list[int]) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, index = key
        image, target = self.images[self.chosen[index % len(self)]]
        seed_all(SAMPLE, self.seed, epoch, index)
        return self.transform(image.convert("RGB")), target


def open_split(source: Source, split: str) -> Dataset:
    """The (PIL image, class number) pairs of "train" or "test"."""
    if source.reader in EMBEDDED:
        return {"digits": Digits, "textured": compositions.Textured, "cues": compositions.Cues}[source.reader](split)
    if source.reader == "folder":
        images, expected = Folder(source.folders[split]), source.train if split == "train" else source.test
        if len(images) != expected:
            raise FreproError(f"{source.folders[split]} has {len(images)} images now and had {expected} just before")
        return images
    try:
        return create_dataset(source.reader, root=source.root, split="train" if split == "train" else "validation")
    except Exception as error:  # whatever a reader of timm's raises, the cause is what the user named
        raise FreproError(f"timm cannot open {source.reader} at {source.root}: {error}") from error


def samples(source: Source, split: str, recipe: Recipe, mean: tuple, std: tuple, seed: int) -> Samples:
    """Samples of "train" (augmented) or "test" (centre crop), as the recipe has them."""
    if split == "train":
        transform = create_transform(
            recipe.img_size,
            is_training=True,
            scale=recipe.scale,
            hflip=recipe.hflip,
            color_jitter=None,
            auto_augment=recipe.auto_augment,
            interpolation=recipe.interpolation,
            re_prob=recipe.reprob,
            re_mode="pixel",
            mean=mean,
            std=std,
        )
    else:
        transform = create_transform(
            recipe.img_size, is_training=False, interpolation="bicubic", crop_pct=recipe.crop_pct, mean=mean, std=std
        )
    images = open_split(source, split)
    count = len(images)
    if recipe.samples is not None:
        count = min(count, recipe.samples[0 if split == "train" else 1])
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int).tolist()
    return Samples(images, transform, seed, chosen)


class TrainBatches:
    """Batches of (epoch, index) for one process: in each update, its share of ``batch_size`` shuffled samples.

    An update's samples are cut into ``processes`` x ``accumulate`` pieces of equal size; a rest of the epoch that does
    not fill a batch is left out, another one in each epoch. With ``repeats``, each image comes so many times in a row,
    as index, index + length, ..., in an epoch of the same length.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int, processes: int, accumulate: int, repeats: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.processes, self.accumulate = rank, processes, accumulate
        self.repeats = repeats
        self.epoch = 0
        self.updates = length // batch_size

    def __len__(self) -> int:
        return self.updates * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        order = np.add.outer(order, self.length * np.arange(self.repeats)).flatten()[: self.length]
        piece = self.batch_size // (self.processes * self.accumulate)
        for micro in range(len(self)):
            start = (micro * self.processes + self.rank) * piece
            yield [(self.epoch, int(index)) for index in order[start : start + piece]]


class TestBatches:
    """Batches of (0, index) for one process: every sample once over all processes, none twice."""

    __test__ = False  # no test for pytest, though named like one

    def __init__(self, length: int, batch_size: int, rank: int, processes: int) -> None:
        self.indices = range(rank, length, processes)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


def loader(dataset: Samples, batches: TrainBatches | TestBatches, workers: int, pin_memory: bool) -> DataLoader:
    # Named, since a run that joblib started inherits a start method that DataLoader cannot use.
    start = ("fork" if sys.platform == "linux" else "spawn") if workers else None
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin_memory, multiprocessing_context=start
    )


def count_classes(dataset: Samples) -> int:
    """The number of classes of a data set that does not say it in its layout: the largest label and one."""
    images = dataset.images
    targets = getattr(images, "targets", None)
    if targets is None:
        classes = getattr(getattr(images, "reader", images), "class_to_idx", None)
        if not classes:
            raise FreproError("this data set does not tell its classes: give a folder in the layout of ImageNet")
        return len(classes)
    return int(max(targets)) + 1
