"""COCO's layout is read back as it was written, and in all the forms that its annotations have."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from frepro.data.check import check
from frepro.data.coco import Coco
from frepro.data.coco_files import _uncompressed, annotation_file
from frepro.data.export import export
from frepro.data.scenes import CLASSES, Scenes
from frepro.errors import FreproError
from tests.data.test_scenes import equal

pytest.importorskip("pycocotools")
SIZE = 48


@pytest.fixture
def folder(tmp_path):
    export("coco", tmp_path / "coco", (40, 3), SIZE, seed=2)
    return tmp_path / "coco"


@pytest.mark.parametrize(("split", "count"), [("train", 40), ("test", 3)])
def test_what_is_read_back_is_what_the_scenes_give(folder, split, count):
    dataset, scenes = Coco(folder, split), Scenes(split, SIZE, seed=2, length=count)
    assert len(dataset) == count
    assert dataset.classes == CLASSES
    assert any(not len(scene.labels) for scene in scenes) == (split == "train")  # an empty image is among them
    for read, scene in zip((dataset[i] for i in range(count)), scenes, strict=True):
        assert read.semantic is None
        equal(dataclasses.replace(read, semantic=scene.semantic), scene)


def test_pycocotools_reads_the_file(folder):
    from pycocotools.coco import COCO

    truth, scene = COCO(annotation_file(folder, "train")), Scenes("train", SIZE, seed=2)[0]
    masks = [truth.annToMask(item) for item in truth.loadAnns(truth.getAnnIds(0))]
    assert np.array_equal(np.stack(masks).astype(bool), scene.masks.numpy())


def write(folder, annotations, size=(20, 10), categories=(1, 90)):
    """A training split of one image of width and height ``size``, with its file of annotations."""
    (folder / "train2017").mkdir(parents=True)
    Image.new("RGB", size).save(folder / "train2017" / "a.jpg")
    items = [
        {"id": i, "image_id": 7, "category_id": 90, "area": 4, "bbox": [2, 3, 4, 2], "iscrowd": 0, **item}
        for i, item in enumerate(annotations, start=1)
    ]
    images = [{"id": 7, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    content = {"images": images, "annotations": items, "categories": [{"id": i, "name": f"c{i}"} for i in categories]}
    annotation_file(folder, "train").parent.mkdir()
    annotation_file(folder, "train").write_text(json.dumps(content))
    return folder


POLYGON = [[2, 3, 6, 3, 6, 5, 2, 5]]  # columns 2 to 5, rows 3 and 4


def test_polygons_run_lengths_and_crowds(tmp_path):
    expected = torch.zeros(10, 20, dtype=torch.bool)
    expected[3:5, 2:6] = True
    counts = [23, 2, 8, 2, 8, 2, 8, 2, 145]  # down the columns, from nothing
    (image,) = Coco(
        write(
            tmp_path,
            [
                {"segmentation": POLYGON},
                {"segmentation": {"size": [10, 20], "counts": counts}, "iscrowd": 1, "category_id": 1},
                {"segmentation": [POLYGON[0], [10, 0, 12, 0, 12, 2, 10, 2]]},  # in two parts
            ],
        ),
        "train",
    )
    assert torch.equal(image.masks[0], expected)
    assert torch.equal(image.masks[1], expected)
    assert torch.equal(image.masks[2, :, :8], expected[:, :8])
    assert int(image.masks[2].sum()) == 8 + 4
    assert image.labels.tolist() == [1, 0, 1]  # 90 is the second category
    assert image.crowd.tolist() == [False, True, False]
    assert image.boxes[0].tolist() == [2, 3, 6, 5]
    assert image.image_id == 7


def test_boxes_are_cut_at_the_border_and_those_of_zero_size_left_out(tmp_path):
    boxes = [[-3, 2, 8, 5], [4, 4, 0, 3], [4, 4, 3, 0], [15, 5, 10, 10], [30, 3, 4, 4]]
    (image,) = Coco(write(tmp_path, [{"bbox": box, "segmentation": POLYGON} for box in boxes]), "train")
    assert image.boxes.tolist() == [[0, 2, 5, 7], [15, 5, 20, 10]]
    assert len(image.labels) == len(image.masks) == len(image.areas) == len(image.crowd) == 2


def test_an_image_without_annotations(tmp_path):
    folder = write(tmp_path, [{"segmentation": POLYGON}])
    file = annotation_file(folder, "train")
    content = json.loads(file.read_text())
    content["images"].append(content["images"][0] | {"id": 8})
    file.write_text(json.dumps(content))
    _, image = Coco(folder, "train")
    assert image.boxes.shape == (0, 4)
    assert image.masks.shape == (0, 10, 20)
    assert image.labels.dtype == torch.int64


def test_what_is_wrong_is_named(tmp_path):
    def message(name, damage, annotations=({"segmentation": POLYGON},)):
        folder = write(tmp_path / name, annotations)
        damage(folder)
        with pytest.raises(FreproError) as error:
            list(Coco(folder, "train"))
        assert "\n" not in str(error.value)
        return str(error.value)

    def nothing(folder):
        return None

    assert "it is missing" in message("missing", lambda folder: (folder / "train2017" / "a.jpg").unlink())
    broken = message("broken", lambda folder: (folder / "train2017" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg"))
    assert "damaged image" in broken
    assert "a.jpg" in broken
    assert "cannot be read" in message("bare", lambda folder: annotation_file(folder, "train").unlink())
    assert "is damaged" in message("cut", lambda folder: annotation_file(folder, "train").write_text('{"images": ['))
    assert "no list of" in message("other", lambda folder: annotation_file(folder, "train").write_text("{}"))
    large = message("large", lambda folder: Image.new("RGB", (30, 10)).save(folder / "train2017" / "a.jpg"))
    assert "has 30 x 10 pixels, but its masks have 20 x 10" in large
    label = message("label", nothing, [{"segmentation": POLYGON, "category_id": 3}])
    assert "labels out of range: annotation 1 of image 7: category 3 is not one of the 2" in label
    mask = message("mask", nothing, [{"segmentation": {"size": [9, 20], "counts": [23, 2, 155]}}])
    assert "the mask of annotation 1 is damaged: it has 20 x 9 pixels, but its image has 20 x 10" in mask
    far = message("far", nothing, [{"segmentation": [[1, 1, 1e9, 1, 1, 1e9]]}])
    assert "the mask of annotation 1 is damaged: a polygon has a point 1e+09 pixels away" in far
    assert "boxes that are not four numbers: annotation 1" in message(
        "box", nothing, [{"segmentation": POLYGON, "bbox": [1, 2, 3]}]
    )
    assert "annotation 1 has no mask: train RetinaNet, which learns boxes alone" in message("entry", nothing, [{}])
    lost = message("lost", nothing, [{"segmentation": POLYGON, "image_id": "1"}])
    assert "annotation 1 of image 1: the file does not list its image: run `frepro data check" in lost
    null = message("null", nothing, [{"segmentation": POLYGON, "image_id": None}])
    assert "the image_id of annotation 1 is not an integer: None" in null

    def edited(**change):
        def damage(folder):
            file = annotation_file(folder, "train")
            content = json.loads(file.read_text())
            content["images"][0] |= change
            file.write_text(json.dumps(content))

        return damage

    assert "the id of one of its images is not an integer of 64 bits: 7" in message("text", edited(id="7"))
    assert "the width of one of its images is not an integer of 64 bits: None" in message("width", edited(width=None))
    for place, name in (("absolute", "/etc/hostname"), ("above", "../val2017/b.jpg")):
        assert "which is outside the folder of images" in message(place, edited(file_name=name))


def test_boxes_without_masks_are_enough_where_masks_are_not_used(tmp_path):
    """An empty mask and an absent area are like none; the area is then that of the box."""
    for number, change in enumerate(({}, {"segmentation": []}, {"segmentation": None})):
        folder = write(tmp_path / str(number), [change])
        file = annotation_file(folder, "train")
        content = json.loads(file.read_text())
        for item in content["annotations"]:
            item.pop("area")
        file.write_text(json.dumps(content))
        image = Coco(folder, "train", masks=False)[0]
        assert image.masks is None
        width, height = (image.boxes[0, 2:] - image.boxes[0, :2]).tolist()
        assert image.areas.tolist() == [width * height]
        with pytest.raises(FreproError, match="annotation 1 has no mask"):
            Coco(folder, "train")
        (found,) = [line for line in check(folder).text().splitlines() if "train2017/:" in line]
        assert "without masks: enough for RetinaNet" in found


def test_run_lengths_are_read_as_pycocotools_writes_them():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        picture = rng.random((90, 70)) < share
        changes = np.flatnonzero(np.diff(picture.flatten("F"), prepend=False))
        lengths = np.diff(np.r_[0, changes, picture.size]).tolist()
        assert _uncompressed(mask.encode(np.asfortranarray(picture, np.uint8))["counts"].decode()) == lengths
