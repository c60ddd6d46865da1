"""Every kind of damage is planted into exported data, and named in one line with its first example."""

import errno
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from frepro.cli.options import cli
from frepro.data import locate
from frepro.data.check import check, layout
from frepro.data.coco import Coco
from frepro.data.coco_files import annotation_file
from frepro.data.export import export
from frepro.data.loading import Digits, open_split
from frepro.errors import FreproError

COUNTS = {"imagenet": (40, 20), "coco": (6, 3), "ade20k": (4, 3)}
SIZE = 48


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sound data in each layout."""
    root = tmp_path_factory.mktemp("whole")
    for name, counts in COUNTS.items():
        export(name, root / name, counts, SIZE)
    return root


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copied")


@pytest.mark.parametrize("name", COUNTS)
def test_sound_data_have_no_fault(whole, name):
    report = check(whole / name)
    assert report.layout == name
    assert report.faults == {}
    assert report.text().endswith("nothing is missing or damaged")
    assert not check(whole / name, decode=False).faults
    for line, count in zip(report.found, COUNTS[name], strict=True):
        assert f"{count} images" in line


def test_counts(whole):
    from frepro.data.scenes import Scenes

    scenes = Scenes("train", SIZE, length=6)
    boxes = sum(len(scene.labels) for scene in scenes)
    empty = sum(not len(scene.labels) for scene in scenes)
    line = f"train2017/: 6 images, {empty} of them without boxes, {boxes} boxes of 10 classes"
    assert check(whole / "coco").found[0] == line
    assert check(whole / "imagenet").found == ["train/: 40 images of 10 classes", "val/: 20 images of 10 classes"]
    seen = np.unique(np.concatenate([Scenes("test", SIZE)[i].semantic.unique().numpy() for i in range(3)]))
    line = f"validation/: 3 images, 0 of them without labels, {(seen < 255).sum()} of 11 classes present"
    assert check(whole / "ade20k").found[1] == line


def test_exported_digits_are_read_back(whole):
    source = locate(str(whole / "imagenet"))
    images, digits = open_split(source, "train"), Digits("train")
    assert (source.train, source.test, source.classes) == (40, 20, 10)
    read = sorted((target, image.convert("L").tobytes()) for image, target in (images[i] for i in range(40)))
    assert read == sorted((target, image.tobytes()) for image, target in (digits[i] for i in range(40)))


# Damage to folders of classes -----------------------------------------------------------------------------------------


def first(folder, pattern):
    return sorted(folder.glob(pattern))[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def lone_class(root):
    (root / "train" / "cat").mkdir()
    shutil.copy(first(root, "train/0/*"), root / "train" / "cat")


def empty_class(root):
    (root / "val" / "cat").mkdir()


IMAGENET = {
    "undecodable images: 1, first train/0/00000.png: ": lambda root: cut(root / "train" / "0" / "00000.png"),
    "undecodable images: 2, first train/0/00000.png: ": lambda root: [
        path.write_bytes(b"") for path in sorted((root / "train" / "0").iterdir())[:2]
    ],
    "classes in only one split: 1, first train/cat/": lone_class,
    "class folders without images: 1, first val/cat/": empty_class,
    "missing folders: 1, first val/": lambda root: shutil.rmtree(root / "val"),
    "images outside of class folders: 1, first val/00000.png": lambda root: shutil.copy(
        first(root, "val/0/*"), root / "val" / "00000.png"
    ),
}


@pytest.mark.parametrize(("said", "damage"), IMAGENET.items(), ids=IMAGENET)
def test_damage_to_class_folders(copied, said, damage):
    check_damage(copied / "imagenet", said, damage)


def check_damage(root, said, damage, word="wrong"):
    """A planted damage gives its line, and no other."""
    damage(root)
    report = check(root)
    lines = [line.strip() for line in report.text().splitlines()[1 + len(report.found) :]]
    assert len(lines) == (1 if report.faults else 2), lines
    assert lines[0].startswith(f"{word}: {said}"), lines
    assert bool(report.faults) == (word == "wrong")


# Damage to COCO -------------------------------------------------------------------------------------------------------


def edited(change):
    """Damage that changes the content of the training annotations."""

    def damage(root):
        file = annotation_file(root, "train")
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return damage


def annotation(**values):
    """Damage to the first annotation; a value may be a function of the old one."""

    def change(content):
        item = content["annotations"][0]
        item.update({k: value(item[k]) if callable(value) else value for k, value in values.items()})

    return edited(change)


def corrupt(segmentation):
    return {**segmentation, "counts": segmentation["counts"][:-3]}


def shifted(segmentation):
    """The mask of another place: a corner of the picture."""
    return {"size": [SIZE, SIZE], "counts": [0, 1, SIZE * SIZE - 2, 1]}


FIRST = "first instances_train2017.json: annotation 1 of image 0: "
COCO = {
    "missing images: 1, first train2017/000000000000.png": lambda root: first(root, "train2017/*").unlink(),
    "undecodable images: 1, first train2017/000000000000.png: ": lambda root: cut(first(root, "train2017/*")),
    "images of a different size than listed: 1, first train2017/000000000000.png has 9 x 9 pixels": lambda root: (
        Image.new("RGB", (9, 9)).save(first(root, "train2017/*"))
    ),
    "missing folders: 1, first val2017/": lambda root: shutil.rmtree(root / "val2017"),
    "missing annotation files: 1, first annotations/instances_val2017.json": lambda root: annotation_file(
        root, "test"
    ).unlink(),
    "damaged annotation files: 1, first ": lambda root: cut(annotation_file(root, "train")),
    "damaged annotation files: 1": edited(lambda content: content["images"][2].pop("width")),
    f"labels out of range: 1, {FIRST}category 11 is not one of the 10": annotation(category_id=11),
    f"boxes that are not four numbers: 1, {FIRST}": annotation(bbox=[1, 2, float("nan"), 4]),
    f"masks that do not match: 1, {FIRST}it has 48 x 40 pixels, but its image has 48 x 48": annotation(
        segmentation={"size": [40, 48], "counts": [0, 48 * 40]}
    ),
    f"masks that do not match: 1, {FIRST}its run lengths cover 100 pixels of 2,304": annotation(
        segmentation={"size": [48, 48], "counts": [50, 50]}
    ),
    f"masks that do not match: 1, {FIRST}its run lengths cover": annotation(segmentation=corrupt),
    f"masks that do not match: 1, {FIRST}a polygon is not three or more pairs": annotation(segmentation=[[1, 2, 3, 4]]),
    f"masks that do not match: 1, {FIRST}it is neither polygons nor run lengths": annotation(segmentation="none"),
    f"annotations without masks: 1, {FIRST}": annotation(segmentation=[]),
    "annotations of images that are not listed: 1, first instances_train2017.json: annotation 1 of image 9": annotation(
        image_id=9
    ),
    "duplicate annotation ids: 1, first instances_train2017.json: 2": annotation(id=2),
    "classes in only one split: 2, first ": edited(lambda content: content["categories"][3].update(name="cat")),
}


@pytest.mark.parametrize(("said", "damage"), COCO.items(), ids=COCO)
def test_damage_to_coco(copied, said, damage):
    pytest.importorskip("pycocotools")
    check_damage(copied / "coco", said, damage)


UNUSUAL = {
    f"boxes without a pixel in their image, which are left out: 1, {FIRST}3, 3 to 3, 7": annotation(bbox=[3, 3, 0, 4]),
    f"boxes without a pixel in their image, which are left out: 1, {FIRST}60, 3 to 64, 7": annotation(
        bbox=[60, 3, 4, 4]
    ),
    f"boxes that extend beyond their image, which are clipped: 1, {FIRST}40, 40 to 60, 60": annotation(
        bbox=[40, 40, 20, 20], segmentation=[[41, 41, 47, 41, 47, 47]]
    ),
    f"masks that extend beyond their boxes: 1, {FIRST}it extends from 0, 0 to 48, 48": annotation(segmentation=shifted),
    f"masks without a pixel: 1, {FIRST[:-2]}": annotation(segmentation={"size": [SIZE, SIZE], "counts": [SIZE * SIZE]}),
}


@pytest.mark.parametrize(("said", "change"), UNUSUAL.items(), ids=UNUSUAL)
def test_what_is_unusual_in_coco_is_counted_and_read(copied, said, change):
    pytest.importorskip("pycocotools")
    check_damage(copied / "coco", said, change, word="note")
    images = Coco(copied / "coco", "train")
    assert [image.image.size for image in images] == [(SIZE, SIZE)] * 6


# Damage to ADE20K -----------------------------------------------------------------------------------------------------


def relabelled(root, values, mode="L"):
    Image.fromarray(np.asarray(values, dtype=np.uint8)).convert(mode).save(first(root, "annotations/training/*"))


ADE = {
    "images without an annotation: 1, first images/training/ADE_train_00000001.png": lambda root: first(
        root, "annotations/training/*"
    ).unlink(),
    "annotations without an image: 1, first annotations/training/ADE_train_00000001.png": lambda root: first(
        root, "images/training/*"
    ).unlink(),
    "missing folders: 1, first annotations/validation/": lambda root: shutil.rmtree(root / "annotations/validation"),
    "undecodable images: 1, first images/training/ADE_train_00000001.png: ": lambda root: cut(
        first(root, "images/training/*")
    ),
    "undecodable images: 1, first annotations/training/ADE_train_00000001.png: ": lambda root: cut(
        first(root, "annotations/training/*")
    ),
    "labels out of range: 1, first annotations/training/ADE_train_00000001.png has label 12": lambda root: relabelled(
        root, np.full((SIZE, SIZE), 12)
    ),
    "masks that do not match: 1, first annotations/training/ADE_train_00000001.png has 9 x 9 pixels": (
        lambda root: relabelled(root, np.ones((9, 9)))
    ),
    "annotations that are not greyscale images: 1, first annotations/training/": lambda root: relabelled(
        root, np.ones((SIZE, SIZE)), "RGB"
    ),
}


@pytest.mark.parametrize(("said", "damage"), ADE.items(), ids=ADE)
def test_damage_to_ade20k(copied, said, damage):
    check_damage(copied / "ade20k", said, damage)


def test_a_part_of_a_published_data_set_is_noted(copied):
    said = "splits that differ from ADE20K: 2, first training/: 4 images instead of 20,210"
    check_damage(copied / "ade20k", said, lambda root: first(root, "objectInfo*").unlink(), word="note")


def test_an_image_without_any_label_is_counted(copied):
    relabelled(copied / "ade20k", np.zeros((SIZE, SIZE)))
    report = check(copied / "ade20k")
    assert "4 images, 1 of them without labels" in report.found[0]
    assert not report.faults


def test_several_kinds_at_once_each_have_a_line(copied):
    root = copied / "coco"
    for said in ("missing images", "labels out of range", "duplicate annotation ids"):
        next(damage for line, damage in COCO.items() if line.startswith(said))(root)
    lines = [line for line in check(root).text().splitlines() if "wrong: " in line]
    assert len(lines) == 3


def test_headers_alone_do_not_see_damage_inside(copied):
    cut(copied / "imagenet" / "train" / "0" / "00000.png")
    assert not check(copied / "imagenet", decode=False).faults


def test_a_folder_of_no_layout(tmp_path):
    with pytest.raises(FreproError, match="has no known layout"):
        layout(tmp_path)
    with pytest.raises(FreproError, match="no data at"):
        layout(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FreproError, match="is a file"):
        layout(tmp_path / "file")


def test_export_refuses(tmp_path):
    with pytest.raises(FreproError, match="already exists"):
        export("coco", tmp_path.parent)
    with pytest.raises(FreproError, match="unknown layout 'coc'"):
        export("coc", tmp_path / "new")
    with pytest.raises(FreproError, match="split train cannot have 0 scenes"):
        export("ade20k", tmp_path / "new", (0, 1))
    with pytest.raises(FreproError, match="have no 4"):
        export("imagenet", tmp_path / "new", (4, 20))
    with pytest.raises(FreproError, match="split test has 500 digits, not 501"):
        export("imagenet", tmp_path / "new", (20, 501))
    assert not list(tmp_path.iterdir())  # nothing half written
    (tmp_path / "file").write_text("")
    with pytest.raises(FreproError, match="a part of this path is a file"):
        export("coco", tmp_path / "file" / "new", (1, 1), SIZE)


def test_a_full_disk_ends_an_export_cleanly(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(FreproError, match="the disk is full"):
        export("ade20k", tmp_path / "new", (1, 1), SIZE)
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, frepro_command):
    folder = tmp_path / "ade"
    run = CliRunner().invoke(
        cli, ["data", "export", str(folder), "--format", "ade20k", "--count", "2", "1", "--size", "32"]
    )
    assert run.exit_code == 0, run.output
    assert "2 training and 1 test images" in run.output
    first(folder, "annotations/validation/*").unlink()
    run = frepro_command("data", "check", str(folder))
    assert run.returncode == 1
    assert "wrong: images without an annotation: 1, first images/validation/ADE_val_00000001.png" in run.stdout
    assert run.stderr.strip().splitlines() == [
        f"frepro: error: {folder} has missing or damaged files: repair or download again those listed above"
    ]
