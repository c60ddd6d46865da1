"""ADE20K as the scene parsing challenge distributes it (Zhou et al., CVPR 2017): folder ADEChallengeData2016.

Layout::

    images/training/ADE_train_00000001.jpg        annotations/training/ADE_train_00000001.png
    images/validation/ADE_val_00000001.jpg        annotations/validation/ADE_val_00000001.png
    objectInfo150.txt                             the names of the classes, one per line

An annotation is a greyscale image: 0 is ignored, 1 to 150 are the classes.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from frepro.data import listing
from frepro.data.annotated import IGNORED, AnnotatedImage, read_image
from frepro.data.listing import IMAGES
from frepro.data.sources import ADE20K
from frepro.data.sources import ADE20K_FOLDERS as FOLDERS
from frepro.errors import DamagedImageError, FreproError, printable

REVISION = {"ADE20K": 1}

CLASSES = ADE20K.classes


class Ade20k(Dataset):
    """Images of a split with semantic maps, in the order of their names; there are no objects.

    The labels 1 to 150 of the files become 0 to 149, and 0 becomes 255.

    Raises:
        FreproError: A file is missing or damaged, differs in size from its image, or has labels out of range.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.pairs = pairs(root, split)
        self.semantic_classes = self.classes = class_names(root)
        if not self.pairs:
            raise FreproError(
                f"{Path(root) / 'images' / FOLDERS[split]} holds no images ({', '.join(IMAGES)}): give the folder "
                "ADEChallengeData2016 itself, with all images of a split in one folder"
            )

        if not any(map(_may_have_labels, (annotation for _, annotation in self.pairs))):
            raise FreproError(
                f"{self.pairs[0][1].parent} has no label in any of its {len(self.pairs):,} maps: a map holds 0 for "
                "what is ignored, and 1 and more for classes"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> AnnotatedImage:
        file, annotation = self.pairs[index]
        image = read_image(file, "RGB")
        width, height = image.size
        raw = grey_levels(read_image(annotation))
        fault = map_fault(raw, (height, width), len(self.classes))
        if fault:
            raise FreproError(f"{annotation} {fault[1]}: replace the file")
        assert raw is not None  # a map without grey levels is a fault
        return AnnotatedImage(
            image=image,
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            masks=torch.zeros(0, height, width, dtype=torch.bool),
            areas=torch.zeros(0),
            crowd=torch.zeros(0, dtype=torch.bool),
            semantic=torch.from_numpy(raw - np.uint8(1)),  # 0 wraps around to 255
            image_id=index,
        )


def pairs(root: str | Path, split: str) -> list[tuple[Path, Path]]:
    """Return the image files of a split with their annotations, sorted by name; see ``listing.pairs``."""
    folders = [Path(root) / kind / FOLDERS[split] for kind in ("images", "annotations")]
    for folder in folders:
        if not folder.is_dir():
            raise FreproError(f"{folder} is missing: give the folder ADEChallengeData2016 itself")
    return listing.pairs(*folders)


def class_names(root: str | Path) -> list[str]:
    """Return the names in the data set's table objectInfo150.txt, or the numbers 1 to 150 if it is missing.

    Raises:
        FreproError: The table cannot be read.
    """
    table = listing.class_table(Path(root))
    if table is None:
        return [str(number) for number in range(1, CLASSES + 1)]
    try:
        listing.check_regular(table)
        lines = table.read_text(encoding="utf-8-sig").splitlines()[1:]  # skips the header; the last column is Name
    except (OSError, UnicodeDecodeError) as error:
        raise FreproError(f"{printable(table)} cannot be read ({printable(error)}): copy it again") from error
    names = [line.split("\t")[-1].strip() for line in lines if line.strip()]
    if not 2 <= len(names) <= IGNORED:
        raise FreproError(f"{table} names {len(names)} classes, but a segmenter needs 2 to {IGNORED}: copy it again")
    return names


def _may_have_labels(annotation: Path) -> bool:
    """Return whether a map has a label, or is damaged, which is an error once it is read."""
    try:
        raw = grey_levels(read_image(annotation))
    except DamagedImageError:
        return True
    return raw is None or bool(raw.any())


def grey_levels(annotation: Image.Image) -> np.ndarray | None:
    """Return a semantic map as stored, (H, W) uint8; ``None`` if it has colours or more than 256 levels."""
    return np.array(annotation) if annotation.mode in ("L", "P") else None


def map_fault(raw: np.ndarray | None, size: tuple[int, int], classes: int) -> tuple[str, str] | None:
    """Return what is wrong with a semantic map, as a kind of fault and a description; ``None`` if nothing is.

    Args:
        raw: The map as returned by ``grey_levels``.
        size: Height and width of the image.
        classes: Number of classes.
    """
    if raw is None:
        return "annotations that are not greyscale images", "is not an 8-bit greyscale image"
    if raw.shape != size:
        return (
            "masks that do not match",
            f"has {raw.shape[1]} x {raw.shape[0]} pixels, but its image has {size[1]} x {size[0]}",
        )
    if (most := int(raw.max())) > classes:
        return "labels out of range", f"has label {most}, but the highest is {classes}"
    return None
