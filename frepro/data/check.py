"""Check of a data folder: its layout, counts, and everything missing or damaged, one line per kind of fault.

Every image is decoded, in threads, since Pillow releases Python's lock while it decodes.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from frepro.data import ade20k, coco_files, idx, listing, lists
from frepro.data.annotated import DAMAGE, opened, read_image
from frepro.data.sources import ADE20K, COCO, IDX, IMAGENET, check_is_folder, layout, prefix
from frepro.errors import DamagedImageError, FreproError, printable

T = TypeVar("T")
R = TypeVar("R")
Fault = tuple[str, str]  # kind and example

SPLITS = ("train", "test")
TITLES = {
    "imagenet": "a folder for each class, like ImageNet",
    "coco": "COCO 2017",
    "ade20k": "ADE20K",
    "idx": "idx files, like MNIST",
    "list": "images of labels, to be split or split already",
}
SLACK = 2.0  # tolerance for boxes and masks in pixels: some coordinates in the original files are rounded


@dataclass
class Report:
    """The result of a check.

    Attributes:
        root: The data set's folder.
        layout: "imagenet", "coco", "ade20k" or "idx".
        found: One line for each split.
        faults: Kind of fault -> number of faults and first example. Data with a fault cannot be used as they are.
        notes: The same for what is unusual but can be read.
    """

    root: Path
    layout: str
    found: list[str] = field(default_factory=list)
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, faults: Iterable[Fault]) -> None:
        for kind, example in faults:
            _count(self.faults, kind, example)

    def note(self, kind: str, example: str) -> None:
        _count(self.notes, kind, example)

    def name(self, path: Path) -> str:
        """Return a path as shown in the report."""
        return printable(os.path.relpath(path, self.root if self.layout != "list" else self.root.parent))

    def text(self) -> str:
        lines = [f"{printable(self.root)}: {TITLES[self.layout]}", *(f"  {line}" for line in self.found)]
        lines += [f"  note: {kind}: {count:,}, first {first}" for kind, (count, first) in self.notes.items()]
        lines += [f"  wrong: {kind}: {count:,}, first {first}" for kind, (count, first) in self.faults.items()]
        return "\n".join(lines if self.faults else [*lines, "  nothing is missing or damaged"])


def _count(found: dict[str, tuple[int, str]], kind: str, example: str) -> None:
    count, first = found.get(kind, (0, example))
    found[kind] = (count + 1, first)


def check(root: str | Path, decode: bool = True, split: float | None = None) -> Report:
    """Check a complete data set.

    Args:
        split: Share of test images, as for ``data.locate``.
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
    if split is not None or (lists.is_csv(folder) and not os.path.isdir(folder)):
        report = Report(Path(folder), "list")
        _list(report, decode, split)
        return report
    report = Report(Path(folder), "idx" if reader in IDX else layout(Path(folder)))
    {"imagenet": _imagenet, "coco": _coco, "ade20k": _ade20k, "idx": _idx}[report.layout](report, decode)
    return report


