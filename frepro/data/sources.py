"""Selection of data: data sets are found, counted and fingerprinted without importing torch.

A data set is named by

- nothing: embedded data, "textured" (digits of one texture on a background of another) for classifiers, "scenes"
  (digits on photographs) for detectors and segmenters
- ``digits``, ``textured``, ``cues``: embedded data by name; ``data.compositions`` describes the latter two
- ``scenes``: the same, from ``data.scenes``
- ``/path/to/folder``: the layout of ImageNet (train/ and val/, valid/, validation/ or test/ with a folder for each
  class; the latter alone is enough to evaluate, and a list may name its classes, see ``data.listing``), of COCO 2017
  (train2017/, val2017/, annotations/), or of ADE20K (images/, annotations/)
- ``idx:/path``: a folder with MNIST's idx files, described in ``data.idx``
- ``idx-validation:/path``: its training images alone, some of which take the place of the test images
- ``/path/to/list.csv``, or a folder with one folder per class, and a share of test images (see ``data.lists``)
- ``torch/cifar10:/path``: a data set that timm.data.create_dataset reads, with its root after the colon

Data sets that timm can only stream (wds, tfds, hfids) are rejected, because samples are requested by index.
"""

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frepro import recipes
from frepro.data import coco_files, idx, label_lists, listing, lists
from frepro.data.listing import IMAGES, TEST_FOLDERS
from frepro.errors import FreproError, printable
from frepro.store import provenance

# timm's reader names, which precede a slash.
READERS, STREAMS = ("torch", "hfds"), ("hfids", "tfds", "wds")

# Reader of MNIST's idx files -> what they hold as "train" and "test".
IDX = {"idx": ("train", "test"), "idx-validation": ("fit", "validation")}


@dataclass(frozen=True)
class Whole:
    """A published data set: its name in tables, and the counts that identify it, whatever its folder is called."""

    name: str
    train: int
    test: int
    classes: int

    @property
    def images(self) -> dict[str, int]:
        """The number of images of each split."""
        return {"train": self.train, "test": self.test}


IMAGENET = Whole("ImageNet-1K", 1_281_167, 50_000, 1000)
COCO = Whole("COCO", 118_287, 5_000, 80)
ADE20K = Whole("ADE20K", 20_210, 2_000, 150)  # the challenge's part of it

# What precedes and follows the name of a split of COCO in its paths.
COCO_PATHS = (("", ""), ("annotations/instances_", ".json"))
# Folders of "train" and "test" images of ADE20K, in images/ and in annotations/.
ADE20K_FOLDERS = {"train": "training", "test": "validation"}

# The first 1,297 scans are for training, the last 500 for test. Neighbours in the file were written by the same people,
# so this split, unlike a shuffled one, tests mostly on handwriting that is not in the training data.
DIGITS_TRAIN, DIGITS_TEST = 1297, 500
# The scans of the training split that remain for training if recipes are chosen on the others.
DIGITS_FIT = 1081

# Textured images of each part: each scan for training is used four times, each test scan twenty times.
COMPOSED = {
    "train": 4 * DIGITS_TRAIN,
    "test": 20 * DIGITS_TEST,
    "fit": 4 * DIGITS_FIT,
    "validation": 20 * (DIGITS_TRAIN - DIGITS_FIT),
}

SCENES_TRAIN, SCENES_TEST = 2048, 256

# Embedded data by name, with the numbers of training and test images. All show the ten digits.
EMBEDDED = {
    "digits": (DIGITS_TRAIN, DIGITS_TEST),
    "textured": (COMPOSED["train"], COMPOSED["test"]),
    "textured-validation": (COMPOSED["fit"], COMPOSED["validation"]),
    "cues": (DIGITS_TRAIN, DIGITS_TEST),
    "scenes": (SCENES_TRAIN, SCENES_TEST),
}
# The files that they are composed from, in scikit-learn's folder of data sets.
SCANS, PHOTOGRAPHS = "data/digits.csv.gz", ("images/china.jpg", "images/flower.jpg")


