"""A small data set in all the layouts that ImageNet's validation images come in."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from frepro.data.loading import Digits

WNIDS = [f"n{number:08d}" for number in (1440764, 1443537, 2119789, 4004767, 15075141)]
# The development kit's numbers are not in the order of the names.
KIT_ORDER = [WNIDS[2], WNIDS[0], WNIDS[4], WNIDS[1], WNIDS[3]]
COUNT = 40


def labels() -> list[str]:
    digits = Digits("test")
    return [WNIDS[target % len(WNIDS)] for target in digits.targets[:COUNT]]


def image_name(index: int) -> str:
    return f"ILSVRC2012_val_{index + 1:08d}.JPEG"


def flat(folder: Path) -> None:
    """All validation images in one folder, as the archive holds them."""
    folder.mkdir(parents=True)
    digits = Digits("test")
    for index in range(COUNT):
        digits[index][0].resize((32, 32)).convert("RGB").save(folder / image_name(index), format="JPEG")


def class_folders(root: Path) -> None:
    flat(root / "val")
    for index, label in enumerate(labels()):
        (root / "val" / label).mkdir(exist_ok=True)
        (root / "val" / image_name(index)).rename(root / "val" / label / image_name(index))


def kaggle_list(folder: Path) -> None:
    lines = [f"{Path(image_name(i)).stem},{label} 1 2 30 31 {label} 4 5 6 7 " for i, label in enumerate(labels())]
    (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")


def kaggle(root: Path) -> None:
    """Kaggle's download, whose test images have no labels."""
    flat(root / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    test = root / "ILSVRC" / "Data" / "CLS-LOC" / "test"
    test.mkdir()
    shutil.copy(root / "ILSVRC/Data/CLS-LOC/val" / image_name(0), test / "ILSVRC2012_test_00000001.JPEG")
    kaggle_list(root)


def archive_and_kaggle_list(root: Path) -> None:
    flat(root / "val")
    kaggle_list(root)


def ground_truth(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [str(KIT_ORDER.index(label) + 1) for label in labels()]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(numbers) + "\n")


def meta(folder: Path) -> None:
    """The kit's table of classes, with one above the others at its end."""
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", object), ("words", object)]
    rows = [(i, name, "a kind") for i, name in enumerate([*KIT_ORDER, "n00001740"], start=1)]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})


def archive_and_kit(root: Path) -> None:
    flat(root / "val")
    ground_truth(root / "ILSVRC2012_devkit_t12" / "data")
    meta(root / "ILSVRC2012_devkit_t12" / "data")


def archive_and_map(root: Path) -> None:
    flat(root / "val")
    ground_truth(root)
    lines = [f"{name} {number} a_kind" for number, name in enumerate(KIT_ORDER, start=1)]
    (root / "map_clsloc.txt").write_text("\n".join(lines) + "\n")


# Name of a layout -> function that writes it to a folder.
LAYOUTS: dict[str, Callable[[Path], None]] = {
    "class folders": class_folders,
    "archive, Kaggle's list": archive_and_kaggle_list,
    "archive, development kit": archive_and_kit,
    "archive, map": archive_and_map,
    "Kaggle's download": kaggle,
}