def _list(report: Report, decode: bool, split: float | None) -> None:
    for name, found in lists.splits(report.root, split, seed=0).items():
        files = [found.folder / image.path for image in found.images]
        for _, faults in _mapped(lambda file: _size(report, file, decode), files):
            report.add(faults)
        report.found.append(f"{name}: {len(files):,} images of {len(found.class_to_idx):,} classes")


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
    tools = coco_files.mask_tools()
    categories, counts = [], {}
    for split in SPLITS:
        file, folder = coco_files.annotation_file(report.root, split), report.root / coco_files.FOLDERS[split]
        if not folder.is_dir():
            report.add([("missing folders", f"{folder.name}/")])
        if not os.path.lexists(file):
            report.add([("missing annotation files", report.name(file))])
            continue
        try:
            content = coco_files.read_annotations(file)
        except FreproError as error:
            report.add([("damaged annotation files", str(error))])
            continue
        report.add((kind, f"{file.name}: {example}") for kind, example in coco_files.faults(content))
        found = listing.on_disk(folder, (image["file_name"] for image in content["images"]))
        images = {
            image["id"]: (file.path, image["width"], image["height"])
            for image, file in zip(content["images"], found, strict=True)
        }
        names = {category["id"]: category["name"] for category in content["categories"]}
        has_masks = any(item.get("segmentation") for item in content["annotations"])
        for item in content["annotations"]:
            if item["image_id"] in images and item["category_id"] in names:
                _, width, height = images[item["image_id"]]
                _check_annotation(report, file.name, item, width, height, tools if has_masks else None)
        others = 0
        if folder.is_dir():
            for faults in _mapped(lambda image: _coco_image_faults(report, folder, *image, decode), images.values()):  # noqa: B023
                report.add(faults)
            present = {file.path for file in listing.files(folder) if listing.is_image(file.path)}
            others = len(present - {file.path for file in found})
        empty = len(images.keys() - {item["image_id"] for item in content["annotations"]})
        report.found.append(
            f"{folder.name}/: {len(images):,} images, {empty:,} of them without boxes, "
            f"{len(content['annotations']):,} boxes of {len(names):,} classes"
            + ("" if has_masks else ", without masks: enough for RetinaNet")
            + (f"; not read: {others:,} images that are not listed" if others else "")
        )
        categories.append(names)
        counts[folder.name] = len(images)
    if len(categories) == 2:
        lone = categories[0].items() ^ categories[1].items()
        report.add(
            ("classes in only one split", f"{name!r}, number {number}") for number, name in sorted(lone, key=str)
        )
    if any(len(names) == COCO.classes for names in categories):
        whole = {coco_files.FOLDERS[split]: COCO.images[split] for split in SPLITS}
        _compare_with_whole(report, "COCO 2017", counts, whole)


def _coco_image_faults(report: Report, folder: Path, name: str, width: int, height: int, decode: bool) -> list[Fault]:
    size, faults = _size(report, folder / name, decode)
    if size is not None and size != (width, height):
        said = f"{folder.name}/{name} has {size[0]} x {size[1]} pixels, but is listed with {width} x {height}"
        return [("images of a different size than listed", said)]
    return faults


def _check_annotation(
    report: Report, file: str, item: dict[str, Any], width: int, height: int, tools: ModuleType | None
) -> None:
    """Report what is wrong or unusual with an annotation of COCO, and with its mask if ``tools`` are given."""
    where = f"{file}: {coco_files.described(item)}"
    if faults := [*coco_files.object_faults(item)]:
        report.add((kind, f"{where}: {said}") for kind, said in faults)
        return
    (x1, y1), (x2, y2) = item["bbox"][:2], np.add(item["bbox"][:2], item["bbox"][2:])
    said = f"{where}: {x1:g}, {y1:g} to {x2:g}, {y2:g} in {width} x {height} pixels"
    if not (max(x1, 0) < min(x2, width) and max(y1, 0) < min(y2, height)):
        report.note("boxes without a pixel in their image, which are left out", said)
        return
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        report.note("boxes that extend beyond their image, which are clipped", said)
    if tools is None:
        return
    if not item.get("segmentation"):
        report.add([("annotations without masks", f"{where}: others in the file have one")])
        return
    try:
        reach = _reach(item["segmentation"], width, height, tools)
    except ValueError as error:
        report.add([("masks that do not match", f"{where}: {printable(error)}")])
        return
    if reach is None:
        report.note("masks without a pixel", where)
    elif min(reach[0] - x1, reach[1] - y1, x2 - reach[2], y2 - reach[3]) < -SLACK:
        span = "{:g}, {:g} to {:g}, {:g}"
        said = f"it extends from {span.format(*reach)}, but its box from {span.format(x1, y1, x2, y2)}"
        report.note("masks that extend beyond their boxes", f"{where}: {said}")