@dataclass(frozen=True)
class Source:
    """A data set that exists.

    Attributes:
        name: Name in tables.
        reader: A name in ``EMBEDDED`` or ``IDX``, "folder", "list", "coco", "ade20k", or a name for
            ``timm.data.create_dataset``.
        root: Its folder; ``None`` for embedded data.
        fingerprint: Hash of the names and sizes of all files that are read; it does not notice an image that is
            replaced by another of the same size. For idx files, hash of their content.
        train: Number of training images, 0 if there are test images alone; ``None`` if it is unknown until the data
            set is opened.
        test: Number of test images; ``None`` as above.
        classes: Number of classes; ``None`` as above.
        folders: "train" and "test" of an ImageNet-style folder; of a list, its "split" and "seed" as text.
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

    def check_can_train(self) -> None:
        """Raise a ``FreproError`` for test images alone."""
        if self.train == 0:
            raise FreproError(
                f"{self.root} has test images alone, which is enough to evaluate weights but not to train: add "
                "train/<class>/<image>"
            )

    def spec(self) -> dict[str, Any]:
        """Return what identifies the data of a run; their location does not matter."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    def __str__(self) -> str:
        if self.train is None:
            return self.name
        classes = f", {self.classes:,} classes" if self.classes else ""
        if not self.train:
            return f"{self.name} ({self.test:,} test images{classes})"
        return f"{self.name} ({self.train:,} training and {self.test:,} test images{classes})"


def locate(
    data: str | None,
    task: str = recipes.Classification.task,
    split: float | None = None,
    split_seed: int = 0,
) -> Source:
    """Return the data set that ``data`` names, as described in the module's docstring.

    Args:
        split: Share of test images, for a CSV or for a folder without separate test images.
        split_seed: Seed of their choice.

    Raises:
        FreproError: It does not exist, does not have the required layout, or is not suited to the task.
    """
    kind = recipes.of_task(task)
    if split is not None and (not data or data in EMBEDDED or prefix(data)[0]):
        raise FreproError(f"{data or 'embedded data'} has test images already: leave out --split")
    if data and (split is not None or (lists.is_csv(data) and not os.path.isdir(data))):
        source = _listed(Path(data), split, split_seed)
    else:
        source = _locate(data, kind.embedded[0])
    if source.embedded:
        fits = source.name in kind.embedded
    else:
        fits = {"coco": "coco", "ade20k": "ade20k"}.get(source.reader, "imagenet") == kind.layout
    if not fits:
        wanted = {"imagenet": "ImageNet", "coco": "COCO 2017", "ade20k": "ADE20K"}[kind.layout]
        raise FreproError(
            f"{data} is not data for {task}: use a folder in the layout of {wanted}, or the embedded {kind.embedded[0]}"
        )
    return source


def _locate(data: str | None, default: str) -> Source:
    if not data or data in EMBEDDED:
        return _embedded(data or default)
    reader, root = prefix(data)
    kind, slash, name = data.partition(":")[0].partition("/")
    if slash and kind in STREAMS:
        raise FreproError(
            f"{kind}/{name} can only be streamed by timm: export it to folders train/ and val/, or use hfds/"
        )
    if reader and not root:
        raise FreproError(f"{reader} has no folder: give it as {reader}:/path")
    if reader in IDX:
        return _idx(Path(root), reader)
    if reader:
        folder = Path(root).absolute()
        found = listing.in_order(listing.files(folder)) if folder.is_dir() else []
        fingerprint = provenance.sha256(reader, *listing.fingerprint_parts(found))
        return Source(name, reader, str(folder), fingerprint)
    folder = Path(data)
    kind = layout(folder)
    if kind == "idx":
        return _idx(folder, kind)
    return {"imagenet": _folder, "coco": _coco, "ade20k": _ade20k}[kind](folder)


