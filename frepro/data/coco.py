"""COCO 2017 as it is distributed (Lin et al., ECCV 2014): train2017/, val2017/ and annotations/instances_*.json."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from frepro.data.annotated import AnnotatedImage, read_image
from frepro.data.sources import COCO_FOLDERS as FOLDERS
from frepro.errors import FreproError, printable

REVISION = {"COCO": 1}

# The entries that each image, annotation and category must have. Annotations may also have masks ("segmentation"),
# which are read for networks that use them, "area" and "iscrowd".
ENTRIES = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


# Those that must be integers, and those that must be text.
INTEGERS = {"images": ("id", "width", "height"), "annotations": ("id", "category_id"), "categories": ("id",)}
TEXTS = {"images": ("file_name",), "annotations": (), "categories": ("name",)}

# Largest coordinate of a polygon in pixels. pycocotools walks along its edges, and crashes where they are too long.
FARTHEST = 1e6


class Coco(Dataset):
    """Annotated images of a split, in the order of their ids; there is no semantic map.

    Boxes are clipped to the image. An object whose box has no width or no height is left out, because nothing can be
    learned from it; ``frepro data check`` counts such boxes. The area of an object without one is that of its box.

    Args:
        root: Folder of the data set.
        split: "train" or "test".
        masks: Read the masks, which every object must then have.

    Attributes:
        classes: Names of the classes.
        category_ids: The file's number of each class: 1 to 90 with gaps for COCO's 80.

    Raises:
        FreproError: A file is missing or damaged, or refers to an undefined category or image.
    """

    semantic_classes = None

    def __init__(self, root: str | Path, split: str, masks: bool = True) -> None:
        self.folder = Path(root) / FOLDERS[split]
        self.file = annotation_file(root, split)
        self.mask_tools = mask_tools() if masks else None
        content = read_annotations(self.file)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        self.category_ids = [category["id"] for category in categories]
        self.images = sorted(content["images"], key=lambda image: image["id"])
        if not self.images:
            raise FreproError(f"{self.file} lists no images: run `frepro data check {root}`")
        self.objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        self.label = {category: label for label, category in enumerate(self.category_ids)}
        for item in content["annotations"]:
            if item["category_id"] not in self.label:
                known = f"{len(self.label)} categories"
                raise FreproError(
                    f"{self.file}: annotation {item['id']} has category {item['category_id']}, which is not one of its "
                    f"{known}: run `frepro data check {root}`"
                )
            if item["image_id"] not in self.objects:
                raise FreproError(
                    f"{self.file}: annotation {item['id']} belongs to image {printable(item['image_id'])!r}, which the "
                    f"file does not list: run `frepro data check {root}`"
                )
            if masks and not item.get("segmentation"):
                raise FreproError(
                    f"{self.file}: annotation {item['id']} has no mask: train RetinaNet, which learns boxes alone, or "
                    "add masks"
                )
            self.objects[item["image_id"]].append(item)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        entry = self.images[index]
        image = read_image(self.folder / entry["file_name"], "RGB")
        width, height = image.size
        if (width, height) != (entry["width"], entry["height"]):
            raise FreproError(
                f"{self.folder / entry['file_name']} has {width} x {height} pixels, but its masks have "
                f"{entry['width']} x {entry['height']}: replace the file"
            )
        objects = self.objects[entry["id"]]
        try:
            boxes = np.array([item["bbox"] for item in objects], dtype=np.float32).reshape(len(objects), 4)
        except (TypeError, ValueError) as error:
            raise FreproError(f"{self.file}: a box of image {entry['id']} is not four numbers: {error}") from error
        boxes[:, 2:] += boxes[:, :2]  # from x, y, width, height
        boxes = boxes.clip(0, [width, height, width, height])
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        objects = [objects[i] for i in kept]
        spans = boxes[kept, 2:] - boxes[kept, :2]
        areas = numbers([item.get("area", span) for item, span in zip(objects, spans.prod(1).tolist(), strict=True)])
        if areas is None:
            raise FreproError(
                f"{self.file}: an area of image {entry['id']} is not a number: `frepro data check` names it"
            )
        return AnnotatedImage(
            image=image,
            boxes=torch.from_numpy(boxes[kept].astype(np.float32)),
            labels=torch.tensor([self.label[item["category_id"]] for item in objects], dtype=torch.int64),
            masks=self._masks(objects, height, width),
            areas=torch.from_numpy(areas.astype(np.float32)),
            crowd=torch.tensor([bool(item.get("iscrowd", 0)) for item in objects], dtype=torch.bool),
            semantic=None,
            image_id=entry["id"],
        )

    def _masks(self, objects: list[dict[str, Any]], height: int, width: int) -> torch.Tensor | None:
        if self.mask_tools is None:
            return None
        masks = np.zeros((len(objects), height, width), dtype=bool)
        for mask, item in zip(masks, objects, strict=True):
            mask[:] = self.decode(item, height, width, self.mask_tools)
        return torch.from_numpy(masks)

    def decode(self, item: dict[str, Any], height: int, width: int, tools: ModuleType) -> np.ndarray:
        """Return the mask of an annotation, (height, width) bool."""
        try:
            mask = tools.decode(run_lengths(item["segmentation"], height, width, tools))
        except (ValueError, TypeError, IndexError) as error:
            raise FreproError(f"{self.file}: the mask of annotation {item['id']} is damaged: {error}") from error
        return mask.astype(bool)


def annotation_file(root: str | Path, split: str) -> Path:
    return Path(root) / "annotations" / f"instances_{FOLDERS[split]}.json"


def read_annotations(file: Path) -> dict[str, Any]:
    """Return the lists "images", "annotations" and "categories" of a file, with the entries named in ``ENTRIES``.

    Raises:
        FreproError: The file is missing or damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FreproError(f"{file} cannot be read: {error.strerror}: put COCO's annotations there") from error
    except ValueError as error:
        raise FreproError(f"{file} is damaged: {error}: download it again") from error
    for name, entries in ENTRIES.items():
        items = content.get(name) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise FreproError(f"{file} has no list of {name}: replace it by a file in COCO's annotation format")
        for item in items:
            if lacking := [entry for entry in entries if entry not in item]:
                raise FreproError(f"{file}: one of its {name}, id {item.get('id')}, has no {' and no '.join(lacking)}")
            _check_types(file, name, item)
    return content


