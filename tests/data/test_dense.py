"""Augmentation moves pixels and annotations together, and depends on seed, epoch and index alone."""

import dataclasses

import pytest
import torch
from torchvision.ops import box_iou, masks_to_boxes

from frepro.data import locate
from frepro.data.annotated import IGNORED
from frepro.data.dense import DenseSamples, Detection, Segmentation, collate, open_annotated
from frepro.data.export import export
from frepro.data.loading import TestBatches, TrainBatches
from frepro.data.scenes import Scenes
from frepro.errors import FreproError

SIZE, COUNT = 64, 12
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


@pytest.fixture(scope="module")
def scenes():
    return Scenes("train", SIZE, length=COUNT)


def samples(scenes, transform, seed=0):
    return DenseSamples(scenes, transform, seed, list(range(COUNT)))


@pytest.mark.parametrize("crop", [False, True])
def test_boxes_and_masks_move_together(scenes, crop):
    dataset = samples(scenes, Detection(train=True, crop=crop))
    sizes, mirrored = set(), 0
    for index in range(COUNT):
        image, target = dataset[0, index]
        sizes.add(image.shape)
        assert target["masks"].shape[1:] == image.shape[1:]
        assert len({len(target[key]) for key in ("boxes", "labels", "masks", "area", "iscrowd")}) == 1
        seen = target["masks"].flatten(1).any(1).bool()
        tight, boxes = masks_to_boxes(target["masks"][seen]), target["boxes"][seen]
        tight[:, 2:] += 1
        assert ((tight - boxes) * torch.tensor([1, 1, -1, -1]) > -2).all()  # within
        height, width = image.shape[1:]
        uncut = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < torch.tensor([width, height])).all(1)
        assert (box_iou(tight, boxes).diag() > 0.8)[uncut].all()
        mirrored += not crop and not torch.equal(target["masks"].bool(), scenes[index].masks)
    assert (len(sizes) > 1) == crop
    assert crop or 0 < mirrored < COUNT


def test_detection_in_tests_changes_nothing(scenes):
    image, target = Detection(train=False)(scenes[1])
    assert torch.equal(target["boxes"], scenes[1].boxes)
    assert torch.equal(target["masks"].bool(), scenes[1].masks)
    assert torch.equal(target["labels"], scenes[1].labels + 1)
    assert int(target["image_id"]) == 1
    assert torch.equal((image * 255).round().byte().permute(1, 2, 0).flatten(), bytes_of(scenes[1].image))


def bytes_of(image):
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)


def test_an_empty_image_passes(scenes):
    empty = next(scene for scene in Scenes("train", SIZE) if not len(scene.labels))
    for crop in (False, True):
        _, target = Detection(train=True, crop=crop)(empty)
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape[0] == 0


def test_crowds_are_left_out_in_training_alone(scenes):
    scene = scenes[1]
    crowd = torch.zeros_like(scene.crowd)
    crowd[0] = True
    scene = dataclasses.replace(scene, crowd=crowd)  # scenes are kept, and others look at them
    assert len(Detection(train=True)(scene)[1]["labels"]) == len(crowd) - 1
    assert torch.equal(Detection(train=False)(scene)[1]["iscrowd"], crowd)


def test_nothing_is_mirrored_where_it_would_be_another_sign(scenes):
    scene = scenes[1]
    detection, segmentation = Detection(True, mirror=False), Segmentation(True, SIZE, MEAN, STD, mirror=False)
    for _ in range(8):
        image, target = detection(scene)
        torch.testing.assert_close(image, Detection(False)(scene)[0])
        assert torch.equal(target["masks"].bool(), scene.masks)
    segmentation.ratios = (1.0, 1.0)
    for _ in range(8):
        assert torch.equal(segmentation(scene)[1], scene.semantic.long())


def test_image_and_map_move_together(scenes):
    """The map in place of the picture: wherever it is known, both are still the same."""
    from PIL import Image

    transform = Segmentation(True, 48, (0,) * 3, (1,) * 3, ratios=(1.0, 2.0))
    transform.colours = torch.nn.Identity()
    agree, mirrored, ignored = [], [], 0
    for index in range(1, COUNT):
        scene = scenes[index]
        levels = (scene.semantic * 20 * (scene.semantic != IGNORED)).numpy()
        scene = dataclasses.replace(scene, image=Image.fromarray(levels).convert("RGB"))
        image, semantic = transform(scene)
        assert image.shape == (3, 48, 48)
        assert semantic.shape == (48, 48)
        assert semantic.dtype == torch.int64
        known = semantic != IGNORED
        agree.append(((image[0] * 255 / 20 - semantic).abs() < 0.5)[known].float().mean())
        mirrored.append(((image[0].flip(1) * 255 / 20 - semantic).abs() < 0.5)[known].float().mean())
        ignored += (~known).sum()
    assert sum(agree) / len(agree) > 0.9  # but for edges, which resizing blurs
    assert sum(agree) - sum(mirrored) > 0.1 * len(agree)
    assert ignored > 0


