"""Which data: found, counted and fingerprinted without importing torch.

(nothing)               embedded data: "textured" (digits of one texture on a ground of another) for classifiers,
                        "scenes" (digits on photographs) for detectors and segmenters
digits, textured, cues  embedded data by name; ``data.compositions`` says what the latter two are
scenes                  the same, of ``data.scenes``
/path/to/folder         the layout of ImageNet (train/ and val/, valid/, validation/ or test/ with a folder for each
                        class), of COCO 2017 (train2017/, val2017/, annotations/), or of ADE20K (images/, annotations/)
torch/cifar10:/path     a data set that timm.data.create_dataset reads, with its root after the colon

Data sets that timm can only stream (wds, tfds, hfids) are refused: a sample here is asked for by its number.
"""

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frepro.data import listing
from frepro.data.listing import IMAGES, TEST_FOLDERS
from frepro.errors import FreproError, printable
from frepro.store import provenance

# timm's names of readers, which stand before a slash.
READERS, STREAMS = ("torch", "hfds"), ("hfids", "tfds", "wds")

# ImageNet-1K by its counts, whatever its folder is called; COCO 2017 and the challenge's part of ADE20K.
IMAGENET = ("ImageNet-1K", 1_281_167, 50_000, 1000)
COCO = ("COCO", 118_287, 5_000)
ADE20K = ("ADE20K", 20_210, 2_000)

# Folders of "train" and "test" images in those two layouts.
COCO_FOLDERS = {"train": "train2017", "test": "val2017"}
ADE20K_FOLDERS = {"train": "training", "test": "validation"}  # in images/ and in annotations/

# The layout that each task learns from, and embedded data for it.
LAYOUTS = {"classification": "imagenet", "detection": "coco", "segmentation": "ade20k"}

# The first 1,297 scans train, the last 500 test. Neighbours in the file were written by the same people, so that this
# cut, unlike a shuffled one, tests on handwriting that was mostly not trained on.
DIGITS_TRAIN, DIGITS_TEST = 1297, 500

# Textured pictures: each training scan comes four times, each test scan twice.
COMPOSED_TRAIN, COMPOSED_TEST = 4 * DIGITS_TRAIN, 2 * DIGITS_TEST

SCENES_TRAIN, SCENES_TEST = 2048, 256

# Embedded data by name, with training and test images. All show the ten digits.
EMBEDDED = {
    "digits": (DIGITS_TRAIN, DIGITS_TEST),
    "textured": (COMPOSED_TRAIN, COMPOSED_TEST),
    "cues": (DIGITS_TRAIN, DIGITS_TEST),
    "scenes": (SCENES_TRAIN, SCENES_TEST),
}
DEFAULTS = {"classification": "textured", "detection": "scenes", "segmentation": "scenes"}
# What they are made of, in scikit-learn's folder of data sets.
SCANS, PHOTOGRAPHS = "data/digits.csv.gz", ("images/china.jpg", "images/flower.jpg")