def _reach(segmentation: Any, width: int, height: int, tools: ModuleType) -> np.ndarray | None:
    """Return the smallest box that contains a segmentation of COCO, x1, y1, x2, y2; ``None`` if it is empty.

    Raises:
        ValueError: It is not a segmentation, or belongs to an image of another size; the message says which.
    """
    if isinstance(segmentation, list):
        polygons = coco_files.polygons(segmentation)
        points = np.concatenate(polygons).reshape(-1, 2)
        return np.concatenate([points.min(0), points.max(0)])
    lengths = coco_files.run_lengths(segmentation, height, width, tools)
    x, y, w, h = tools.toBbox(lengths)
    return np.array([x, y, x + w, y + h]) if w and h else None


def _ade20k(report: Report, decode: bool) -> None:
    counts, classes = {}, 0
    try:
        classes = len(ade20k.class_names(report.root))
    except FreproError as error:
        report.add([("damaged tables of classes", str(error))])
    for split in SPLITS:
        part = ade20k.FOLDERS[split]
        folders = [report.root / kind / part for kind in ("images", "annotations")]
        missing = [folder for folder in folders if not folder.is_dir()]
        report.add(("missing folders", f"{report.name(folder)}/") for folder in missing)
        if missing:
            continue
        pairs = listing.pairs(*folders)
        if not pairs:
            report.add([("splits without images", f"{report.name(folders[0])}/")])
        seen, empty = np.zeros(256, dtype=bool), 0
        for faults, labels in _mapped(lambda pair: _pair(report, *pair, classes, decode), pairs):
            report.add(faults)
            if labels is not None:
                seen[labels] = True
                empty += not labels.any()
        line = f"{part}/: {len(pairs):,} images"
        if decode:
            line += f", {empty:,} of them without labels, {seen[1:].sum()} of {classes} classes present"
            if pairs and empty == len(pairs):
                report.add([("splits without labels", f"{report.name(folders[1])}/")])
        deeper = sum("/" in path and listing.is_image(path) for path, _ in listing.files(folders[0]))
        report.found.append(line + (f"; not read: {deeper:,} images in subfolders" if deeper else ""))
        counts[part] = len(pairs)
    if classes == ade20k.CLASSES:
        _compare_with_whole(report, "ADE20K", counts, {ade20k.FOLDERS[split]: ADE20K.images[split] for split in SPLITS})


def _pair(
    report: Report, image: Path, annotation: Path, classes: int, decode: bool
) -> tuple[list[Fault], np.ndarray | None]:
    """Return the faults of an image and its annotation, and the annotation's labels as stored in the file."""
    if not os.path.lexists(annotation):
        return [*_size(report, image, decode)[1], ("images without an annotation", report.name(image))], None
    if not os.path.lexists(image):
        return [("annotations without an image", report.name(annotation))], None
    size, faults = _size(report, image, decode)
    try:
        raw = ade20k.grey_levels(read_image(annotation)) if decode else None
    except DamagedImageError as error:
        return [*faults, ("undecodable images", f"{report.name(annotation)}: {error}")], None
    if size is None or not decode:
        return faults, None
    if fault := ade20k.map_fault(raw, size[::-1], classes):
        return [*faults, (fault[0], f"{report.name(annotation)} {fault[1]}")], None
    assert raw is not None  # a map without grey levels is a fault
    return faults, np.unique(raw)


def _size(report: Report, file: Path, decode: bool) -> tuple[tuple[int, int] | None, list[Fault]]:
    """Return the width and height of an image, and what is wrong with the file."""
    try:
        with opened(file) as image:
            if decode:
                image.convert("RGB")
            return image.size, []
    except FileNotFoundError:
        return None, [("missing images", report.name(file))]
    except DAMAGE as error:
        return None, [("undecodable images", f"{report.name(file)}: {printable(error)}")]


def _compare_with_whole(report: Report, name: str, counts: dict[str, int], whole: dict[str, int]) -> None:
    """Note splits whose number of images differs from that of the complete data set with the same classes."""
    for split, count in counts.items():
        if count != whole[split]:
            report.note(f"splits that differ from {name}", f"{split}/: {count:,} images instead of {whole[split]:,}")


def _mapped(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield results in the order of the items, computed in threads, a few thousand at a time."""
    items = list(items)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), 4096):
            yield from pool.map(function, items[start : start + 4096])
