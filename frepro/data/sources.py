"""Which data: found, counted and fingerprinted without importing torch.

(nothing)               the embedded pictures "textured": digits of one texture on a ground of another
digits, textured, cues  embedded data by name; ``data.compositions`` says what the latter two are
/path/to/folder         train/ and val/ (or validation/, test/) with one folder a class: the layout of ImageNet
torch/cifar10:/path     a data set that timm.data.create_dataset reads, with its root after the colon

Data sets that timm can only stream (wds, tfds, hfids) are refused: a sample here is asked for by its number.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frepro import provenance
from frepro.errors import FreproError

# timm's names of readers, which stand before a slash.
READERS, STREAMS = ("torch", "hfds"), ("hfids", "tfds", "wds")
IMAGES = (".png", ".jpg", ".jpeg")
TEST_FOLDERS = ("val", "validation", "test")

# ImageNet-1K by its counts, whatever its folder is called.
IMAGENET = ("ImageNet-1K", 1_281_167, 50_000, 1000)

# The first 1,297 scans train, the last 500 test. Neighbours in the file were written by the same people, so that this
# cut, unlike a shuffled one, tests on handwriting that was mostly not trained on.
DIGITS_TRAIN, DIGITS_TEST = 1297, 500

# Textured pictures: each training scan comes four times, each test scan twice.
COMPOSED_TRAIN, COMPOSED_TEST = 4 * DIGITS_TRAIN, 2 * DIGITS_TEST

# Embedded data by name, with training and test images. All show the ten digits.
EMBEDDED = {
    "digits": (DIGITS_TRAIN, DIGITS_TEST),
    "textured": (COMPOSED_TRAIN, COMPOSED_TEST),
    "cues": (DIGITS_TRAIN, DIGITS_TEST),
}
DEFAULT = "textured"
# What they are made of, in scikit-learn's folder of data sets.
SCANS, PHOTOGRAPHS = "data/digits.csv.gz", ("images/china.jpg", "images/flower.jpg")


@dataclass(frozen=True)
class Source:
    """A data set that is there.

    Attributes:
        name: How tables call it.
        reader: A name of ``EMBEDDED``, "folder", or a name for ``timm.data.create_dataset``.
        root: Its folder; none for embedded data.
        fingerprint: Of names and sizes of all files; changing an image in place to another of the same size escapes it.
        train, test, classes: Counts; none where only opening the data set tells.
        folders: "train" and "test" of an ImageNet-style folder.
    """

    name: str
    reader: str
    root: str | None
    fingerprint: str
    train: int | None = None
    test: int | None = None
    classes: int | None = None
    folders: dict[str, str] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        return self.root is None

    def spec(self) -> dict[str, Any]:
        """What decides about a run; where the data lie does not."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    def __str__(self) -> str:
        if self.train is None:
            return self.name
        return f"{self.name} ({self.train:,} training and {self.test:,} test images, {self.classes:,} classes)"


def locate(data: str | None) -> Source:
    """The data set that ``data`` names, as in the module's text.

    Raises:
        FreproError: It is not there, or does not have the layout that it should.
    """
    if not data or data in EMBEDDED:
        return _embedded(data or DEFAULT)
    reader, _, root = data.partition(":")
    kind, slash, name = reader.partition("/")
    if slash and kind in STREAMS:
        raise FreproError(f"{reader} can only be streamed by timm: export it to folders train/ and val/, or use hfds/")
    if slash and kind in READERS:
        folder = Path(root or ".").absolute()
        listing = sorted(_files(folder)) if folder.is_dir() else []
        fingerprint = provenance.sha256(reader, *(f"{file}:{size}" for file, size in listing))
        return Source(name, reader, str(folder), fingerprint)
    return _folder(Path(data))


def absolute(data: str | None) -> str | None:
    """``data`` so that it names the same from another current folder."""
    if not data or data in EMBEDDED:
        return data
    reader, colon, root = data.partition(":")
    if reader.partition("/")[0] in READERS and "/" in reader:
        return f"{reader}:{Path(root).absolute()}" if colon else data
    return str(Path(data).absolute())


def _embedded(name: str) -> Source:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise FreproError("the embedded data come with scikit-learn: pip install scikit-learn, or name data of yours")
    folder = Path(spec.submodule_search_locations[0]) / "datasets"
    files = [SCANS] if name == "digits" else [SCANS, *PHOTOGRAPHS]
    counts = EMBEDDED[name]
    fingerprint = provenance.sha256(*((folder / file).read_bytes() for file in files), "+".join(map(str, counts)))
    return Source(name, name, None, fingerprint, *counts, classes=10)


def _folder(root: Path) -> Source:
    if not root.exists():
        raise FreproError(f"no data at {root}: give a folder with train/ and val/, or leave DATA out for embedded data")
    if not root.is_dir():
        raise FreproError(f"{root} is a file: give the folder that holds train/ and val/")
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise FreproError(f"{root} has no train/ and val/ folders: it should look like ImageNet, train/<class>/<image>")
    listings, classes = [], []
    for split in (root / "train", test):
        files = sorted((file, size) for file, size in _files(split) if file.lower().endswith(IMAGES) and "/" in file)
        if not files:
            raise FreproError(f"{split} holds no images ({', '.join(IMAGES)}) in class folders")
        listings.append(files)
        classes.append({file.split("/")[-2] for file, _ in files})
    if only := sorted(classes[0] ^ classes[1]):
        raise FreproError(f"{root}: {len(only)} classes stand in one of train/ and {test.name}/ alone, as {only[0]!r}")
    fingerprint = provenance.sha256(*(f"{file}:{size}" for files in listings for file, size in files))
    counts = (*map(len, listings), len(classes[0]))
    name = IMAGENET[0] if counts == IMAGENET[1:] else root.resolve().name.lower()
    folders = {"train": str(root / "train"), "test": str(test)}
    return Source(name, "folder", str(root.resolve()), fingerprint, *counts, folders)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Path below ``folder`` and size in bytes of each file."""
    waiting = [str(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.is_dir():
                waiting.append(entry.path)
            else:
                yield os.path.relpath(entry.path, folder).replace(os.sep, "/"), entry.stat().st_size
