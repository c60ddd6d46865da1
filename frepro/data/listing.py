"""The files that belong to a data set. Fingerprints, counts, ``data.check`` and the readers all use these listings.

Hidden names (``.DS_Store``, ``._x.jpg``, ``.ipynb_checkpoints/``) are ignored. Names are compared as Unicode NFC, so a
copy made on a Mac is the same data set. The order depends on names alone, not on the file system.

In the layout of ImageNet, as in torchvision's ImageFolder, an image belongs to the class named by the topmost folder
below its split, at whatever depth it lies. Classes are numbered in the order of their names::

    train/<class>/**/<image>        val/<class>/**/<image>

Images directly in val/ belong to the classes that a list names (``data.label_lists``); the data set is then the same as
with class folders. Folders of Kaggle's download are found below its root. val/ alone is enough to evaluate.
"""

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from frepro.data import label_lists
from frepro.errors import FreproError, printable

# 2: classes are numbered by name in the same order everywhere, instead of by timm's natural sort.
REVISION = {"image folders": 2}

IMAGES = (".png", ".jpg", ".jpeg")
TRAIN_FOLDER, TEST_FOLDERS = "train", ("val", "valid", "validation", "test")
# Tiny-ImageNet's table with the classes of the images in val/images/.
LABEL_TABLE = "val_annotations.txt"


class File(NamedTuple):
    """A file of a data set: its path below the listed folder, with slashes, and its size in bytes.

    The size is -1 if it is not a regular file: a dangling link, a pipe, a socket.
    """

    path: str
    size: int


class Image(NamedTuple):
    """An image of a split: its path below the split's folder, its size as in ``File``, and the name of its class."""

    path: str
    size: int
    label: str


class Fault(NamedTuple):
    """A fault that prevents a folder from being used as a data set.

    Attributes:
        kind: The kind of fault.
        examples: All places where it occurs, relative to the root.
        said: The fault as an error message, with the remedy.
    """

    kind: str
    examples: list[str]
    said: str