def test_a_square_is_not_all_of_one_class(scenes):
    """Of pieces of the same scenes, cut with and without the rule, fewer are of nearly one class."""

    def shares(most):
        transform = Segmentation(True, 32, MEAN, STD)
        transform.MOST = most
        dataset = samples(scenes, transform)
        counts = [
            torch.bincount(dataset[epoch, i][1].flatten(), minlength=256)[:255]
            for epoch in (0, 1)
            for i in range(COUNT)
        ]
        return sum(bool(count.max() > 0.75 * count.sum()) for count in counts)

    assert shares(0.75) < shares(1.0)


def test_segmentation_in_tests_keeps_the_map(scenes):
    image, semantic = Segmentation(False, 96, MEAN, STD)(scenes[2])
    assert image.shape == (3, 96, 96)
    assert torch.equal(semantic, scenes[2].semantic.long())
    expected = torch.tensor(MEAN)[:, None, None] + torch.tensor(STD)[:, None, None] * image
    assert expected.min() > -0.01
    assert expected.max() < 1.01


@pytest.mark.parametrize("transform", [Detection(True, crop=True), Segmentation(True, 48, MEAN, STD)])
def test_a_sample_depends_on_seed_epoch_and_index_alone(scenes, transform):
    dataset = samples(scenes, transform)
    image = dataset[1, 5][0]
    torch.rand(3)
    dataset[0, 2]
    assert torch.equal(dataset[1, 5][0], image)
    others = [dataset[2, 5][0], samples(scenes, transform, seed=1)[1, 5][0], dataset[1, 5 + COUNT][0]]
    assert not all(other.shape == image.shape and torch.equal(other, image) for other in others)


def test_batches(scenes):
    dataset = samples(scenes, Detection(train=True))
    (batch, *_) = TrainBatches(len(dataset), 4, 0, 0, 1, 1)
    images, targets = collate([dataset[key] for key in batch])
    assert len(images) == len(targets) == 4
    tested = [int(dataset[key][1]["image_id"]) for batch in TestBatches(COUNT, 5, 0, 1) for key in batch]
    assert tested == list(range(COUNT))


def test_data_by_name(tmp_path):
    assert isinstance(open_annotated(locate(None, "detection"), "test", SIZE), Scenes)
    export("ade20k", tmp_path / "ade", (1, 1), SIZE)
    read = open_annotated(locate(str(tmp_path / "ade"), "segmentation"), "test")
    assert torch.equal(read[0].semantic, Scenes("test", SIZE)[0].semantic)
    scene = dataclasses.replace(Scenes("train", SIZE)[0], semantic=None)
    with pytest.raises(FreproError, match="no semantic maps"):
        Segmentation(False, SIZE, MEAN, STD)(scene)


def test_sides_are_rounded_up_to_a_multiple_in_tests_alone():
    scene = Scenes("test", SIZE)[0]
    scene = dataclasses.replace(scene, image=scene.image.resize((100, 70)), semantic=torch.zeros(70, 100).byte())
    image, semantic = Segmentation(False, 70, MEAN, STD, multiple=32)(scene)
    assert image.shape == (3, 96, 128)
    assert semantic.shape == (70, 100)
    assert Segmentation(True, 70, MEAN, STD, multiple=32)(scene)[0].shape == (3, 70, 70)


def test_a_very_long_image_keeps_pixels_enough_for_a_network_in_tests():
    scene = Scenes("test", SIZE)[0]
    long, unknown = scene.image.resize((3000, 1)), torch.zeros(1, 3000, dtype=torch.uint8)
    scene = dataclasses.replace(scene, image=long, semantic=unknown)
    image, semantic = Segmentation(False, 96, MEAN, STD)(scene)
    assert image.shape == (3, 32, 2048)
    assert semantic.shape == (1, 3000)
    assert Segmentation(True, 96, MEAN, STD)(scene)[0].shape == (3, 96, 96)
