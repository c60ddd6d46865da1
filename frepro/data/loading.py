"""From a data set to batches. A sample depends on seed, epoch and index alone.

Order and augmentation are functions of (seed, epoch, index), not of the state of a generator. A resumed run therefore
sees exactly the samples that it would have seen, and the number of processes or workers makes no difference.
"""

import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform
from torch.utils.data import DataLoader, Dataset, default_collate

from frepro import processes
from frepro.data import compositions, idx, lists
from frepro.data.annotated import DAMAGE, read_image
from frepro.data.listing import Split
from frepro.data.sources import DIGITS_TEST, DIGITS_TRAIN, EMBEDDED, IDX, Source, locate
from frepro.errors import DamagedImageError, FreproError, damaged, printable
from frepro.recipes import Classification, Recipe

REVISION = {"image loading": 1}

# The first number of each seed is its purpose, so that the random streams of a run are independent.
MODEL, SAMPLE, STEP = 1, 2, 3


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and torch with a hash of integers such as (SAMPLE, seed, epoch, index)."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Images(Protocol):
    """A data set whose length is known."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


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
    """A folder with one subfolder of images per class; classes are numbered in the order of their names."""

    def __init__(self, folder: str) -> None:
        self.reader = Split.read(Path(folder))

    def __len__(self) -> int:
        return len(self.reader.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = self.reader.images[index]
        return read_image(self.reader.folder / image.path, "RGB"), self.reader.class_to_idx[image.label]


class Listed(Folder):
    """Images of one split of a list, which may lie anywhere below its folder."""

    def __init__(self, split: Split) -> None:
        self.reader = split


class IdxImages(Dataset):
    """A part of a folder with MNIST's idx files: "train", "test", or "fit" and "validation", which make up "train".

    Attributes:
        targets: Class numbers of all images.

    Raises:
        FreproError: The files cannot be used.
    """

    def __init__(self, root: Path, part: str) -> None:
        splits, faults = idx.read(root)
        if faults:
            raise FreproError(faults[0].said)
        chosen = splits["test" if part == "test" else "train"]
        held = idx.held_out(splits["train"].labels)
        kept = {"fit": ~held, "validation": held}.get(part, slice(None))
        self.images = chosen.images[kept]
        self.targets = np.searchsorted(idx.class_labels(splits["train"]), chosen.labels[kept]).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), self.targets[index]


class Read(Dataset):
    """A data set of timm's whose errors give the index of an unreadable image; timm would skip some silently."""

    def __init__(self, images: Images, name: str) -> None:
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
    """Transformed samples, indexed by (epoch, index); index + n * length is another draw of the same image.

    Attributes:
        damaged: File that the names of damaged images are added to, one per line; ``None`` means that the first one is
            an error. In training, the next image replaces a damaged one; in tests, it is left out (its sample is
            ``None``).
    """

    damaged: Path | None = None

    def __init__(self, images: Images, transform: Any, seed: int, chosen: list[int], split: str = "train") -> None:
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
        """Return the damaged images that all processes have found so far."""
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
                with self.damaged.open("a", encoding="utf-8") as names:  # keeps the lines of all processes intact
                    names.write(f"{self.split}\t{printable(error.path)}\n")
                if self.split == "test":
                    return None
        raise FreproError(f"every {self.split} image is damaged")