@dataclass(frozen=True)
class Source:
    """A data set that is there.

    Attributes:
        name: How tables call it.
        reader: A name of ``EMBEDDED``, "folder", "coco", "ade20k", or a name for ``timm.data.create_dataset``.
        root: Its folder; none for embedded data.
        fingerprint: Of names and sizes of all files that are read; changing an image in place to another of the same
            size escapes it.
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
        classes = f", {self.classes:,} classes" if self.classes else ""
        return f"{self.name} ({self.train:,} training and {self.test:,} test images{classes})"


def locate(data: str | None, task: str = "classification") -> Source:
    """The data set that ``data`` names, as in the module's text.

    Raises:
        FreproError: It is not there, has not the layout that it should, or holds nothing that the task could learn.
    """
    source = _locate(data, task)
    if source.embedded:
        fits = (source.name == DEFAULTS["detection"]) == (task != "classification")
    else:
        fits = {"coco": "coco", "ade20k": "ade20k"}.get(source.reader, "imagenet") == LAYOUTS[task]
    if not fits:
        wanted = {"imagenet": "ImageNet", "coco": "COCO 2017", "ade20k": "ADE20K"}[LAYOUTS[task]]
        raise FreproError(
            f"{data} is no data for {task}: name a folder in the layout of {wanted}, or the embedded {DEFAULTS[task]}"
        )
    return source


def _locate(data: str | None, task: str) -> Source:
    if not data or data in EMBEDDED:
        return _embedded(data or DEFAULTS[task])
    reader, _, root = data.partition(":")
    kind, slash, name = reader.partition("/")
    if slash and kind in STREAMS:
        raise FreproError(f"{reader} can only be streamed by timm: export it to folders train/ and val/, or use hfds/")
    if slash and kind in READERS:
        if not root:
            raise FreproError(f"{reader} stands without the folder that it lies in: give it as {reader}:/path")
        folder = Path(root).absolute()
        found = listing.in_order(listing.files(folder)) if folder.is_dir() else []
        fingerprint = provenance.sha256(reader, *listing.fingerprint_parts(found))
        return Source(name, reader, str(folder), fingerprint)
    root = Path(data)
    kind = layout(root)
    return _folder(root) if kind == "imagenet" else _annotated(root, kind)


def is_there(data: str) -> bool:
    """Whether ``data`` names embedded data or a path that exists, be it of a data set or not."""
    reader, _, root = data.partition(":")
    kind, slash, _ = reader.partition("/")
    if slash and kind in READERS:
        data = root
    return data in EMBEDDED or os.path.exists(data)


def layout(root: Path) -> str:
    """Which layout a folder has, "imagenet", "coco" or "ade20k", even when parts of it are missing.

    Raises:
        FreproError: There is no such folder, or it has none of them.
    """
    if not os.path.exists(root):  # which, unlike Path's, takes a path of any length
        raise FreproError(f"no data at {root}: give the folder of a data set, or leave DATA out for embedded data")
    if not root.is_dir():
        raise FreproError(f"{root} is a file: give the folder that holds train/ and val/, or the like")
    marks = {
        "coco": [*COCO_FOLDERS.values(), *(f"annotations/instances_{name}.json" for name in COCO_FOLDERS.values())],
        "ade20k": [f"{kind}/{name}" for kind in ("images", "annotations") for name in ADE20K_FOLDERS.values()],
        "imagenet": ["train", *TEST_FOLDERS],
    }
    for name, paths in marks.items():
        if any((root / path).exists() for path in paths):
            return name
    raise FreproError(
        f"{root} looks like no data set that is read here: ImageNet has train/ and val/, COCO train2017/, val2017/ and "
        "annotations/, ADE20K images/training/ and annotations/training/"
    )


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


def _annotated(root: Path, kind: str) -> Source:
    if kind == "coco":
        folders, whole = [*COCO_FOLDERS.values()], COCO
    else:
        folders, whole = [f"images/{name}" for name in ADE20K_FOLDERS.values()], ADE20K
    listings = []
    for folder in folders:
        if not (root / folder).is_dir():
            raise FreproError(f"{root / folder} is missing: `frepro data check {root}` lists what else is")
        # COCO's annotations name images by their paths; of ADE20K only the folder itself is read.
        found = [file for file in listing.files(root / folder) if listing.is_image(file.path)]
        listings.append(listing.in_order(found) if kind == "coco" else listing.images(root / folder))
        if not listings[-1]:
            challenge = ": ADE20K is read as in ADEChallengeData2016, all images of a split in one folder"
            remedy = challenge if kind == "ade20k" else ""
            raise FreproError(f"{root / folder} holds no images ({', '.join(IMAGES)}){remedy}")
    parts = [part for files in (*listings, _annotation_files(root, kind)) for part in listing.fingerprint_parts(files)]
    counts = tuple(map(len, listings))
    name = whole[0] if counts == whole[1:] else _name(root)
    return Source(name, kind, str(root.resolve()), provenance.sha256(*parts), *counts)


def _annotation_files(root: Path, kind: str) -> list[listing.File]:
    """The files with annotations that are read, whatever else lies beside them."""
    folder = root / "annotations"
    found = listing.in_order(listing.files(folder)) if folder.is_dir() else []
    if kind == "coco":
        return [file for file in found if file.path in {f"instances_{name}.json" for name in COCO_FOLDERS.values()}]
    maps = [f"{name}/" for name in ADE20K_FOLDERS.values()]
    return [file for file in found if file.path.startswith(tuple(maps)) and listing.is_image(file.path)]


def _folder(root: Path) -> Source:
    splits, faults = listing.class_folders(root)
    if faults:
        raise FreproError(faults[0].said)
    parts = [part for split in splits.values() for part in listing.fingerprint_parts(split.images)]
    counts = (*(len(split.images) for split in splits.values()), len(splits["train"].class_to_idx))
    name = IMAGENET[0] if counts == IMAGENET[1:] else _name(root)
    folders = {kind: str(split.folder) for kind, split in splits.items()}
    return Source(name, "folder", str(root.resolve()), provenance.sha256(*parts), *counts, folders)


def _name(root: Path) -> str:
    """What tables call the data in a folder."""
    return printable(listing.nfc(root.resolve().name.lower()))