@dataclass(frozen=True)
class Split:
    """The images of one split, sorted by class and path.

    Attributes:
        folder: train/ or one of ``TEST_FOLDERS``.
        images: All images that have a class.
        empty: Class folders without images.
        outside: Images outside class folders.
        others: Suffix -> number of files in class folders that are not read.
        listed: List of labels that names the classes of images directly in the folder, if there is one.
    """

    folder: Path
    images: list[Image] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    listed: Path | None = None

    @classmethod
    def read(cls, folder: Path) -> "Split":
        """List a split's folder.

        Raises:
            FreproError: A folder, or a list of labels, cannot be read.
        """
        entries = _entries(str(folder))
        flat = [entry for entry in entries if is_image(entry.name) and not _is_folder(entry)]
        labels = label_lists.find(folder) if flat and folder.name in TEST_FOLDERS else None
        split = cls(folder, listed=labels.file if labels else None)
        for entry in flat:
            label = labels.classes.get(os.path.splitext(entry.name)[0]) if labels else None
            if label is None:
                split.outside.append(printable(entry.name))
            else:
                split.images.append(Image(entry.name, _size(entry), nfc(label)))
        for entry in entries:
            if not _is_folder(entry):
                continue
            before = len(split.images)
            for path, size in files(folder / entry.name):
                if is_image(path):
                    split.images.append(Image(f"{entry.name}/{path}", size, nfc(entry.name)))
                else:
                    split.others[printable(os.path.splitext(path)[1].lower() or "without a suffix")] += 1
            if len(split.images) == before:
                split.empty.append(f"{printable(entry.name)}/")
        split.images.sort(key=lambda image: (image.label, nfc(image.path), image.path))
        return split

    @cached_property
    def class_to_idx(self) -> dict[str, int]:
        """Name -> number of each class that has an image."""
        return {name: number for number, name in enumerate(sorted({image.label for image in self.images}))}

    @property
    def not_read(self) -> str:
        """The files that are not read, in words: "500 .txt, 3 .webp"; empty if there are none."""
        return ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(self.others.items()))

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with the split by itself, the most serious first."""
        name, kinds = f"{self.folder.name}/", ", ".join(IMAGES)
        if not self.images:
            found = [f"{len(self.outside):,} images outside them, such as {self.outside[0]}"] if self.outside else []
            found += [f"{len(self.empty):,} folders without images, such as {self.empty[0]}"] if self.empty else []
            found += [f"files that are not read: {self.not_read}"] if self.others else []
            said = f"{self.folder} has no images ({kinds}) in class folders, but {'; '.join(found) or 'nothing'}: "
            remedy = "arrange its images as <class>/<image>"
            if self.outside and self.folder.name in TEST_FOLDERS:
                remedy += f", or put {label_lists.KAGGLE} or {label_lists.KIT} next to {name}"
            yield Fault("splits without images", [name], said + remedy)
        if self.outside:
            said = f"{self.folder} has {len(self.outside):,} images outside class folders, such as {self.outside[0]}: "
            remedy = "an image's folder names its class, so move them into class folders, or remove them"
            if self.listed is not None:
                said = f"{self.folder} has {len(self.outside):,} images that {self.listed.name} does not name, such as "
                said, remedy = said + f"{self.outside[0]}: ", "remove them, or use the list that belongs to the images"
            yield Fault("images outside of class folders", [name + path for path in self.outside], said + remedy)
        if self.empty:
            count, first = f"{len(self.empty):,}", self.empty[0]
            said = f"{self.folder} has {count} class folders without images ({kinds}), such as {first}"
            said += ": fill or remove them" + (f"; files that are not read: {self.not_read}" if self.others else "")
            yield Fault("class folders without images", [name + path for path in self.empty], said)
        if len(self.class_to_idx) == 1:
            (only,) = map(printable, self.class_to_idx)
            remedy = f"use one folder per class in {name}"
            if (self.folder / LABEL_TABLE).exists():
                remedy = f"move each image into a folder named after its class in {LABEL_TABLE}, which is not read"
            said = f"{self.folder} has images of only one class, {only!r}, but a classifier needs two: {remedy}"
            yield Fault("splits of one class", [f"{name}{only}/"], said)


def class_folders(root: Path) -> tuple[dict[str, Split], list[Fault]]:
    """Return the existing "train" and "test" splits of a folder in the layout of ImageNet, and its faults.

    That "train" is missing is no fault: the test images are enough to evaluate.

    Raises:
        FreproError: A folder cannot be read.
    """
    root = label_lists.images_root(root)
    test = next((name for name in TEST_FOLDERS if (root / name).is_dir()), TEST_FOLDERS[0])
    folders = {"train": root / TRAIN_FOLDER, "test": root / test}
    splits = {name: Split.read(folder) for name, folder in folders.items() if folder.is_dir()}
    faults = []
    if "test" not in splits:
        missing = [f"{folder.name}/" for folder in folders.values() if not folder.is_dir()]
        content = ", ".join(sorted(printable(entry.name) for entry in _entries(str(root)))[:8]) or "nothing"
        said = f"{root} has no train/ and val/ folders, but {content}: arrange it like ImageNet, as "
        faults.append(Fault("missing folders", missing, said + "train/<class>/<image> and val/<class>/<image>"))
    faults += [fault for split in splits.values() for fault in split.faults()]
    if len(splits) == 2 and all(split.images for split in splits.values()):
        train, tested = (set(split.class_to_idx) for split in splits.values())
        lone = [f"train/{printable(name)}/" for name in sorted(train - tested)]
        lone += [f"{test}/{printable(name)}/" for name in sorted(tested - train)]
        if lone:
            first = lone[0].split("/")[1]
            said = f"{root}: {len(lone)} classes are in only one of train/ and {test}/, such as {first!r}: "
            faults.append(Fault("classes in only one split", lone, said + "both need the same class folders"))
    return splits, faults


def files(folder: Path) -> Iterator[File]:
    """Yield all files below a folder, in an order that depends on names alone.

    Links are followed, except to a folder that contains this one; each folder is entered once.

    Raises:
        FreproError: A folder cannot be read.
    """
    waiting = [""]
    entered = set(map(str, Path(os.path.realpath(folder)).parents))
    while waiting:
        below = waiting.pop()
        path = os.path.join(folder, below)
        if (real := os.path.realpath(path)) in entered:
            continue
        entered.add(real)
        for entry in _entries(path):
            if _is_folder(entry):
                waiting.append(f"{below}{entry.name}/")
            else:
                yield File(below + entry.name, _size(entry))


def images(folder: Path) -> list[File]:
    """Return the images directly in a folder, not those in subfolders, sorted by name.

    Raises:
        FreproError: The folder cannot be read.
    """
    found = [entry for entry in _entries(str(folder)) if is_image(entry.name) and not _is_folder(entry)]
    return in_order(File(entry.name, _size(entry)) for entry in found)


def pairs(images_folder: Path, maps_folder: Path) -> list[tuple[Path, Path]]:
    """Return each image with the map (.png) of the same name, sorted by name.

    An image without a map, or a map without an image, is paired with the path of the missing file. Maps alone are none.

    Raises:
        FreproError: A folder cannot be read.
    """
    found = [file.path for file in images(images_folder)]
    if not found:
        return []
    maps = {nfc(Path(name).stem): name for name, _ in images(maps_folder) if name.lower().endswith(".png")}
    both = [(name, maps.get(nfc(Path(name).stem), f"{Path(name).stem}.png")) for name in found]
    lone = maps.keys() - {nfc(Path(name).stem) for name in found}
    both += [(f"{Path(maps[stem]).stem}.jpg", maps[stem]) for stem in sorted(lone)]
    return [(images_folder / image, maps_folder / annotation) for image, annotation in both]


def class_table(root: Path) -> Path | None:
    """Return ADE20K's table of class names, objectInfo150.txt; ``None`` if there is none."""
    return next((root / entry.name for entry in _entries(str(root)) if entry.name.startswith("objectInfo")), None)


