"""COCO's annotation files, annotations/instances_*.json: read and checked, without importing torch."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from frepro.data import listing
from frepro.errors import FreproError, printable

# Folders of "train" and "test" images.
FOLDERS = {"train": "train2017", "test": "val2017"}

# The entries that each image, annotation and category must have. Annotations may also have masks ("segmentation"),
# which are read for networks that use them, "area" and "iscrowd".
ENTRIES = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


# Those that must be integers, which torch stores in 64 bits, and those that must be text.
LIMIT = 2**63
INTEGERS = {"images": ("id", "width", "height"), "annotations": ("id", "category_id"), "categories": ("id",)}
TEXTS = {"images": ("file_name",), "annotations": (), "categories": ("name",)}

# Largest coordinate of a box or polygon, and the largest length of all edges of a polygon, in pixels. pycocotools walks
# along the edges in steps that it counts in 32 bits, and crashes where there are too many.
FARTHEST, LONGEST = 1e6, 4e6


class Split(NamedTuple):
    """The images that an annotation file lists, in its order, and its categories (number, name), sorted."""

    names: tuple[str, ...]
    categories: tuple[tuple[int, str], ...]


def annotation_file(root: str | Path, split: str) -> Path:
    return Path(root) / "annotations" / f"instances_{FOLDERS[split]}.json"


def split(root: Path, name: str) -> Split:
    """Return what a split consists of; its annotation file is read again only if it has changed.

    Raises:
        FreproError: The file cannot be used.
    """
    file = annotation_file(root, name)
    try:
        found = file.stat()
    except OSError:  # `usable` says what is wrong
        return _split(file, ())
    return _split(file, (found.st_size, found.st_mtime_ns, found.st_ino))


@lru_cache(maxsize=16)
def _split(file: Path, stamp: tuple) -> Split:
    content = usable(file)
    categories = sorted((category["id"], category["name"]) for category in content["categories"])
    return Split(tuple(image["file_name"] for image in content["images"]), tuple(categories))


def usable(file: Path) -> dict[str, Any]:
    """Return the content of an annotation file, as ``read_annotations`` does.

    Raises:
        FreproError: It is missing or damaged, or its parts do not fit each other.
    """
    content = read_annotations(file)
    for kind, example in faults(content):
        raise FreproError(f"{file}: {kind}: {example}: run `frepro data check {file.parents[1]}`")
    return content


def faults(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield parts of annotations that do not fit each other, as kind of fault and example."""
    for name in ENTRIES:
        counts = Counter(item["id"] for item in content[name])
        kind = {"images": "image", "annotations": "annotation", "categories": "category"}[name]
        yield from ((f"duplicate {kind} ids", str(number)) for number, count in counts.items() if count > 1)
    if not content["images"]:
        yield "splits without images", "it lists none"
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    has_objects = False
    for item in content["annotations"]:
        if item["image_id"] not in images:
            yield "annotations of images that are not listed", f"{described(item)}: the file does not list its image"
        elif item["category_id"] not in categories:
            said = f"category {item['category_id']} is not one of the {len(categories)}"
            yield "labels out of range", f"{described(item)}: {said}"
        else:
            has_objects = True
    if not has_objects:
        yield "splits without objects", f"no object in any of its {len(images):,} images"


def described(item: dict[str, Any]) -> str:
    return f"annotation {item['id']} of image {printable(item['image_id'])}"


