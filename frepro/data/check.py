"""Check of a data folder: its layout, counts, and everything missing or damaged, one line per kind of fault.

Every image is decoded, in threads, since Pillow releases Python's lock while it decodes.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from frepro.data import ade20k, coco, idx, listing
from frepro.data.annotated import DAMAGE, check_regular, read_image
from frepro.data.sources import ADE20K, COCO, IDX, IMAGENET, check_is_folder, layout, prefix
from frepro.errors import FreproError, printable

T = TypeVar("T")
R = TypeVar("R")
Fault = tuple[str, str]  # kind and example

SPLITS = ("train", "test")
TITLES = {
    "imagenet": "a folder for each class, like ImageNet",
    "coco": "COCO 2017",
    "ade20k": "ADE20K",
    "idx": "idx files, like MNIST",
}
SLACK = 2.0  # tolerance for boxes and masks in pixels: some coordinates in the original files are rounded


@dataclass
class Report:
    """The result of a check.

    Attributes:
        root: The data set's folder.
        layout: "imagenet", "coco", "ade20k" or "idx".
        found: One line for each split.
        faults: Kind of fault -> number of faults and first example.
    """

    root: Path
    layout: str
    found: list[str] = field(default_factory=list)
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, faults: Iterable[Fault]) -> None:
        for kind, example in faults:
            count, first = self.faults.get(kind, (0, example))
            self.faults[kind] = (count + 1, first)

    def name(self, path: Path) -> str:
        """Return a path as shown in the report."""
        return printable(path.relative_to(self.root).as_posix())

    def text(self) -> str:
        lines = [f"{printable(self.root)}: {TITLES[self.layout]}", *(f"  {line}" for line in self.found)]
        lines += [f"  wrong: {kind}: {count:,}, first {first}" for kind, (count, first) in self.faults.items()]
        return "\n".join(lines if self.faults else [*lines, "  nothing is missing or damaged"])


def check(root: str | Path, decode: bool = True) -> Report:
    """Check a complete data set.

    Args:
        root: Its folder; for idx files it may be given as in ``data.sources``, after "idx:".
        decode: Decode every image and map; otherwise only headers are read, and damage after them is not found.
            Idx files are always read completely.

    Raises:
        FreproError: There is no such folder, or its layout is unknown.
    """
    reader, folder = prefix(str(root))
    if reader in IDX:
        check_is_folder(Path(folder))
    else:
        folder = str(root)
    report = Report(Path(folder), "idx" if reader in IDX else layout(Path(folder)))
    {"imagenet": _imagenet, "coco": _coco, "ade20k": _ade20k, "idx": _idx}[report.layout](report, decode)
    return report


def _imagenet(report: Report, decode: bool) -> None:
    splits, faults = listing.class_folders(report.root)
    for fault in faults:
        report.add((fault.kind, example) for example in fault.examples)
    for split in splits.values():
        files = [split.folder / image.path for image in split.images]
        for _, found in _mapped(lambda file: _size(report, file, decode), files):
            report.add(found)
        line = f"{split.folder.name}/: {len(files):,} images of {len(split.class_to_idx):,} classes"
        line += f", named by {printable(split.listed.name)}" if split.listed else ""
        report.found.append(line + (f"; not read: {split.not_read}" if split.others else ""))
    if list(splits) == ["test"]:
        report.found.append("no train/: enough to evaluate, not to train")
    names = {name for split in splits.values() for name in split.class_to_idx}
    if len(names) == IMAGENET.classes and all(re.fullmatch(r"n\d{8}", name) for name in names):
        counts = {split.folder.name: len(split.images) for split in splits.values()}
        whole = {split.folder.name: IMAGENET.images[kind] for kind, split in splits.items()}
        _compare_with_whole(report, IMAGENET.name, counts, whole)


def _idx(report: Report, decode: bool) -> None:
    found = idx.listing(report.root)
    for fault in found.faults:
        report.add((fault.kind, printable(example)) for example in fault.examples)
    for split, (height, width) in found.sizes.items():
        images = f"{found.counts[split]:,} images of {width} x {height} pixels"
        report.found.append(f"{idx.FILES[split][0]}: {images}")
    if found.classes:
        report.found.append(f"{len(found.classes)} classes: {', '.join(found.classes)}")


def _coco(report: Report, decode: bool) -> None:
    tools = coco.mask_tools()
    categories, counts = [], {}
    for split in SPLITS:
        file, folder = coco.annotation_file(report.root, split), report.root / coco.FOLDERS[split]
        if not folder.is_dir():
            report.add([("missing folders", f"{folder.name}/")])
        if not file.is_file():
            report.add([("missing annotation files", report.name(file))])
            continue
        try:
            content = coco.read_annotations(file)
            images = {image["id"]: (image["file_name"], image["width"], image["height"]) for image in content["images"]}
            names = {category["id"]: category["name"] for category in content["categories"]}
        except FreproError as error:
            report.add([("damaged annotation files", str(error))])
            continue
        for kind in ("image", "annotation"):
            ids = Counter(item["id"] for item in content[f"{kind}s"])
            twice = [number for number, count in ids.items() if count > 1]
            report.add((f"duplicate {kind} ids", f"{file.name}: {number}") for number in twice)
        has_masks = any(item.get("segmentation") for item in content["annotations"])
        for item in content["annotations"]:
            where = f"{file.name}: annotation {item['id']} of image {printable(item['image_id'])}"
            said_of = _annotation_faults(item, images, names, tools if has_masks else None)
            report.add((kind, f"{where}: {said}") for kind, said in said_of)
        if not content["annotations"]:
            report.add([("splits without objects", folder.name)])
        if folder.is_dir():
            for faults in _mapped(lambda image: _coco_image_faults(report, folder, *image, decode), images.values()):  # noqa: B023
                report.add(faults)
        empty = len(images.keys() - {item["image_id"] for item in content["annotations"]})
        report.found.append(
            f"{folder.name}/: {len(images):,} images, {empty:,} of them without boxes, "
            f"{len(content['annotations']):,} boxes of {len(names):,} classes"
            + ("" if has_masks else ", without masks: enough for RetinaNet")
        )
        categories.append(names)
        counts[folder.name] = len(images)
    if len(categories) == 2:
        lone = categories[0].items() ^ categories[1].items()
        report.add(
            ("classes in only one split", f"{name!r}, number {number}") for number, name in sorted(lone, key=str)
        )
    if any(len(names) == COCO.classes for names in categories):
        _compare_with_whole(report, "COCO 2017", counts, {coco.FOLDERS[split]: COCO.images[split] for split in SPLITS})


def _coco_image_faults(report: Report, folder: Path, name: str, width: int, height: int, decode: bool) -> list[Fault]:
    size, faults = _size(report, folder / name, decode)
    if size is not None and size != (width, height):
        said = f"{folder.name}/{name} has {size[0]} x {size[1]} pixels, but is listed with {width} x {height}"
        return [("images of a different size than listed", said)]
    return faults


def _annotation_faults(
    item: dict[str, Any], images: dict[int, tuple[str, int, int]], names: dict[int, str], tools: ModuleType | None
) -> Iterator[Fault]:
    """Yield what is wrong with an annotation of COCO, with its mask if ``tools`` are given."""
    if item["image_id"] not in images:
        yield "annotations of images that are not listed", "the file does not list its image"
        return
    if item["category_id"] not in names:
        yield "labels out of range", f"category {item['category_id']} is not one of the {len(names)}"
    if "area" in item and coco.numbers([item["area"]]) is None:
        yield "areas that are not numbers", str(item["area"])
    _, width, height = images[item["image_id"]]
    box = coco.numbers(item["bbox"])
    if box is None or len(box) != 4:
        yield "boxes that are not four numbers", str(item["bbox"])
        return
    (x1, y1), (x2, y2) = box[:2], box[:2] + box[2:]
    if x1 >= x2 or y1 >= y2:
        yield "boxes of zero size", f"{box[2]:g} x {box[3]:g} pixels"
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        yield "boxes outside their image", f"{x1:g}, {y1:g} to {x2:g}, {y2:g} in {width} x {height} pixels"
    if tools is None:
        return
    if item.get("segmentation") is None:
        yield "annotations without masks", "others in the file have one"
        return
    try:
        reach = _reach(item["segmentation"], width, height, tools)
    except ValueError as error:
        yield "masks that do not match", str(error)
        return
    if reach is None:
        yield "empty masks", "it has no pixel"
    elif min(reach[0] - x1, reach[1] - y1, x2 - reach[2], y2 - reach[3]) < -SLACK:
        span = "{:g}, {:g} to {:g}, {:g}"
        said = f"it extends from {span.format(*reach)}, but its box from {span.format(x1, y1, x2, y2)}"
        yield "masks that do not match", said


def _reach(segmentation: Any, width: int, height: int, tools: ModuleType) -> np.ndarray | None:
    """Return the smallest box that contains a segmentation of COCO, x1, y1, x2, y2; ``None`` if it is empty.

    Raises:
        ValueError: It is not a segmentation, or belongs to an image of another size; the message says which.
    """
    if isinstance(segmentation, list):
        polygons = coco.polygons(segmentation)
        if not polygons:
            return None
        points = np.concatenate(polygons).reshape(-1, 2)
        return np.concatenate([points.min(0), points.max(0)])
    try:
        lengths = coco.run_lengths(segmentation, height, width, tools)
    except TypeError as error:  # entries that are not numbers
        raise ValueError(f"its run lengths cannot be read: {error}") from error
    x, y, w, h = tools.toBbox(lengths)
    return np.array([x, y, x + w, y + h]) if w and h else None


def _ade20k(report: Report, decode: bool) -> None:
    classes, counts = len(ade20k.class_names(report.root)), {}
    for split in SPLITS:
        part = ade20k.FOLDERS[split]
        folders = [report.root / kind / part for kind in ("images", "annotations")]
        missing = [folder for folder in folders if not folder.is_dir()]
        report.add(("missing folders", f"{report.name(folder)}/") for folder in missing)
        if missing:
            continue
        images, maps = (
            {Path(file.path).stem: folder / file.path for file in listing.images(folder)} for folder in folders
        )
        if not images:
            report.add([("splits without images", f"{report.name(folders[0])}/")])
        report.add(("images without an annotation", report.name(images[name])) for name in sorted(images.keys() - maps))
        report.add(("annotations without an image", report.name(maps[name])) for name in sorted(maps.keys() - images))
        seen, empty = np.zeros(256, dtype=bool), 0
        pairs = [(images[name], maps.get(name)) for name in images]
        for faults, labels in _mapped(lambda pair: _pair(report, *pair, classes, decode), pairs):
            report.add(faults)
            if labels is not None:
                seen[labels] = True
                empty += not labels.any()
        line = f"{part}/: {len(images):,} images"
        if decode:
            line += f", {empty:,} of them without labels, {seen[1:].sum()} of {classes} classes present"
        report.found.append(line)
        counts[part] = len(images)
    if classes == ade20k.CLASSES:
        _compare_with_whole(report, "ADE20K", counts, {ade20k.FOLDERS[split]: ADE20K.images[split] for split in SPLITS})


def _pair(
    report: Report, image: Path, annotation: Path | None, classes: int, decode: bool
) -> tuple[list[Fault], np.ndarray | None]:
    """Return the faults of an image and its annotation, and the annotation's labels as stored in the file."""
    size, faults = _size(report, image, decode)
    if annotation is None:
        return faults, None
    other, more = _size(report, annotation, decode)
    faults += more
    if size is None or other is None:
        return faults, None
    if not decode:
        return faults, None
    raw = ade20k.grey_levels(read_image(annotation))
    if fault := ade20k.map_fault(raw, size[::-1], classes):
        return [*faults, (fault[0], f"{report.name(annotation)} {fault[1]}")], None
    assert raw is not None  # a map without grey levels is a fault
    return faults, np.unique(raw)


def _size(report: Report, file: Path, decode: bool) -> tuple[tuple[int, int] | None, list[Fault]]:
    """Return the width and height of an image, and what is wrong with the file."""
    try:
        check_regular(file)
        with Image.open(file) as image:
            if decode:
                image.load()
            return image.size, []
    except FileNotFoundError:
        return None, [("missing images", report.name(file))]
    except DAMAGE as error:
        return None, [("undecodable images", f"{report.name(file)}: {printable(error)}")]


def _compare_with_whole(report: Report, name: str, counts: dict[str, int], whole: dict[str, int]) -> None:
    """Report splits whose number of images differs from that of the complete data set with the same classes."""
    for split, count in counts.items():
        if count != whole[split]:
            report.add([(f"splits that differ from {name}", f"{split}/: {count:,} images instead of {whole[split]:,}")])


def _mapped(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield results in the order of the items, computed in threads, a few thousand at a time."""
    items = list(items)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), 4096):
            yield from pool.map(function, items[start : start + 4096])