def in_order(found: Iterable[File]) -> list[File]:
    """Return files sorted by name."""
    return sorted(found, key=lambda file: (nfc(file.path), file.path))


def fingerprint_parts(found: Iterable[File | Image]) -> Iterator[bytes]:
    """Return what the fingerprint of a data set includes of its files: names and sizes."""
    for file in found:
        # An image without a folder of its class counts as if it lay in it, so that both are the same data set.
        path = f"{file.label}/{file.path}" if isinstance(file, Image) and "/" not in file.path else file.path
        yield os.fsencode(f"{nfc(path)}:{file.size}")


def check_regular(path: Path) -> None:
    """Raise ``OSError`` unless the path is a regular file; opening a pipe would wait for a writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a regular file")


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, -1 if there is no regular file."""
    try:
        check_regular(path)
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: its name has a null character
        return -1


def on_disk(folder: Path, names: Iterable[str]) -> list[File]:
    """Return files by their names below a folder, in the same order.

    A name that the folder has in another Unicode form is found too. The size of a missing file is -1.
    """
    found, known = [], None
    for name in names:
        size = size_of(folder / name)
        if size < 0 and not name.isascii():
            known = known or {nfc(file.path): file for file in files(folder)}
            found.append(known.get(nfc(posixpath.normpath(name)), File(name, size)))
        else:
            found.append(File(name, size))
    return found


def nfc(name: str) -> str:
    """Return a name in the Unicode form used for comparisons."""
    return normalize("NFC", name)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise FreproError(f"{printable(folder)} cannot be read: {error.strerror}: fix or remove the folder") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def _size(entry: os.DirEntry[str]) -> int:
    try:
        found = entry.stat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
