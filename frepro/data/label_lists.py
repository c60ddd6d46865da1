"""Lists of the classes of ImageNet's validation images, for a folder that holds all of them without class folders.

Two are read, next to the images, in the folder above, or in that of the development kit or of Kaggle's download:

- Kaggle's ``LOC_val_solution.csv``, which names the class (WordNet ID) of each image;
- the development kit's ``ILSVRC2012_validation_ground_truth.txt``, with one number per image. These numbers are not the
  usual ones, in the order of the WordNet IDs: the kit's ``meta.mat`` or ``map_clsloc.txt`` says what they stand for.
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from frepro.errors import FreproError, one_line, printable

KAGGLE = "LOC_val_solution.csv"
KIT, KIT_MAT, KIT_MAP = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "map_clsloc.txt"
KIT_FOLDERS = ("", "data", "devkit", "devkit/data", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data")

# The folder of images in Kaggle's download, below the folder that the download was unpacked in or its first one.
KAGGLE_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")


class Labels(NamedTuple):
    """The list that was found, and the class of each image by the name of its file without suffix."""

    file: Path
    classes: dict[str, str]


def images_root(root: Path) -> Path:
    """Return the folder that holds train/ and val/: that of Kaggle's download below ``root``, or ``root`` itself."""
    return next((root / below for below in KAGGLE_FOLDERS if (root / below).is_dir()), root)


def find(folder: Path) -> Labels | None:
    """Return the list of labels that belongs to a folder of validation images; ``None`` if there is none.

    Raises:
        FreproError: The list cannot be used.
    """
    if file := _first(folder, KAGGLE):
        return Labels(file, _kaggle(file))
    if file := _first(folder, KIT):
        return Labels(file, _kit(file, folder))
    return None


def _places(folder: Path) -> Iterator[Path]:
    folder = folder.absolute()
    above = 4 if folder.parent.name == "CLS-LOC" else 1  # the root of Kaggle's download
    for base in (folder, *folder.parents[:above]):
        yield from (base / below for below in KIT_FOLDERS)


def _first(folder: Path, name: str) -> Path | None:
    return next((place / name for place in _places(folder) if (place / name).is_file()), None)


def _kaggle(file: Path) -> dict[str, str]:
    with _readable(file), file.open(encoding="utf-8-sig", newline="") as content:
        rows = csv.DictReader(content)
        if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
            raise ValueError("its columns are not ImageId and PredictionString")
        # A prediction is a class and a box, for each object of that class.
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def _kit(file: Path, folder: Path) -> dict[str, str]:
    meta = _first(folder, KIT_MAT) or _first(folder, KIT_MAP)
    if meta is None:
        raise FreproError(
            f"{printable(file)} numbers classes in an order of its own: put {KIT_MAT} of the development kit, or "
            f"{KIT_MAP}, next to it"
        )
    with _readable(meta):
        names = _mat(meta) if meta.name == KIT_MAT else _map(meta)
    with _readable(file):
        numbers = [int(line) for line in file.read_text(encoding="utf-8").split()]
        if unknown := set(numbers) - names.keys():
            raise ValueError(f"{meta.name} has no class {min(unknown)}")
        return {f"ILSVRC2012_val_{i:08d}": names[number] for i, number in enumerate(numbers, start=1)}


def _mat(file: Path) -> dict[int, str]:
    import numpy as np
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(str(file), squeeze_me=True, struct_as_record=False)["synsets"])
    return {int(synset.ILSVRC2012_ID): str(synset.WNID) for synset in synsets}


def _map(file: Path) -> dict[int, str]:
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {int(number): name for name, number, *_ in lines}


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what is wrong with a list into one line."""
    try:
        yield
    except FreproError:
        raise
    except Exception as error:  # a damaged list may cause any exception
        raise FreproError(
            f"{printable(file)} is not a list of labels ({one_line(error)}): download it again"
        ) from error
