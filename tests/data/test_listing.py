"""One listing of a folder of classes: counts, check and reader agree, whatever the folder holds."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from frepro.data import listing, locate
from frepro.data.check import check
from frepro.data.export import export
from frepro.data.loading import open_split
from frepro.errors import FreproError, printable
from tests.data.test_sources import make_folder


def save(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (grey, 0, 0)).save(path)


def read(folder: Path) -> dict[str, list[int]]:
    """The labels of all samples by split, each sample decoded."""
    source = locate(str(folder))
    found = {split: open_split(source, split) for split in ("train", "test")}
    labels = {split: [images[index][1] for index in range(len(images))] for split, images in found.items()}
    assert [len(each) for each in labels.values()] == [source.train, source.test]
    assert set(labels["train"]) == set(range(source.classes))
    return labels


def message(folder: Path) -> str:
    with pytest.raises(FreproError) as error:
        locate(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def noise(kind: int, folder: Path) -> None:
    """Files that belong to no data set, and make no difference."""
    train = folder / "train" / "cat"
    match kind:
        case 0:
            (folder / "train" / ".DS_Store").write_bytes(b"Bud1")
        case 1:
            (train / "._0.png").write_bytes(b"\0\5\x16\7")
        case 2:
            save(train / ".ipynb_checkpoints" / "0-checkpoint.png")
        case 3:
            save(folder / "val" / ".thumbnails" / "0.png")
        case 4:
            (train / "boxes.txt").write_text("0 0 1 1")
        case 5:
            (folder / "train" / "README").write_text("about")
        case 6:
            (train / "link").symlink_to("..")


def damage(rng: np.random.Generator, folder: Path) -> None:
    """One thing that is wrong."""
    split = folder / str(rng.choice(["train", "val"]))
    victim = sorted(split.glob("*/last.png"))[0]
    match rng.integers(14):
        case 0:
            victim.write_bytes(b"")
        case 1:
            victim.write_bytes(victim.read_bytes()[:45])
        case 2:
            victim.unlink()
            victim.symlink_to("/nowhere/at/all")
        case 3:
            victim.unlink()
            victim.symlink_to(victim.name)
        case 4:
            os.mkfifo(split / "cat" / "pipe.png")
        case 5:
            with socket.socket(socket.AF_UNIX) as server:
                here = Path.cwd()
                os.chdir(split / "cat")  # such names are short
                server.bind("s.png")
                os.chdir(here)
        case 6:
            save(split / "stray.png")
        case 7:
            (split / "empty").mkdir()
        case 8:
            save(split / "lone" / "0.png")
        case 9:
            shutil.rmtree(folder / "val")  # test images alone would be enough to evaluate
        case 10:
            for path in [*folder.glob("train/[!c]*"), *folder.glob("val/[!c]*")]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        case 11:
            shutil.rmtree(split)
            for index in range(3):
                save(split / f"{index}.png")
        case 12:
            (split / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"none")
        case 13:
            (split / "cat" / "new\nline.png").write_bytes(b"none")


def generated(rng: np.random.Generator, folder: Path) -> Path:
    """A sound folder of two or three classes, some in folders of their own and with odd names."""
    classes = ["cat", "dog", "naïve ☃"][: rng.integers(2, 4)]
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            for index in range(rng.integers(1, 4)):
                inner = str(rng.choice(["", "images", "a/b"]))
                ending = str(rng.choice(["png", "PNG"]))
                save(folder / split / name / inner / f"{index}.{ending}", 80 * number)
            save(folder / split / name / "last.png", 80 * number)
    return folder


@pytest.mark.parametrize("seed", range(60))
def test_sound_is_readable_is_counted(tmp_path, seed):
    rng = np.random.default_rng(seed)
    folder = generated(rng, tmp_path / "pets")
    before = locate(str(folder))
    for kind in rng.permutation(7)[: rng.integers(4)]:
        noise(kind, folder)
    assert locate(str(folder)) == before
    is_damaged = bool(rng.integers(2))
    if is_damaged:
        damage(rng, folder)
    report = check(folder)
    assert report.text().encode()
    assert bool(report.faults) == is_damaged, report.text()
    if is_damaged:
        with pytest.raises(FreproError) as error:
            read(folder)
        assert printable(error.value) == str(error.value)
    else:
        for line, each in zip(report.found, read(folder).values(), strict=True):
            assert f": {len(each)} images of {len(set(each))} classes" in line


def test_the_class_is_the_topmost_folder(tmp_path):
    for split in ("train", "val"):
        for number, name in enumerate(("n01443537", "n01629819")):
            save(tmp_path / split / name / "images" / "0.JPEG", 200 * number)
    source = locate(str(tmp_path))
    assert (source.train, source.test, source.classes) == (2, 2, 2)
    images = open_split(source, "train")
    assert [(image.getpixel((0, 0))[0] > 100, target) for image, target in (images[0], images[1])] == [
        (False, 0),
        (True, 1),
    ]


def test_tiny_imagenet_as_downloaded_is_refused_with_what_to_do(tmp_path):
    for name in ("n01443537", "n01629819"):
        save(tmp_path / "train" / name / "images" / "0.JPEG")
    save(tmp_path / "val" / "images" / "val_0.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01443537\t0\t32\t44\t62\n")
    said = "move each image into a folder named after its class in val_annotations.txt, which is not read"
    assert message(tmp_path) == (
        f"{tmp_path / 'val'} has images of only one class, 'images', but a classifier needs two: {said}"
    )
    assert check(tmp_path).faults["splits of one class"] == (1, "val/images/")


def test_a_flat_split_names_what_was_found(tmp_path):
    make_folder(tmp_path, splits=("train",))
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    assert "has no images (.png, .jpg, .jpeg) in class folders, but 1 images outside them, such as IL" in message(
        tmp_path
    )
    assert check(tmp_path).faults.keys() == {"splits without images", "images outside of class folders"}


def test_one_class_is_no_data_for_a_classifier(tmp_path):
    assert "images of only one class, 'cat', but a classifier needs two" in message(
        make_folder(tmp_path, classes=("cat",))
    )


def test_other_formats_are_counted(tmp_path):
    make_folder(tmp_path)
    for name in ("a.webp", "b.bmp", "c.BMP"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"")
    assert check(tmp_path).found[0] == "train/: 6 images of 2 classes; not read: 2 .bmp, 1 .webp"
    for file in (tmp_path / "val" / "cat").iterdir():
        file.rename(file.with_suffix(".webp"))
    assert message(tmp_path).endswith("such as cat/: fill or remove them; files that are not read: 3 .webp")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_for_validation_goes_before_test(tmp_path, name):
    make_folder(tmp_path, splits=("train", name))
    save(tmp_path / "test" / "1.png")
    assert locate(str(tmp_path)).folders["test"] == str(tmp_path / name)


NAMES = ("a", "A", "b", "1", "01", "10", "2", "é", "e", "Z", "n01440764", "n01443537")


def test_classes_have_the_same_numbers_in_every_process(tmp_path):
    for name in NAMES:
        for split in ("train", "val"):
            save(tmp_path / split / name / "0.png")
    code = (
        "import json, sys; from frepro.data import locate; from frepro.data.loading import open_split;"
        "print(json.dumps([[*open_split(locate(sys.argv[1]), s).reader.class_to_idx] for s in ('train', 'test')]))"
    )
    numberings = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert [json.loads(each) for each in numberings] == [[sorted(NAMES)] * 2] * 3


def test_names_are_compared_in_one_form(tmp_path):
    """A Mac's file system may give a name back decomposed."""
    composed, decomposed = normalize("NFC", "café"), normalize("NFD", "café")
    assert composed != decomposed
    for root, names in (("one", (composed, composed)), ("two", (composed, decomposed)), ("three", (decomposed,) * 2)):
        for split, name in zip(("train", "val"), names, strict=True):
            save(tmp_path / root / "pets" / split / name / f"{name}.png", 200)
            save(tmp_path / root / "pets" / split / "zebra" / "0.png")
    sources = [locate(str(tmp_path / root / "pets")) for root in ("one", "two", "three")]
    assert len({json.dumps(source.spec()) for source in sources}) == 1
    assert read(tmp_path / "two" / "pets") == {"train": [0, 1], "test": [0, 1]}
    assert open_split(sources[1], "test").reader.class_to_idx == {composed: 0, "zebra": 1}