def _check_types(file: Path, name: str, item: dict[str, Any]) -> None:
    """Raise ``FreproError`` for an entry of another type, and for the name of a file outside the folder of images."""
    kinds = [(entry, int, "an integer") for entry in INTEGERS[name]] + [(entry, str, "text") for entry in TEXTS[name]]
    for entry, kind, said in kinds:
        if type(item[entry]) is not kind:
            value = printable(str(item[entry]))[:60]
            raise FreproError(f"{file}: the {entry} of one of its {name} is not {said}: {value}")
    if name == "annotations" and not isinstance(item["image_id"], int | str):
        raise FreproError(f"{file}: the image_id of annotation {item['id']} is not an integer: {item['image_id']}")
    if name == "images" and (Path(item["file_name"]).is_absolute() or ".." in Path(item["file_name"]).parts):
        raise FreproError(
            f"{file}: image {item['id']} is {printable(item['file_name'])}, which is outside the folder of images"
        )


def run_lengths(segmentation: Any, height: int, width: int, tools: ModuleType) -> dict[str, Any]:
    """Return a segmentation (polygons, plain or compressed run lengths) as pycocotools' compressed run lengths.

    Raises:
        ValueError: It is none of these, or belongs to an image of another size, not all of which pycocotools notices.
    """
    if isinstance(segmentation, list):
        polygons(segmentation)
        return tools.merge(tools.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("it is neither polygons nor run lengths")
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"it has {' x '.join(map(str, reversed(size)))} pixels, but its image has {width} x {height}")
    pixels = sum(counts if isinstance(counts, list) else _uncompressed(counts))
    if pixels != height * width:
        raise ValueError(f"its run lengths cover {pixels:,} pixels of {height * width:,}")
    return tools.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation


def polygons(segmentation: list[Any]) -> list[np.ndarray]:
    """Return the polygons of a segmentation, each x, y, x, y, ...; pycocotools would read two points as a box.

    Raises:
        ValueError: A polygon is not three or more pairs of numbers.
    """
    found = []
    for polygon in segmentation:
        each = numbers(polygon)
        if each is None or len(each) < 6 or len(each) % 2:
            raise ValueError(f"a polygon is not three or more pairs of numbers: {str(polygon)[:60]}")
        if np.abs(each).max() > FARTHEST:
            raise ValueError(f"a polygon has a point {np.abs(each).max():.3g} pixels away")
        found.append(each)
    return found


def numbers(value: Any) -> np.ndarray | None:
    """Return a list of finite numbers as an array; ``None`` for anything else."""
    try:
        found = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return None
    return found if found.ndim == 1 and np.isfinite(found).all() else None


def _uncompressed(text: str) -> list[int]:
    """Return the run lengths encoded in COCO's text.

    They are signed, with five bits per character; from the fourth on, each is stored as the difference to the one two
    places before.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last of its number
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def mask_tools() -> ModuleType:
    """Return ``pycocotools.mask``, the only implementation of COCO's way of filling polygons."""
    try:
        from pycocotools import mask
    except ImportError:
        raise FreproError("COCO's masks need pycocotools: pip install 'frepro[dense]'") from None
    return mask