def prefix(data: str) -> tuple[str | None, str]:
    """Return the reader that precedes a colon in ``data``, ``None`` if there is none, and the path that remains."""
    reader, colon, root = data.partition(":")
    kind, slash, _ = reader.partition("/")
    if (slash and kind in READERS) or (colon and reader in IDX):
        return reader, root
    return None, data


def is_there(data: str) -> bool:
    """Return whether ``data`` names embedded data or an existing path, whether or not that is a data set."""
    reader, root = prefix(data)
    return os.path.exists(root) or (reader is None and data in EMBEDDED)


def layout(root: Path) -> str:
    """Return the layout of a folder, "imagenet", "coco", "ade20k" or "idx", even if parts of it are missing.

    Raises:
        FreproError: There is no such folder, or it has none of the layouts.
    """
    check_is_folder(root)
    marks = {
        "coco": [f"{before}{name}{after}" for name in coco_files.FOLDERS.values() for before, after in COCO_PATHS],
        "ade20k": [f"{kind}/{name}" for kind in ("images", "annotations") for name in ADE20K_FOLDERS.values()],
        "imagenet": ["train", *TEST_FOLDERS],
    }
    for name, paths in marks.items():
        where = label_lists.images_root(root) if name == "imagenet" else root
        if any((where / path).exists() for path in paths):
            return name
    if idx.is_present(root):
        return "idx"
    raise FreproError(
        f"{root} has no known layout: a folder for each class needs --split 0.2, ImageNet has train/ and val/, "
        "COCO has train2017/, val2017/ and annotations/, "
        f"ADE20K has images/training/ and annotations/training/, MNIST has {idx.FILES['train'][0]} and others"
    )


def check_is_folder(root: Path) -> None:
    """Raise a ``FreproError`` if there is no folder at this path."""
    if not os.path.exists(root):  # unlike Path.exists, accepts a path of any length
        raise FreproError(f"no data at {root}: give the folder of a data set, or leave out DATA for embedded data")
    if not root.is_dir():
        raise FreproError(f"{root} is a file: give the folder that contains the splits, such as train/ and val/")


def absolute(data: str | None) -> str | None:
    """Return ``data`` in a form that does not depend on the current folder."""
    if not data or data in EMBEDDED:
        return data
    reader, root = prefix(data)
    if reader:
        return f"{reader}:{Path(root).absolute()}" if root else data
    return str(Path(data).absolute())


def _embedded(name: str) -> Source:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise FreproError("the embedded data need scikit-learn: pip install scikit-learn, or use your own data")
    folder = Path(spec.submodule_search_locations[0]) / "datasets"
    files = [SCANS] if name == "digits" else [SCANS, *PHOTOGRAPHS]
    counts = EMBEDDED[name]
    fingerprint = provenance.sha256(*((folder / file).read_bytes() for file in files), "+".join(map(str, counts)))
    return Source(name, name, None, fingerprint, *counts, classes=10)


def _coco(root: Path) -> Source:
    """Return a data set of the images that COCO's annotation files list; others in its folders are not read."""
    files, categories = [], []
    for split, folder in coco_files.FOLDERS.items():
        if not (root / folder).is_dir():
            raise FreproError(f"{root / folder} is missing: `frepro data check {root}` lists all that is missing")
        names, known = coco_files.split(root, split)
        found = listing.on_disk(root / folder, names)
        if all(file.size < 0 for file in found):
            raise FreproError(f"{root / folder} holds no images that {coco_files.annotation_file(root, split)} lists")
        files.append(listing.in_order(found))
        categories.append(known)
    if categories[0] != categories[1]:
        train, test = map(len, categories)
        raise FreproError(
            f"{_name(root)}: {train} training categories and {test} test categories, or different names: both "
            "splits must have the same categories"
        )
    annotations = [coco_files.annotation_file(root, split) for split in coco_files.FOLDERS]
    files.append(listing.in_order(listing.File(file.name, listing.size_of(file)) for file in annotations))
    train, test = map(len, files[:2])
    is_whole = (train, test, len(categories[0])) == (COCO.train, COCO.test, COCO.classes)
    return _annotated(root, "coco", files, train, test, COCO.name if is_whole else _name(root))