def test_links_are_followed_once(tmp_path):
    folder = make_folder(tmp_path / "pets")
    (folder / "train" / "cat" / "back").symlink_to(folder, target_is_directory=True)
    outside = tmp_path / "elsewhere"
    save(outside / "9.png")
    (folder / "train" / "dog" / "more").symlink_to(outside, target_is_directory=True)
    found = listing.Split.read(folder / "train")
    assert [image.path for image in found.images] == [
        *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)),
        "dog/more/9.png",
    ]


def test_files_beside_annotations_change_nothing(tmp_path):
    for name in ("coco", "ade20k"):
        export(name, tmp_path / name, (2, 1), 48)
    tasks = {"coco": "detection", "ade20k": "segmentation"}
    before = {name: locate(str(tmp_path / name), task) for name, task in tasks.items()}
    (tmp_path / "coco" / "annotations" / "captions_train2017.json").write_text("{}")
    (tmp_path / "coco" / "train2017" / "._000000000000.png").write_bytes(b"x")
    (tmp_path / "ade20k" / "annotations" / "training" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "ade20k" / "images" / "training" / "._ADE_train_00000001.png").write_bytes(b"x")
    assert {name: locate(str(tmp_path / name), task) for name, task in tasks.items()} == before
    assert not check(tmp_path / "ade20k").faults
