"""Which files belong to a data set. Fingerprints, counts, ``data.check`` and the readers all go by these listings.

Hidden names (``.DS_Store``, ``._x.jpg``, ``.ipynb_checkpoints/``) belong to none. Names are compared as Unicode NFC, so
that a copy by way of a Mac is the same data set; order depends on names alone, not on the file system.

In the layout of ImageNet, as in torchvision's ImageFolder, an image belongs to the class that the topmost folder below
its split is named after, however deep it lies, and classes are numbered in the order of their names:

    train/<class>/**/<image>        val/<class>/**/<image>
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from frepro.errors import FreproError, printable

# 2: classes are numbered by their names, in one order everywhere, and not by timm's natural sort.
REVISION = {"image folders": 2}

IMAGES = (".png", ".jpg", ".jpeg")
TRAIN_FOLDER, TEST_FOLDERS = "train", ("val", "valid", "validation", "test")
# Tiny-ImageNet's table of the classes of val/images/.
LABEL_TABLE = "val_annotations.txt"


class File(NamedTuple):
    """A file of a data set: its path below the folder listed, with slashes, and its size in bytes.

    The size is -1 where there is no regular file: a link to nowhere, a pipe, a socket.
    """

    path: str
    size: int


class Image(NamedTuple):
    """An image of a split: its path below the split's folder, its size as in ``File``, and the name of its class."""

    path: str
    size: int
    label: str


class Fault(NamedTuple):
    """Something that keeps a folder from being a data set.

    Attributes:
        kind: What kind of thing is wrong.
        examples: Where, below the root; all of them.
        said: The same as an error message, with the remedy.
    """

    kind: str
    examples: list[str]
    said: str


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of classes and paths.

    Attributes:
        folder: train/ or one of ``TEST_FOLDERS``.
        images: All that have a class.
        empty: Class folders without an image.
        outside: Images that lie in no class folder.
        others: Suffix -> number of the files in class folders that are not read.
    """

    folder: Path
    images: list[Image] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, folder: Path) -> "Split":
        """List a split's folder.

        Raises:
            FreproError: A folder cannot be read.
        """
        split = cls(folder)
        for entry in _entries(str(folder)):
            if not _is_folder(entry):
                if is_image(entry.name):
                    split.outside.append(printable(entry.name))
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
        """Name of each class that has an image -> its number."""
        return {name: number for number, name in enumerate(sorted({image.label for image in self.images}))}

    @property
    def not_read(self) -> str:
        """The files that are not read, in words: "500 .txt, 3 .webp"; empty where there are none."""
        return ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(self.others.items()))

    def faults(self) -> Iterator[Fault]:
        """What is wrong with the split by itself, the gravest first."""
        name, kinds = f"{self.folder.name}/", ", ".join(IMAGES)
        if not self.images:
            found = [f"{len(self.outside):,} images outside of them, as {self.outside[0]}"] if self.outside else []
            found += [f"{len(self.empty):,} folders without one, as {self.empty[0]}"] if self.empty else []
            found += [f"files that are not read: {self.not_read}"] if self.others else []
            said = f"{self.folder} holds no images ({kinds}) in class folders, but {'; '.join(found) or 'nothing'}: "
            yield Fault("splits without images", [name], said + "it should hold <class>/<image>")
        if self.outside:
            said = f"{self.folder} has {len(self.outside):,} images outside of class folders, as {self.outside[0]}: "
            remedy = "an image's folder tells its class, so move them into class folders, or remove them"
            yield Fault("images outside of class folders", [name + path for path in self.outside], said + remedy)
        if self.empty:
            said = f"{self.folder} has {len(self.empty):,} class folders without images ({kinds}), as {self.empty[0]}"
            said += ": fill or remove them" + (f"; files that are not read: {self.not_read}" if self.others else "")
            yield Fault("class folders without images", [name + path for path in self.empty], said)
        if len(self.class_to_idx) == 1:
            (only,) = map(printable, self.class_to_idx)
            remedy = f"{name} should hold a folder for each class"
            if (self.folder / LABEL_TABLE).exists():
                remedy = f"move each image into a folder named after its class in {LABEL_TABLE}, which is not read"
            said = f"{self.folder} has images of one class alone, {only!r}, and a classifier needs two: {remedy}"
            yield Fault("splits of one class", [f"{name}{only}/"], said)


def class_folders(root: Path) -> tuple[dict[str, Split], list[Fault]]:
    """The splits "train" and "test" of a folder in the layout of ImageNet, as far as they are there, and its faults.

    Raises:
        FreproError: A folder cannot be read.
    """
    test = next((name for name in TEST_FOLDERS if (root / name).is_dir()), TEST_FOLDERS[0])
    folders = {"train": root / TRAIN_FOLDER, "test": root / test}
    splits = {name: Split.read(folder) for name, folder in folders.items() if folder.is_dir()}
    faults = []
    if missing := [f"{folder.name}/" for folder in folders.values() if not folder.is_dir()]:
        content = ", ".join(sorted(printable(entry.name) for entry in _entries(str(root)))[:8]) or "nothing"
        said = f"{root} has no train/ and val/ folders, but {content}: it should look like ImageNet, "
        faults.append(Fault("missing folders", missing, said + "train/<class>/<image> and val/<class>/<image>"))
    faults += [fault for split in splits.values() for fault in split.faults()]
    if len(splits) == 2 and all(split.images for split in splits.values()):
        train, tested = (set(split.class_to_idx) for split in splits.values())
        lone = [f"train/{printable(name)}/" for name in sorted(train - tested)]
        lone += [f"{test}/{printable(name)}/" for name in sorted(tested - train)]
        if lone:
            first = lone[0].split("/")[1]
            said = f"{root}: {len(lone)} classes stand in one of train/ and {test}/ alone, as {first!r}: "
            faults.append(Fault("classes in one split alone", lone, said + "both need the same class folders"))
    return splits, faults


def files(folder: Path) -> Iterator[File]:
    """All files below a folder, in an order that depends on names alone.

    Links are followed, but not up to a folder that holds this one; a folder is entered once.

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
    """The images in a folder itself, not in those below, by name.

    Raises:
        FreproError: The folder cannot be read.
    """
    found = [entry for entry in _entries(str(folder)) if is_image(entry.name) and not _is_folder(entry)]
    return in_order(File(entry.name, _size(entry)) for entry in found)


def in_order(found: Iterable[File]) -> list[File]:
    """Files in the order of their names."""
    return sorted(found, key=lambda file: (nfc(file.path), file.path))


def fingerprint_parts(found: Iterable[File | Image]) -> Iterator[bytes]:
    """What the fingerprint of a data set takes of its files: names and sizes."""
    return (os.fsencode(f"{nfc(file.path)}:{file.size}") for file in found)


def nfc(name: str) -> str:
    """A name in the Unicode form in which names are compared."""
    return normalize("NFC", name)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, but for what is hidden."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise FreproError(f"{printable(folder)} cannot be read: {error.strerror}: mend or remove the folder") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _size(entry: os.DirEntry[str]) -> int:
    try:
        found = entry.stat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
