"""Images without training and test folders: a folder with one subfolder per class, or a CSV of file and label.

The test images are drawn from each class in proportion to its size. Which ones depends on the seed and on the images'
names alone, so the same images are split in the same way on every machine.

A CSV has a header with the columns ``file`` and ``label``, and perhaps ``split`` (train or test), which then takes the
place of the random choice. Files are relative to the folder of the CSV.
"""

import csv
import hashlib
from collections import Counter
from pathlib import Path

from frepro.data.listing import TEST_FOLDERS, TRAIN_FOLDER, Image, Split, check_regular, is_image, nfc, on_disk
from frepro.errors import FreproError, printable

REVISION = {"image lists": 1}

COLUMNS = {
    "file": ("file", "filename", "path", "image"),
    "label": ("label", "class"),
    "split": ("split",),
}


def is_csv(data: str) -> bool:
    """Return whether data are named by a CSV file."""
    return data.lower().endswith(".csv")


def splits(path: Path, fraction: float | None, seed: int) -> dict[str, Split]:
    """Return the "train" and "test" images of a folder or CSV.

    Args:
        fraction: Share of the images of each class, between 0 and 1, that are test images; ``None`` for the column
            "split" of a CSV.
        seed: Seed of the choice.

    Raises:
        FreproError: Images are missing, or cannot be split like that.
    """
    if fraction is not None and not 0 < fraction < 1:
        raise FreproError(f"--split must be between 0 and 1, such as 0.2 for every fifth image, not {fraction}")
    images, given = _listed(path) if is_csv(str(path)) else (_in_folders(path), {})
    root = path.parent if is_csv(str(path)) else path
    if fraction is None and not given:
        raise FreproError(f"{path} does not say which images are for testing: add --split 0.2, or a column split")
    test = (
        {image for image in images if given.get(image) == "test"}
        if fraction is None
        else _drawn(images, fraction, seed, path)
    )
    found = {
        "train": Split(root, [image for image in images if image not in test]),
        "test": Split(root, [image for image in images if image in test]),
    }
    train, tested = (set(split.class_to_idx) for split in found.values())
    if train != tested:
        only = min(train ^ tested)
        raise FreproError(f"{path}: class {printable(only)!r} is in only one of train and test: both need all classes")
    if len(train) < 2:
        raise FreproError(f"{path} has images of {len(train)} class, but a classifier needs two or more")
    return found


def _drawn(images: list[Image], fraction: float, seed: int, path: Path) -> set[Image]:
    """Return the test images: of each class, those whose names have the lowest hashes."""
    test: set[Image] = set()
    for label in sorted({image.label for image in images}):
        own = [image for image in images if image.label == label]
        if len(own) < 2:
            raise FreproError(f"{path}: class {printable(label)!r} has one image, but a split needs two: add images")
        own.sort(
            key=lambda image: hashlib.sha256(f"{seed}:{nfc(image.path)}".encode(errors="surrogateescape")).digest()
        )
        test |= set(own[: min(max(1, round(fraction * len(own))), len(own) - 1)])
    return test


def _in_folders(root: Path) -> list[Image]:
    """Return the images of a folder with one subfolder per class."""
    if not root.is_dir():
        raise FreproError(f"no folder or CSV of images at {root}: give a folder with one subfolder per class")
    if present := [name for name in (TRAIN_FOLDER, *TEST_FOLDERS) if (root / name).is_dir()]:
        raise FreproError(f"{root} is split already, as it has {present[0]}/: leave out --split")
    found = Split.read(root)
    for fault in found.faults():
        raise FreproError(fault.said)
    return found.images


def _listed(path: Path) -> tuple[list[Image], dict[Image, str]]:
    """Return the images of a CSV, and "train" or "test" for each if the CSV says so."""
    try:
        check_regular(path)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
    except OSError as error:
        raise FreproError(f"no CSV at {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FreproError(f"{path} is not a CSV in UTF-8: {printable(error)}") from error
    columns = {kind: next((name for name in header if name in names), None) for kind, names in COLUMNS.items()}
    if columns["file"] is None or columns["label"] is None:
        raise FreproError(
            f"{path} has the columns {printable(', '.join(header)) or 'none'}: its first line must name file and label"
        )
    if not rows:
        raise FreproError(f"{path} lists no images: add a line with file and label for each")
    values = [{(k or "").strip().lower(): v for k, v in row.items() if isinstance(v, str)} for row in rows]
    names = [value.get(columns["file"], "").strip() for value in values]
    images, given, missing = [], {}, []
    for number, (value, file) in enumerate(zip(values, on_disk(path.parent, names), strict=True), 2):
        name, label = file.path, value.get(columns["label"], "").strip()
        if not name or not label:
            raise FreproError(f"{path}:{number}: the file or its label is missing")
        if file.size < 0:
            missing.append(name)
            continue
        if not is_image(name):
            raise FreproError(f"{path}:{number}: {printable(name)} is not an image that is read (.png, .jpg, .jpeg)")
        images.append(Image(name, file.size, nfc(label)))
        if columns["split"] is not None:
            part = value.get(columns["split"], "").strip().lower()
            if part not in (TRAIN_FOLDER, *TEST_FOLDERS):
                raise FreproError(f"{path}:{number}: split must be train or test, not {printable(part)!r}")
            given[images[-1]] = "train" if part == TRAIN_FOLDER else "test"
    if missing:
        raise FreproError(
            f"{path} names {len(missing):,} files that do not exist, such as {printable(missing[0])[:60]}: files are "
            f"relative to {path.parent}"
        )
    twice, count = Counter(image.path for image in images).most_common(1)[0]
    if count > 1:
        raise FreproError(f"{path} lists {printable(twice)} {count} times: leave one line for each image")
    return sorted(images, key=lambda image: (image.label, nfc(image.path), image.path)), given
