"""From a data set to batches: what a sample looks like depends on seed, epoch and index alone.

Order and augmentation are functions of (seed, epoch, index), not of the state of some generator. So a run that was
stopped goes on with the very samples that it would have seen, and the number of processes or workers changes nothing.
"""

import os
import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform
from torch.utils.data import DataLoader, Dataset, default_collate

from frepro import processes
from frepro.data import compositions
from frepro.data.annotated import DAMAGE, read_image
from frepro.data.listing import Split
from frepro.data.sources import DIGITS_TEST, DIGITS_TRAIN, EMBEDDED, Source
from frepro.errors import DamagedImageError, FreproError, damaged, printable
from frepro.recipes import Classification, Recipe

REVISION = {"image loading": 1}

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
        self.reader = Split.read(Path(folder))

    def __len__(self) -> int:
        return len(self.reader.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = self.reader.images[index]
        return read_image(self.reader.folder / image.path, "RGB"), self.reader.class_to_idx[image.label]


class Read(Dataset):
    """A data set of timm's, whose images that cannot be read are named by their number; timm would pass over some."""

    def __init__(self, images: Dataset, name: str) -> None:
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            if not hasattr(self.images, "reader"):
                return self.images[index]
            file, target = self.images.reader[index]
            with file:
                return Image.open(file).convert("RGB"), target
        except DAMAGE as error:
            raise damaged(f"{index} of {self.name}", error) from error


class Samples(Dataset):
    """Transformed samples, asked for by (epoch, index); index + n length is another draw of the same image.

    Attributes:
        damaged: Where the names of damaged images go, a line each; none stops at the first. In training the next image
            takes the place of a damaged one, in tests it is left out (its sample is none).
    """

    damaged: Path | None = None

    def __init__(self, images: Dataset, transform: Any, seed: int, chosen: list[int], split: str = "train") -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.chosen = chosen
        self.split = split

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, Any] | None:
        epoch, index = key
        item = self._undamaged(index)
        seed_all(SAMPLE, self.seed, epoch, index)
        return None if item is None else self.transformed(item)

    def transformed(self, item: Any) -> tuple[Any, Any]:
        image, target = item
        return self.transform(image.convert("RGB")), target

    def damaged_names(self) -> set[str]:
        """The damaged images that were met so far, by all processes."""
        if self.damaged is None or not self.damaged.exists():
            return set()
        lines = self.damaged.read_text(encoding="utf-8").splitlines()
        return {line for line in lines if line.startswith(f"{self.split}\t")}

    def _undamaged(self, index: int) -> Any:
        for following in range(len(self)):
            try:
                return self.images[self.chosen[(index + following) % len(self)]]
            except DamagedImageError as error:
                if self.damaged is None:
                    raise
                with self.damaged.open("a", encoding="utf-8") as names:  # lines of several processes stay whole
                    names.write(f"{self.split}\t{printable(error.path)}\n")
                if self.split == "test":
                    return None
        raise FreproError(f"every {self.split} image is damaged")


def spread(length: int, split: str, recipe: Recipe) -> list[int]:
    """Numbers of the images that a recipe uses: all, or as many as it says, spread evenly."""
    count = length if recipe.samples is None else min(length, recipe.samples[0 if split == "train" else 1])
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def open_split(source: Source, split: str) -> Dataset:
    """The (PIL image, class number) pairs of "train" or "test"."""
    if source.reader in EMBEDDED:
        return {"digits": Digits, "textured": compositions.Textured, "cues": compositions.Cues}[source.reader](split)
    if source.reader == "folder":
        images, expected = Folder(source.folders[split]), source.train if split == "train" else source.test
        found = len(images), len(images.reader.class_to_idx)
        if found != (expected, source.classes):
            raise FreproError(
                f"{source.folders[split]} has {found[0]} images of {found[1]} classes now and had {expected} of "
                f"{source.classes} just before: let nothing else write into it"
            )
        return images
    try:
        images = create_dataset(source.reader, root=source.root, split="train" if split == "train" else "validation")
    except Exception as error:  # whatever a reader of timm's raises, the cause is what the user named
        raise FreproError(f"timm cannot open {source.reader} at {source.root}: {error}") from error
    return Read(images, f"{source.reader}'s {split} images")


def samples(source: Source, split: str, recipe: Classification, mean: tuple, std: tuple, seed: int) -> Samples:
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
    return Samples(images, transform, seed, spread(len(images), split, recipe), split)


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
        self.updates = length // batch_size
        self.set_part(epoch=0, first=0, last=self.updates)

    def set_part(self, epoch: int, first: int, last: int) -> None:
        """Give the updates of an epoch from ``first`` on, up to ``last``."""
        self.epoch, self.first, self.last = epoch, first, last

    def __len__(self) -> int:
        return (self.last - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        order = np.add.outer(order, self.length * np.arange(self.repeats)).flatten()[: self.length]
        micro_batch = self.batch_size // (self.processes * self.accumulate)
        for micro in range(self.first * self.accumulate, self.last * self.accumulate):
            start = (micro * self.processes + self.rank) * micro_batch
            yield [(self.epoch, int(index)) for index in order[start : start + micro_batch]]


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


def loader(
    dataset: Samples, batches: TrainBatches | TestBatches, workers: int, pin_memory: bool, collate: Any = None
) -> DataLoader:
    """Batches of samples, loaded in so many processes; ``collate`` makes a batch of some, torch's way if none."""
    # Named, since a run that joblib started inherits a start method that DataLoader cannot use.
    start = ("fork" if sys.platform == "linux" else "spawn") if workers else None
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=start,
        worker_init_fn=partial(_begin, os.getpid()),
        collate_fn=partial(_whole, collate=collate or default_collate),
    )


def _begin(parent: int, number: int) -> None:
    """First of all in a process that loads data; torch has it look for its parent only every five seconds."""
    processes.end_with(parent)


def _whole(samples: list[Any], collate: Any) -> Any:
    """A batch of the samples that there are, or none of none."""
    samples = [sample for sample in samples if sample is not None]
    return collate(samples) if samples else None


def count_classes(dataset: Samples) -> int:
    """The number of classes of a data set that does not say it in its layout: the largest label and one."""
    images = dataset.images.images if isinstance(dataset.images, Read) else dataset.images
    targets = getattr(images, "targets", None)
    if targets is None:
        classes = getattr(getattr(images, "reader", images), "class_to_idx", None)
        if not classes:
            raise FreproError("this data set does not tell its classes: give a folder in the layout of ImageNet")
        return len(classes)
    return int(max(targets)) + 1
