"""Export of embedded data to real files, in the layouts of ImageNet, COCO 2017 and ADE20K.

This exercises the complete readers of the real data sets without them. Images are PNG files, which are lossless: what
is read back equals the embedded data.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frepro.data import ade20k, coco_files
from frepro.data.loading import Digits
from frepro.data.scenes import CLASSES, SEMANTIC_CLASSES, SIZE, Scenes
from frepro.errors import FreproError, unknown
from frepro.store import records


def export(
    layout: str, folder: Path, counts: tuple[int, int] | None = None, size: int = SIZE, seed: int = 0
) -> dict[str, int]:
    """Write digits ("imagenet") or scenes ("coco", "ade20k") to a new or empty folder, atomically.

    Args:
        counts: Number of training and test images, counted from the first; ``None`` for all.
        size, seed: Size and seed of the scenes.

    Returns:
        Number of images written for "train" and "test".

    Raises:
        FreproError: The layout is unknown, the folder is not empty, or a count is out of range.
    """
    if layout not in WRITERS:
        raise unknown("layout", layout, WRITERS)
    folder = folder.absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FreproError(f"{folder} already exists: give a folder that is new or empty")
    given = dict(zip(("train", "test"), counts or (None, None), strict=True))
    with records.atomic_replace(folder) as fresh:
        return {split: WRITERS[layout](fresh, split, count, size, seed) for split, count in given.items()}


def _imagenet(folder: Path, split: str, count: int | None, size: int, seed: int) -> int:
    digits = Digits(split)
    count = len(digits) if count is None else count
    if not 0 < count <= len(digits):
        raise FreproError(f"split {split} has {len(digits)} digits, not {count}: choose another count")
    if lacking := set(CLASSES) - {str(target) for target in digits.targets[:count]}:
        raise FreproError(f"the first {count} digits of split {split} have no {min(lacking)}: choose a larger count")
    for index in range(count):
        image, target = digits[index]
        _save(image, folder / ("train" if split == "train" else "val") / CLASSES[target] / f"{index:05d}.png")
    return count


def _coco(folder: Path, split: str, count: int | None, size: int, seed: int) -> int:
    tools = coco_files.mask_tools()
    scenes = _scenes(split, count, size, seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(scenes)):
        scene = scenes.annotated(index)  # used once, so not cached
        assert scene.masks is not None
        name = f"{index:012d}.png"
        _save(scene.image, folder / coco_files.FOLDERS[split] / name)
        images.append({"id": index, "file_name": name, "width": size, "height": size})
        for box, label, mask in zip(scene.boxes.tolist(), scene.labels.tolist(), scene.masks, strict=True):
            x1, y1, x2, y2 = box
            lengths = tools.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools treats 0 as missing
                    "image_id": index,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "segmentation": {"size": lengths["size"], "counts": lengths["counts"].decode("ascii")},
                    "iscrowd": 0,
                }
            )
    content = {
        "info": {"description": f"scenes of frepro, {size} pixels, seed {seed}: composed from scikit-learn's digits"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name, "supercategory": "digit"} for label, name in enumerate(CLASSES)],
    }
    records.write_text(coco_files.annotation_file(folder, split), json.dumps(content))
    return len(scenes)


def _ade20k(folder: Path, split: str, count: int | None, size: int, seed: int) -> int:
    scenes = _scenes(split, count, size, seed)
    pixels: Counter[int] = Counter()
    part = ade20k.FOLDERS[split]
    for index in range(len(scenes)):
        scene = scenes.annotated(index)  # used once, so not cached
        assert scene.semantic is not None  # every scene has a map
        raw = scene.semantic.numpy() + np.uint8(1)  # 255 wraps around to 0, which is ignored
        pixels.update(dict(enumerate(np.bincount(raw.flatten(), minlength=len(SEMANTIC_CLASSES) + 1).tolist())))
        name = f"ADE_{'train' if split == 'train' else 'val'}_{index + 1:08d}.png"
        _save(scene.image, folder / "images" / part / name)
        _save(Image.fromarray(raw), folder / "annotations" / part / name)
    if split == "train":
        known = sum(pixels.values()) - pixels[0]
        lines = [f"{i}\t{pixels[i] / known:.4f}\t{name}" for i, name in enumerate(SEMANTIC_CLASSES, start=1)]
        table = folder / f"objectInfo{len(SEMANTIC_CLASSES)}.txt"
        records.write_text(table, "\n".join(["Idx\tRatio\tName", *lines]) + "\n")
    return len(scenes)


def _scenes(split: str, count: int | None, size: int, seed: int) -> Scenes:
    if count is not None and count < 1:
        raise FreproError(f"split {split} cannot have {count} scenes: choose a count of 1 or more")
    return Scenes(split, size, seed, count)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


WRITERS: dict[str, Callable[[Path, str, int | None, int, int], int]] = {
    "imagenet": _imagenet,
    "coco": _coco,
    "ade20k": _ade20k,
}
