"""Small data folders, sound or damaged at random, and what check and reader make of them.

``python -m tests.data.hostile FOLDER FIRST LAST`` prints a line of JSON for each seed. In a process of its own, because
pycocotools can crash the interpreter.
"""

import csv
import gzip
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image

from frepro.data import locate
from frepro.data.check import check
from frepro.data.coco_files import annotation_file
from frepro.data.dense import open_annotated
from frepro.data.loading import open_split
from frepro.errors import FreproError, printable

SECONDS = 60  # more than this for a folder of a dozen small images is a hang
SIDE = 16
NAMES = ("a", "A", "1", "01", "10", "2", "naïve ☃", "e\u0301", "n01440764", "x,y", "a b", "-", "$(touch F)", "images")

Damage = Callable[[random.Random, Path], None]


def save(path: Path, grey: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (SIDE, SIDE), grey).convert(mode).save(path, format="JPEG" if path.suffix == ".JPEG" else "PNG")


# Sound folders --------------------------------------------------------------------------------------------------------


def class_folders(rng: random.Random, root: Path) -> None:
    names = rng.sample(NAMES, rng.randint(2, 4))
    for split in ("train", rng.choice(["val", "valid", "validation", "test"])):
        for number, name in enumerate(names):
            inner = rng.choice(["", "images", "a/b"])
            for index in range(rng.randint(1, 3)):
                save(root / split / name / inner / f"{index}{rng.choice(['.png', '.PNG', '.JPEG'])}", 60 * number)


def tiny_imagenet(rng: random.Random, root: Path) -> None:
    """As it is downloaded, and after its validation images have been moved into folders of classes."""
    for name in ("n01443537", "n01629819"):
        for index in range(2):
            save(root / "train" / name / "images" / f"{name}_{index}.JPEG", 60 * index)
            save(root / "val" / name / f"val_{index}.JPEG", 60 * index)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0 0 1 1")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01443537\t0\t32\t44\t62\n")


def flat_validation(rng: random.Random, root: Path) -> None:
    lines = ["ImageId,PredictionString"]
    for number, name in enumerate(("n01443537", "n01629819")):
        for index in range(2):
            save(root / "train" / name / f"{name}_{index}.JPEG", 60 * number)
            stem = f"ILSVRC2012_val_{2 * number + index:08d}"
            save(root / "val" / f"{stem}.JPEG", 60 * number)
            lines.append(f"{stem},{name} 1 2 3 4 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")