def spread(length: int, split: str, recipe: Recipe) -> list[int]:
    """Return the indices of the images that a recipe uses: all, or the number that it gives, spread evenly."""
    count = length if recipe.samples is None else min(length, recipe.samples[0 if split == "train" else 1])
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def open_split(source: Source, split: str) -> Images:
    """Return the (PIL image, class number) pairs of "train" or "test"."""
    if source.reader in EMBEDDED:
        embedded: dict[str, Callable[[str], Images]] = {
            "digits": Digits,
            "textured": compositions.Textured,
            "textured-validation": lambda split: compositions.Textured({"train": "fit", "test": "validation"}[split]),
            "cues": compositions.Cues,
        }
        return embedded[source.reader](split)
    if source.reader in IDX:
        assert source.root is not None
        if locate(f"{source.reader}:{source.root}") != source:
            raise FreproError(f"the files in {source.root} have just changed: stop whatever writes to them")
        return IdxImages(Path(source.root), IDX[source.reader][("train", "test").index(split)])
    if source.reader == "list":
        assert source.root is not None
        share = float(source.folders["split"]) if source.folders else None
        seed = int(source.folders.get("seed", 0))
        if locate(source.root, split=share, split_seed=seed).fingerprint != source.fingerprint:
            raise FreproError(f"the images of {source.root} have just changed: stop whatever writes to them")
        return Listed(lists.splits(Path(source.root), share, seed)[split])
    if source.reader == "folder":
        if split == "train":
            source.check_can_train()
        images, expected = Folder(source.folders[split]), source.train if split == "train" else source.test
        found = len(images), len(images.reader.class_to_idx)
        if found != (expected, source.classes):
            raise FreproError(
                f"{source.folders[split]} now has {found[0]} images of {found[1]} classes, but had {expected} of "
                f"{source.classes} just before: stop whatever writes to it"
            )
        return images
    try:
        images = create_dataset(source.reader, root=source.root, split="train" if split == "train" else "validation")
    except Exception as error:  # whatever timm's readers raise, the cause is the user's input
        raise FreproError(f"timm cannot open {source.reader} at {source.root}: {error}") from error
    return Read(images, f"{source.reader}'s {split} images")


def samples(source: Source, split: str, recipe: Classification, mean: tuple, std: tuple, seed: int) -> Samples:
    """Return the samples of "train" (augmented) or "test" (centre crop), as the recipe specifies."""
    if split == "train":
        transform = create_transform(
            recipe.img_size,
            is_training=True,
            scale=recipe.scale,
            hflip=recipe.hflip,
            color_jitter=None,  # type: ignore[arg-type]  # timm's annotation lacks None, which means no jitter
            auto_augment=recipe.auto_augment,
            interpolation=recipe.interpolation,
            re_prob=recipe.reprob,
            re_mode="pixel",
            mean=mean,
            std=std,
        )
    else:
        transform = create_transform(
            recipe.img_size,
            is_training=False,
            interpolation="bicubic" if recipe.interpolation == "random" else recipe.interpolation,
            crop_pct=recipe.crop_pct,
            mean=mean,
            std=std,
        )
    images = open_split(source, split)
    return Samples(images, transform, seed, spread(len(images), split, recipe), split)


class TrainBatches:
    """Batches of (epoch, index) for one process: its share of ``batch_size`` shuffled samples in each optimizer step.

    The samples of a step are split into ``processes`` x ``accumulate`` micro-batches of equal size. What remains of an
    epoch and does not fill a batch is left out, a different remainder in each epoch. With ``repeats``, each image comes
    that many times in a row, as index, index + length, ..., in an epoch of the same length.
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
        """Select the steps of an epoch from ``first`` up to, but not including, ``last``."""
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
    """Batches of (0, index) for one process; together, all processes see every sample exactly once."""

    __test__ = False  # keeps pytest from collecting it

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
    """Return batches of samples, loaded by ``workers`` processes; ``collate`` makes a batch, by default as in torch."""
    # Set explicitly, since a run started by joblib inherits a start method that DataLoader cannot use.
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
    """End a data-loading process with its parent at once; torch checks for the parent only every five seconds."""
    processes.end_with(parent)


def _whole(samples: list[Any], collate: Any) -> Any:
    """Return a batch of the samples that are not ``None``; ``None`` if there are none."""
    samples = [sample for sample in samples if sample is not None]
    return collate(samples) if samples else None


def class_names(dataset: Samples, count: int) -> list[str]:
    """Return the names of a data set's classes; their numbers if it does not name them."""
    images = dataset.images.images if isinstance(dataset.images, Read) else dataset.images
    named = getattr(getattr(images, "reader", images), "class_to_idx", None) or {}
    names = [str(name) for name in sorted(named, key=named.__getitem__)]
    return names if len(names) == count else [str(number) for number in range(count)]


def count_classes(dataset: Samples) -> int:
    """Return the number of classes: that of the layout or, if the data set has targets, the largest plus one."""
    images = dataset.images.images if isinstance(dataset.images, Read) else dataset.images
    targets = getattr(images, "targets", None)
    if targets is None:
        classes = getattr(getattr(images, "reader", images), "class_to_idx", None)
        if not classes:
            raise FreproError("this data set does not list its classes: give a folder in the layout of ImageNet")
        return len(classes)
    return int(max(targets)) + 1