def object_faults(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what prevents an annotation from being read, other than its mask, as kind of fault and description."""
    if "area" in item and numbers([item["area"]]) is None:
        yield "areas that are not numbers", printable(item["area"])[:60]
    box = numbers(item["bbox"])
    if box is None or len(box) != 4:
        yield "boxes that are not four numbers", printable(item["bbox"])[:60]
    elif np.abs(box).max() > FARTHEST:
        yield "boxes out of range", f"a coordinate of {np.abs(box).max():.3g} pixels"
    if item.get("iscrowd", 0) not in (0, 1):
        yield "iscrowd other than 0 and 1", printable(item["iscrowd"])[:60]


def read_annotations(file: Path) -> dict[str, Any]:
    """Return the lists "images", "annotations" and "categories" of a file, with the entries named in ``ENTRIES``.

    Raises:
        FreproError: The file is missing or damaged.
    """
    try:
        listing.check_regular(file)
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise FreproError(f"{file} cannot be read: {reason}: put COCO's annotations there") from error
    except (ValueError, RecursionError) as error:
        raise FreproError(f"{file} is damaged: {printable(error)}: download it again") from error
    for name, entries in ENTRIES.items():
        items = content.get(name) if isinstance(content, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise FreproError(f"{file} has no list of {name}: replace it by a file in COCO's annotation format")
        for item in items:
            if lacking := [entry for entry in entries if entry not in item]:
                number = printable(item.get("id"))[:60]
                raise FreproError(f"{file}: one of its {name}, id {number}, has no {' and no '.join(lacking)}")
            _check_types(file, name, item)
    return content


def _check_types(file: Path, name: str, item: dict[str, Any]) -> None:
    """Raise ``FreproError`` for an entry of another type, and for the name of a file outside the folder of images."""
    for entry in INTEGERS[name]:
        if type(item[entry]) is not int or not -LIMIT < item[entry] < LIMIT:
            said = printable(item[entry])[:60]
            raise FreproError(f"{file}: the {entry} of one of its {name} is not an integer of 64 bits: {said}")
    for entry in TEXTS[name]:
        if not _is_unicode(item[entry]):
            raise FreproError(f"{file}: the {entry} of one of its {name} is not text: {printable(item[entry])[:60]}")
    if name == "annotations" and not isinstance(item["image_id"], int | str):
        value = printable(item["image_id"])[:60]
        raise FreproError(f"{file}: the image_id of annotation {item['id']} is not an integer: {value}")
    if name == "images" and min(item["width"], item["height"]) < 1:
        raise FreproError(f"{file}: image {item['id']} has {item['width']} x {item['height']} pixels")
    if name == "images" and (Path(item["file_name"]).is_absolute() or ".." in Path(item["file_name"]).parts):
        raise FreproError(
            f"{file}: image {item['id']} is {printable(item['file_name'])}, which is outside the folder of images"
        )


def _is_unicode(value: Any) -> bool:
    """Return whether a value is text that can be encoded; JSON may contain halves of surrogate pairs."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        return False
    return True


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
    if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
        raise ValueError(f"its size is not two integers: {str(size)[:60]}")
    if size != [height, width]:
        raise ValueError(f"it has {size[1]} x {size[0]} pixels, but its image has {width} x {height}")
    lengths = counts if isinstance(counts, list) else _uncompressed(counts)
    if not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError("its run lengths are not integers of 0 or more")
    if sum(lengths) != height * width:
        raise ValueError(f"its run lengths cover {sum(lengths):,} pixels of {height * width:,}")
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
        points = each.reshape(-1, 2)
        if (length := float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())) > LONGEST:
            raise ValueError(f"a polygon has edges of {length:.3g} pixels")
        found.append(each)
    return found


def numbers(value: Any) -> np.ndarray | None:
    """Return a list of finite numbers as an array; ``None`` for anything else, such as numbers as text."""
    if not isinstance(value, list) or not all(type(each) in (int, float) for each in value):
        return None
    try:
        found = np.array(value, dtype=float)
    except OverflowError:  # an integer beyond the largest float
        return None
    return found if np.isfinite(found).all() else None


def _uncompressed(text: Any) -> list[int]:
    """Return the run lengths encoded in COCO's text.

    They are signed, with five bits per character; from the fourth on, each is stored as the difference to the one two
    places before.

    Raises:
        ValueError: It is not such a text.
    """
    if not isinstance(text, str) or not all("0" <= character <= "o" for character in text):
        raise ValueError("its run lengths are neither a list nor COCO's text")
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if shift > 35:  # no more than 32 bits
            raise ValueError("its run lengths are too large")
        if not bits & 32:  # the last of its number
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return lengths


def mask_tools() -> ModuleType:
    """Return ``pycocotools.mask``, the only implementation of COCO's way of filling polygons."""
    try:
        from pycocotools import mask
    except ImportError:
        raise FreproError("COCO's masks need pycocotools: pip install 'frepro[dense]'") from None
    return mask