def _ade20k(root: Path) -> Source:
    images, maps, counts = [], [], []
    for part in ADE20K_FOLDERS.values():
        folders = [root / kind / part for kind in ("images", "annotations")]
        if folders[0].is_dir() and not listing.images(folders[0]):
            raise FreproError(
                f"{folders[0]} holds no images ({', '.join(IMAGES)}): arrange ADE20K as in ADEChallengeData2016, with "
                "all images of a split in one folder"
            )
        for folder in folders:
            if not folder.is_dir():
                raise FreproError(f"{folder} is missing: `frepro data check {root}` lists all that is missing")
        pairs = listing.pairs(*folders)
        images.append([listing.File(image.name, listing.size_of(image)) for image, _ in pairs])
        maps += [listing.File(f"{part}/{annotation.name}", listing.size_of(annotation)) for _, annotation in pairs]
        counts.append(len(pairs))
    table = listing.class_table(root)
    tables = [] if table is None else [listing.File(table.name, listing.size_of(table))]
    train, test = counts
    name = ADE20K.name if (train, test) == (ADE20K.train, ADE20K.test) else _name(root)
    return _annotated(root, "ade20k", [*images, listing.in_order(maps), tables], train, test, name)


def _annotated(root: Path, kind: str, files: list[list[listing.File]], train: int, test: int, name: str) -> Source:
    parts = [part for each in files for part in listing.fingerprint_parts(each)]
    return Source(name, kind, str(root.resolve()), provenance.sha256(*parts), train, test)


def _idx(root: Path, reader: str) -> Source:
    check_is_folder(root)
    found = idx.listing(root)
    if found.faults:
        raise FreproError(found.faults[0].said)
    train, test = (found.counts[part] for part in IDX[reader])
    name, fingerprint = found.name or _name(root), found.fingerprint
    if reader != "idx":
        name, fingerprint = f"{name}-validation", provenance.sha256(fingerprint, "validation")
        if not test:
            raise FreproError(f"{root} has one training image per class, so none for validation: use data with more")
    return Source(name, reader, str(root.resolve()), fingerprint, train, test, len(found.classes))


def _folder(root: Path) -> Source:
    splits, faults = listing.class_folders(root)
    if faults:
        raise FreproError(faults[0].said)
    parts = [part for split in splits.values() for part in listing.fingerprint_parts(split.images)]
    train = len(splits["train"].images) if "train" in splits else 0
    test, classes = len(splits["test"].images), len(splits["test"].class_to_idx)
    is_imagenet = (train or IMAGENET.train, test, classes) == (IMAGENET.train, IMAGENET.test, IMAGENET.classes)
    name = IMAGENET.name if is_imagenet else _name(root)
    folders = {kind: str(split.folder) for kind, split in splits.items()}
    return Source(name, "folder", str(root.resolve()), provenance.sha256(*parts), train, test, classes, folders)


def _listed(path: Path, split: float | None, seed: int) -> Source:
    found = lists.splits(path, split, seed)
    parts = [
        part
        for name, each in found.items()
        for part in (name.encode(), *listing.fingerprint_parts(each.images), *(i.label.encode() for i in each.images))
    ]
    train, test = (len(each.images) for each in found.values())
    chosen = {} if split is None else {"split": str(split), "seed": str(seed)}
    classes = len(found["train"].class_to_idx)
    name = _name(path.with_suffix("")) if lists.is_csv(str(path)) else _name(path)
    return Source(name, "list", str(path.resolve()), provenance.sha256(*parts), train, test, classes, chosen)


def _name(root: Path) -> str:
    """Return the name of a folder's data in tables."""
    return printable(listing.nfc(root.resolve().name.lower()))
