"""Images in the idx files of MNIST and of data sets in its form: Fashion-MNIST, KMNIST and others.

A folder has two files for each split, one of images and one of labels, compressed by gzip or not:

    train-images-idx3-ubyte(.gz)  train-labels-idx1-ubyte(.gz)  t10k-images-idx3-ubyte(.gz)  t10k-labels-idx1-ubyte(.gz)

Some copies are called ``train-images.idx3-ubyte`` and so on. An idx file is a magic number, the length of each
dimension as a big-endian 32-bit integer, and the bytes of the array (http://yann.lecun.com/exdb/mnist, "file format").

Classes are numbered in the order of the labels in the training split. For validation, the last sixth of the training
images of each class can take the place of the test images; the remaining ones are then for training.
"""

import gzip
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from frepro.data.listing import Fault
from frepro.errors import printable
from frepro.store import provenance

REVISION = {"idx files": 1}

# Split -> the files of its images and labels.
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Fingerprint -> name and classes of a data set whose labels stand for something other than the digits.
KNOWN = {
    "8d27bfb1d5c0d0ce": (
        "Fashion-MNIST",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
}
UNSIGNED_BYTES = 0x08  # code of the type of the array's elements, the third byte of the magic number
GZIP = b"\x1f\x8b"
CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Split:
    """The images (N, H, W) and labels (N,) of a split, uint8."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Listing:
    """What is known of a folder without keeping its images in memory.

    Attributes:
        faults: What prevents it from being used; the other attributes are meaningful only if there are none.
        fingerprint: Hash of the uncompressed content of all files.
        name: Name of a data set in ``KNOWN``; ``None`` for others.
        classes: Names of the classes, in the order of their numbers.
        counts: "train", "test", and the two parts of the training images, "fit" and "validation" -> number of images.
        sizes: "train" and "test" -> height and width of the images in pixels.
    """

    faults: tuple[Fault, ...] = ()
    fingerprint: str = ""
    name: str | None = None
    classes: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def is_present(root: Path) -> bool:
    """Return whether a folder has at least one of the files."""
    return any(_exists(_find(root, name)) for names in FILES.values() for name in names)


def read(root: Path) -> tuple[dict[str, Split], list[Fault]]:
    """Return the "train" and "test" splits of a folder, as far as they can be read, and its faults."""
    splits, faults = {}, []
    if missing := [name for names in FILES.values() for name in names if not _exists(_find(root, name))]:
        said = f"{root} has no {', '.join(missing)}: add the missing files of the data set, with or without .gz"
        faults.append(Fault("missing files", missing, printable(said)))
    for split, names in FILES.items():
        arrays = []
        for name, dimensions in zip(names, (3, 1), strict=True):
            path = _find(root, name)
            if not _exists(path):
                continue
            try:
                arrays.append(_array(path, dimensions))
            except (ValueError, EOFError, OSError, zlib.error) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                said = f"{path}: {reason}: copy or download the file again"
                faults.append(Fault("damaged files", [f"{path.name}: {reason}"], printable(said)))
        if len(arrays) == 2:
            splits[split] = Split(*arrays)
            faults += _split_faults(root, split, splits[split])
    if len(splits) == 2 and not faults:
        faults += _label_faults(root, splits)
    return splits, faults


def listing(root: Path) -> Listing:
    """Return the listing of a folder; its files are read again only if they have changed."""
    stamps = []
    for names in FILES.values():
        for name in names:
            path = _find(root, name)
            found = path.stat() if _exists(path) else None
            stamps.append((path.name, found and (found.st_size, found.st_mtime_ns, found.st_ino)))
    return _listing(os.path.realpath(root), tuple(stamps))


@lru_cache(maxsize=16)
def _listing(root: str, stamps: tuple) -> Listing:
    splits, faults = read(Path(root))
    if faults:
        return Listing(tuple(faults))
    train, test = splits["train"], splits["test"]
    fingerprint = provenance.sha256(
        *(
            part
            for each in (train, test)
            for part in (str(each.images.shape), each.images.tobytes(), each.labels.tobytes())
        )
    )
    labels = class_labels(train)
    name, classes = KNOWN.get(fingerprint, (None, tuple(map(str, labels))))
    held = int(held_out(train.labels).sum())
    counts = {"train": len(train.labels), "test": len(test.labels), "fit": len(train.labels) - held, "validation": held}
    sizes = {name: each.images.shape[1:] for name, each in splits.items()}
    return Listing((), fingerprint, name, classes, counts, sizes)


def class_labels(train: Split) -> list[int]:
    """Return the label of each class, in the order of their numbers."""
    return np.unique(train.labels).tolist()


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return which training images are for validation, (N,) bool: of each class the last sixth, but not all."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        count = min(max(1, len(of_class) // 6), len(of_class) - 1)
        held[of_class[len(of_class) - count :]] = True
    return held


def _split_faults(root: Path, split: str, found: Split) -> Iterator[Fault]:
    images, labels = FILES[split]
    if len(found.images) != len(found.labels):
        counts = f"{len(found.images):,} images, but {labels} has {len(found.labels):,} labels"
        said = f"{root}: {images} has {counts}: take both files from the same data set"
        yield Fault("files of different lengths", [f"{images} has {counts}"], printable(said))
    elif not found.images.size:
        size = " x ".join(map(str, found.images.shape[1:]))
        said = f"{len(found.images)} images of {size} pixels"
        yield Fault(
            "splits without images",
            [f"{images} has {said}"],
            printable(f"{root / images} has {said}: use another file"),
        )


def _label_faults(root: Path, splits: dict[str, Split]) -> Iterator[Fault]:
    known, tested = (set(np.unique(splits[split].labels).tolist()) for split in FILES)
    if len(known) == 1:
        said = f"{root} has training images of only one class, {min(known)}, but a classifier needs two: use other data"
        yield Fault("splits of one class", [FILES["train"][1]], printable(said))
    if lone := sorted(tested - known):
        said = f"{root}: no training image has the test label {lone[0]}: take both splits from the same data set"
        yield Fault(
            "classes in only one split", [f"{FILES['test'][1]}: label {label}" for label in lone], printable(said)
        )


def _array(path: Path, dimensions: int) -> np.ndarray:
    """Return the array in an idx file of unsigned bytes.

    Raises:
        OSError, EOFError, zlib.error: The file cannot be read or uncompressed.
        ValueError: It is not such a file, or is shorter or longer than its header says.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
        raise ValueError("it is not a regular file")
    with path.open("rb") as raw:
        is_compressed = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if is_compressed else raw
        expected = bytes((0, 0, UNSIGNED_BYTES, dimensions))
        magic = _read(file, len(expected))
        if magic != expected:
            kind = "images" if dimensions == 3 else "labels"
            raise ValueError(
                f"it begins with {magic.hex() or 'nothing'}, not {expected.hex()} as idx files of {kind} do"
            )
        header = _read(file, 4 * dimensions)
        if len(header) < 4 * dimensions:
            raise ValueError("it ends within its header")
        shape = struct.unpack(f">{dimensions}I", header)
        content = _read(file, prod(shape) + 1)  # one byte more than there should be
    if len(content) != prod(shape):
        found = "more" if len(content) > prod(shape) else f"only {len(content):,}"
        raise ValueError(f"it should have {prod(shape):,} bytes after its header, but has {found}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _read(file: BinaryIO | gzip.GzipFile, count: int) -> bytes:
    """Return at most ``count`` bytes, reserving memory only for what is there: a header may claim any length."""
    content = bytearray()
    while len(content) < count and (part := file.read(min(CHUNK, count - len(content)))):
        content += part
    return bytes(content)


def _find(root: Path, name: str) -> Path:
    """Return the existing file of that name, in any of its spellings; the name itself if there is none."""
    dotted = name.replace("-idx", ".idx")
    return next((path for path in (root / each for each in _spellings(name, dotted)) if _exists(path)), root / name)


def _spellings(*names: str) -> list[str]:
    return [name + suffix for suffix in ("", ".gz") for name in names]


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # unlike Path.exists, accepts a path of any length