def coco(rng: random.Random, root: Path) -> None:
    with_masks = rng.random() < 0.8
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        images, annotations = [], []
        for number in range(1, 4):
            name = rng.choice([f"{number:012d}.jpg", f"sub/{number}.PNG", f"é{number}.png"])
            save(root / split / name, 60 * number)
            images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            masks = [
                [[2, 3, 6, 3, 6, 5, 2, 5]],
                {"size": [SIDE, SIDE], "counts": [34, 2, 14, 2, 14, 2, 14, 2, SIDE * SIDE - 84]},
            ]
            item = {"id": number, "image_id": number, "category_id": 90, "bbox": [2, 3, 4, 2], "area": 8, "iscrowd": 0}
            annotations.append(item | ({"segmentation": rng.choice(masks)} if with_masks else {}))
        categories = [{"id": 1, "name": "a"}, {"id": 90, "name": "b"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def ade20k(rng: random.Random, root: Path) -> None:
    for split in ("training", "validation"):
        for number in range(1, 4):
            stem = f"ADE_{number:08d}" if number < 3 else "ADE_é"
            save(root / "images" / split / f"{stem}{rng.choice(['.jpg', '.JPG', '.png'])}", 60 * number)
            name = normalize("NFD", stem) if rng.random() < 0.5 else stem
            save(root / "annotations" / split / f"{name}{rng.choice(['.png', '.PNG'])}", number, "L")
    if rng.random() < 0.7:
        (root / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.5\twall\n2\t0.3\tsky\n3\t0.2\ttree\n")


def idx(rng: random.Random, root: Path) -> None:
    root.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
        labels = np.array([0, 1, 0, 1], dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
            if rng.random() < 0.5:
                (root / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (root / name).write_bytes(content)


def listed(rng: random.Random, root: Path) -> None:
    rows = [["file", "label", "split"]]
    for split in ("train", "test"):
        for number, name in enumerate(rng.sample(["a", "A", "1", "01", "x,y"], 2) if split == "train" else []):
            for index, part in enumerate(("train", "train", "test")):
                save(root / "pictures" / name / f"{index}.png", 60 * number)
                rows.append([f"pictures/{name}/{index}.png", name, part])
    write_rows(root, rows)


def write_rows(root: Path, rows: list[list[str]]) -> None:
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


# What makes no difference ---------------------------------------------------------------------------------------------


def clutter(rng: random.Random, root: Path) -> None:
    """Files that belong to no data set."""
    folders = sorted(path for path in [root, *root.rglob("*")] if path.is_dir())
    for _ in range(rng.randint(0, 4)):
        folder = rng.choice(folders)
        match rng.randrange(6):
            case 0:
                (folder / ".DS_Store").write_bytes(b"Bud1")
            case 1:
                (folder / "._0.png").write_bytes(b"\0\5\x16\7")
            case 2:
                save(folder / ".ipynb_checkpoints" / "0-checkpoint.png", 0)
            case 3:
                (folder / "README").write_text("about")
            case 4:
                (folder / f".{rng.random()}.jpg").symlink_to("nowhere")
            case 5:
                (folder / "Thumbs.db").write_bytes(b"\0")
    if (root / "train2017").exists():
        save(root / "train2017" / "not listed.jpg", 3)
        (root / "annotations" / "captions_train2017.json").write_text("{")
        (root / "annotations" / "instances_test2017.json").write_text("{")
    if (root / "images" / "training").exists():
        (root / "sceneCategories.txt").write_text("ADE_1 abbey\n")


# Damage ---------------------------------------------------------------------------------------------------------------


def header(width: int, height: int) -> bytes:
    """A PNG of which there is only the beginning."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def replaced(path: Path, rng: random.Random) -> None:
    """Something else in the place of a file."""
    content = path.read_bytes()
    path.unlink()
    match rng.randrange(9):
        case 0:
            path.symlink_to("/nowhere/at/all")
        case 1:
            path.symlink_to(path.name)
        case 2:
            os.mkfifo(path)
        case 3:
            bind(path)
        case 4:
            path.mkdir()
        case 5:
            path.write_bytes(b"")
        case 6:
            path.write_bytes(content[: len(content) // 2])
        case 7:
            path.write_bytes(b"\xff\xfe" + content.decode("latin-1").encode("utf-16-le"))
        case 8:
            path.write_bytes(rng.randbytes(200))


def bind(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # such names are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
    os.rename("s", path.name)
    os.chdir(here)


def images_in(root: Path) -> list[Path]:
    found = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts) and p.is_file()]


def used_images(root: Path) -> list[Path]:
    return [path for path in images_in(root) if path.name != "not listed.jpg"]


def damaged_image(rng: random.Random, root: Path) -> None:
    path = rng.choice(used_images(root))
    match rng.randrange(6):
        case 0:
            path.write_bytes(header(60_000, 60_000))
        case 1:
            Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 200).save(path, format="PNG")
        case 2:
            path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(F) (w) file\n")
        case _:
            replaced(path, rng)


def damaged_folder(rng: random.Random, root: Path) -> None:
    """In the layouts of folders of classes."""
    split = rng.choice([path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")])
    match rng.randrange(7):
        case 0:
            save(split / "stray.png", 9)
        case 1:
            (split / "empty").mkdir()
        case 2:
            save(split / "lone" / "0.png", 9)
        case 3:
            for path in sorted(split.iterdir())[1:]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        case 4:
            shutil.rmtree(split)
            split.mkdir()
        case 5:
            (split / os.fsdecode(b"caf\xe9")).mkdir()
        case 6:
            save(split / "deep" / os.fsdecode(b"caf\xe9\n.png"), 9)


def as_downloaded(rng: random.Random, root: Path) -> None:
    (root / "val" / "images").mkdir()
    for path in used_images(root / "val"):
        path.rename(root / "val" / "images" / f"{path.parent.name}_{path.name}")
    for name in ("n01443537", "n01629819"):
        shutil.rmtree(root / "val" / name)


def damaged_table(name: str) -> Damage:
    """Damage to a file that is no image."""

    def damage(rng: random.Random, root: Path) -> None:
        replaced(rng.choice(sorted(root.glob(name))), rng)

    return damage


def damaged_labels(rng: random.Random, root: Path) -> None:
    file = root / "LOC_val_solution.csv"
    lines = file.read_text().splitlines()
    changed = [lines[:-1], lines[1:], [*lines[:-1], lines[-1].split(",")[0] + ","], lines[:1], [*lines, "é" * 200_000]]
    file.write_text("\n".join(rng.choice(changed)) + "\n", encoding=rng.choice(["utf-8", "utf-16"]))


NUMBERS = (None, "1", -1, 0, 1.5, 1e9, 1e308, 10**30, 10**400, float("nan"), float("inf"), True, [], {}, [1], "")
BOXES = (
    [1, 2, 3],
    [1, 2, 3, "4"],
    [1, 2, float("nan"), 4],
    [1e300, 0, 1, 1],
    [3, 3, 0, 2],
    [90, 3, 2, 2],
    [-9, -9, 99, 99],
)
SPIKES = [coordinate for number in range(2000) for coordinate in ((-1) ** number * 1e6, number % 7)]
SEGMENTATIONS = (
    *([], None, "none", [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 1, 1e9, 1, 1, 1e9]], [SPIKES]),
    *([[-50, -50, 90, -50, 90, 90]], [[500, 500, 600, 500, 600, 600]], [["1", "2", "3", "4", "5", "6"]], [1, 2, 3, 4]),
    *([[float("nan")] * 6], [{"size": [SIDE, SIDE], "counts": "0"}], [[10**400] * 6], [[True] * 6]),
    *(
        {"size": [SIDE, SIDE], "counts": counts}
        for counts in ([256], [-5, 261], [100.5, 155.5], ["256"], [0, 2**32 + 256])
    ),
    *({"size": [SIDE, SIDE], "counts": counts} for counts in ("o" * 300, "o", "é", "", None, 5, "P8", "P\0", "0" * 9)),
    *({"size": size, "counts": [256]} for size in ([SIDE, SIDE + 1], [16.0, 16.0], None, [SIDE], "1616", [2**40, 1])),
)


def damaged_annotation(rng: random.Random, root: Path) -> None:
    file = rng.choice(sorted(root.glob("annotations/instances_*2017.json"))[-2:])
    file = file if "test" not in file.name else file.with_name("instances_train2017.json")
    content = json.loads(file.read_text())
    image, item, category = (rng.choice(content[name]) for name in ("images", "annotations", "categories"))
    names = [
        "",
        ".",
        "..",
        "/etc/hostname",
        "../val2017/x.jpg",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "gone.jpg",
        None,
        7,
        "sub",
    ]
    match rng.randrange(12):
        case 0:
            image["file_name"] = rng.choice(names)
        case 1:
            image[rng.choice(["id", "width", "height"])] = rng.choice(NUMBERS)
        case 2:
            item[rng.choice(["id", "image_id", "category_id", "area", "iscrowd"])] = rng.choice(NUMBERS)
        case 3:
            item["bbox"] = rng.choice([*BOXES, *NUMBERS])
        case 4 | 5 | 6:
            item["segmentation"] = rng.choice(SEGMENTATIONS)
        case 7:
            category[rng.choice(["id", "name"])] = rng.choice([*NUMBERS, "\ud800", "new\nline"])
        case 8:
            each = rng.choice([image, item, category])
            each.pop(rng.choice(sorted(each)))
        case 9:
            content[rng.choice(sorted(content))] = rng.choice([[], None, {}, [[]], [{}], "x"])
        case 10:
            kind = rng.choice(sorted(content))
            content[kind].append(dict(rng.choice(content[kind])))
        case 11:
            for each in content["annotations"]:
                each |= rng.choice([{"iscrowd": 1}, {"image_id": str(each["image_id"])}, {"bbox": [0, 0, 0, 0]}])
    file.write_text(json.dumps(content))


def damaged_json(rng: random.Random, root: Path) -> None:
    file = root / "annotations" / "instances_train2017.json"
    text = file.read_text()
    texts = [text[:-9], "", "[]", "null", "[" * 100_000, '{"images": ' + "9" * 5000 + "}", "\ufeff" + text, "NaN"]
    match rng.randrange(3):
        case 0:
            replaced(file, rng)
        case _:
            file.write_text(rng.choice(texts))


def damaged_map(rng: random.Random, root: Path) -> None:
    path = rng.choice(used_images(root / "annotations"))
    match rng.randrange(8):
        case 0:
            Image.new("L", (SIDE, SIDE), 200).save(path, format="PNG")
        case 1:
            Image.new("RGB", (SIDE, SIDE)).save(path, format="PNG")
        case 2:
            Image.new("L", (SIDE, SIDE + 1), 1).save(path, format="PNG")
        case 3:
            Image.new("I;16", (SIDE, SIDE), 1).save(path, format="PNG")
        case 4:
            path.unlink()
        case 5:
            path.rename(path.with_suffix(".jpg"))
        case 6:
            rng.choice(used_images(root / "images")).unlink()
        case 7:
            for each in used_images(path.parent):
                Image.new("L", (SIDE, SIDE)).save(each, format="PNG")


def damaged_classes(rng: random.Random, root: Path) -> None:
    table = root / "objectInfo150.txt"
    texts = ["", "Idx\tName\n", "Idx\tName\n1\twall\n", "Idx\tName\n" + "".join(f"{i}\tx{i}\n" for i in range(400))]
    table.write_text(rng.choice(texts))
    if rng.random() < 0.5:
        replaced(table, rng)


def nested(rng: random.Random, root: Path) -> None:
    """ADE20K in folders of its scenes."""
    for path in used_images(root)[:: rng.choice([1, 2])]:
        (path.parent / "a").mkdir(exist_ok=True)
        path.rename(path.parent / "a" / path.name)


def damaged_idx(rng: random.Random, root: Path) -> None:
    path = rng.choice([path for path in sorted(root.iterdir()) if "ubyte" in path.name])
    content = path.read_bytes()
    match rng.randrange(5):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(content + b"x")
        case 2:
            path.write_bytes(struct.pack(">IIII", 0x803, 2**31, 2**31, 2**31))
        case 3:
            path.write_bytes(gzip.compress(bytes(10**7)))
        case 4:
            replaced(path, rng)


def damaged_rows(rng: random.Random, root: Path) -> None:
    with (root / "list.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    row = rng.choice(rows[1:])
    files = ["/etc/hostname", "../x.png", "", "a\0b", "x" * 5000, "pictures", "é.png", "list.csv", "a\nb.png"]
    match rng.randrange(6):
        case 0:
            row[0] = rng.choice(files)
        case 1:
            row[1] = rng.choice(["", "alone", "é", "x" * 5000])
        case 2:
            row[2] = rng.choice(["", "Test", "both", "0"])
        case 3:
            rows.append(list(row))
        case 4:
            rows[0] = rng.choice(
                [[], ["file"], ["FILE", " label ", "split"], ["file", "label"], ["file", "file", "label"]]
            )
        case 5:
            rows = rng.choice([rows[:1], [], [row[:1] for row in rows], rows[:2]])
    write_rows(root, rows)


# Layout -> function that writes a sound folder, the task of such data, and the kinds of damage.
LAYOUTS: dict[str, tuple[Damage, str, list[Damage]]] = {
    "class folders": (class_folders, "classification", [damaged_image, damaged_folder]),
    "Tiny-ImageNet": (tiny_imagenet, "classification", [damaged_image, damaged_folder, as_downloaded]),
    "flat validation": (flat_validation, "classification", [damaged_image, damaged_labels, damaged_table("*.csv")]),
    "COCO": (coco, "detection", [damaged_image, damaged_annotation, damaged_annotation, damaged_json]),
    "ADE20K": (ade20k, "segmentation", [damaged_image, damaged_map, damaged_classes, nested]),
    "idx": (idx, "classification", [damaged_idx]),
    "list": (listed, "classification", [damaged_image, damaged_rows, damaged_table("*.csv")]),
}


def judged(root: Path) -> tuple[bool, list[int], str]:
    """Whether check calls the data sound, its numbers of images, and what it says."""
    try:
        report = check(root)
    except FreproError as error:
        return False, [], str(error)
    counts = [
        int(re.search(r"([\d,]+) images", line)[1].replace(",", "")) for line in report.found if " images" in line
    ]
    assert report.text().encode(), "a report that cannot be printed"
    return not report.faults, counts, report.text()


def has_masks(root: Path, split: str) -> bool:
    content = json.loads(annotation_file(root, split).read_text())
    return any(item.get("segmentation") for item in content["annotations"])


def read(root: Path, task: str) -> list[int]:
    """Decode all samples, and return their numbers."""
    source, counts = locate(str(root), task), []
    for split in ("train", "test"):
        if split == "train" and source.train == 0:
            continue  # enough to evaluate
        if task == "classification":
            images: Any = open_split(source, split)
        else:
            images = open_annotated(source, split, masks=task == "detection" and has_masks(root, split))
        for number in range(len(images)):
            images[number]
        assert len(images) == getattr(source, split), "the source counts other images than the reader"
        counts.append(len(images))
    return counts


def attempted(root: Path, task: str) -> tuple[list[int], str | None]:
    try:
        return read(root, task), None
    except FreproError as error:
        return [], str(error)


def outcome(seed: int, folder: Path) -> dict[str, Any]:
    """What happens with the folder of a seed; "fault" says what should not have happened."""
    rng = random.Random(seed)
    layout = list(LAYOUTS)[seed % len(LAYOUTS)]
    write, task, damages = LAYOUTS[layout]
    folder = folder / str(seed) / rng.choice(["pets", "my data, v1", "naïve ☃"])
    write(rng, folder)
    root = folder / "list.csv" if layout == "list" else folder
    found: dict[str, Any] = {"seed": seed, "layout": layout, "damage": None}
    try:
        before = locate(str(root), task)
        clutter(rng, folder)
        assert locate(str(root), task) == before, "clutter changes the data set"
        assert judged(root)[:2] == (True, read(root, task)), f"sound data are not: {judged(root)}"
        if seed % 5:
            damage = rng.choice(damages)
            found["damage"] = getattr(damage, "__name__", str(damage))
            damage(rng, folder)
        is_sound, counts, said = judged(root)
        found |= {"is_sound": is_sound, "said": said}
        numbers, message = attempted(root, task)
        assert is_sound == (message is None), f"sound: {is_sound}, but the reader says: {message}"
        assert message is None or message == printable(message), f"not one line: {message}"
        assert message or numbers == counts, f"the reader counts {numbers}, check {counts}"
    except BaseException:  # also the alarm
        found["fault"] = traceback.format_exc()
    return found


class HangError(BaseException):
    """Not an ``OSError``, as a ``TimeoutError`` is, which the code under test would take for a damaged file."""


def alarmed(*_: object) -> None:
    raise HangError(f"more than {SECONDS} s")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, alarmed)
    for seed in range(int(sys.argv[2]), int(sys.argv[3])):
        signal.alarm(SECONDS)
        print(json.dumps(outcome(seed, Path(sys.argv[1]))), flush=True)
