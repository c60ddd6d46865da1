"""Scenes: functions of seed, split and index alone, whose annotations agree with each other and with the scans."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from frepro.data.annotated import IGNORED, tight_boxes
from frepro.data.scenes import APART, CLASSES, MOST, SEMANTIC_CLASSES, VISIBLE, Scenes, _shape
from frepro.data.sources import DIGITS_TRAIN
from tests.conftest import ROOT

COUNT, SIZE = 40, 64


@pytest.fixture(scope="module")
def scenes():
    dataset = Scenes("train", SIZE, length=COUNT)
    return [dataset[index] for index in range(COUNT)]


def digest(image):
    parts = (image.image.tobytes(), *(getattr(image, name).numpy().tobytes() for name in PARTS))
    return hashlib.sha256(b"".join(parts)).hexdigest()


PARTS = ("boxes", "labels", "masks", "areas", "crowd", "semantic")


def equal(one, other):
    """Two images with the same pixels and annotations; used by the tests of the readers too."""
    assert one.image.tobytes() == other.image.tobytes()
    assert one.image_id == other.image_id
    for name in PARTS:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype, name
        assert torch.equal(mine, theirs), name


def test_another_process_and_another_order_give_the_same_scenes(scenes):
    code = (
        "from frepro.data.scenes import Scenes; from tests.data.test_scenes import digest; "
        f"scenes = Scenes('train', {SIZE}, length={COUNT}); print(*(digest(scenes[i]) for i in (7, 3, 0)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.split() == [digest(scenes[index]) for index in (7, 3, 0)]


def test_seed_split_and_index_change_a_scene(scenes):
    others = [Scenes("train", SIZE, seed=1)[0], Scenes("test", SIZE)[0], scenes[1]]
    assert len({digest(scenes[0]), *map(digest, others)}) == 4


def test_a_shorter_set_is_the_start_of_a_longer_one(scenes):
    short = Scenes("train", SIZE, length=2)
    assert len(short) == len(list(short)) == 2  # iteration ends
    equal(short[1], scenes[1])


def test_boxes_are_tight_to_what_is_to_be_seen(scenes):
    for scene in scenes:
        for box, mask in zip(scene.boxes.int().tolist(), scene.masks, strict=True):
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            edges = (mask[y1, x1:x2], mask[y2 - 1, x1:x2], mask[y1:y2, x1], mask[y1:y2, x2 - 1])
            assert all(edge.any() for edge in edges)


def test_masks_share_no_pixel_and_the_semantic_map_agrees_with_them(scenes):
    for scene in scenes:
        assert (scene.masks.sum(0) <= 1).all()
        expected = (scene.masks * (scene.labels[:, None, None] + 1)).sum(0)
        known = scene.semantic != IGNORED
        assert torch.equal(scene.semantic[known].long(), expected[known])
        # What is ignored is no more than a seam: a neighbour at most two pixels away has another class.
        inside = expected.unfold(0, 5, 1).unfold(1, 5, 1).flatten(2)
        uniform = (inside == inside[..., :1]).all(-1)
        assert uniform[~known[2:-2, 2:-2]].float().mean() < 0.1 if len(scene.masks) else known.all()
    ignored = torch.stack([scene.semantic == IGNORED for scene in scenes]).float().mean()
    assert 0.005 < ignored < 0.15


def test_occluded_digits_stay_to_be_seen():
    dataset = Scenes("train", SIZE, length=COUNT)
    covered = 0
    for index in range(COUNT):
        whole = np.array([(_shape(placement, SIZE) >= 0.5).sum() for placement in dataset.compose(index)[1]])
        visible = dataset[index].masks.sum((1, 2)).numpy()
        assert (visible >= VISIBLE * whole).all()
        covered += (visible < whole).sum()
    assert covered > 3


def test_scenes_have_what_their_text_promises():
    dataset = Scenes("train", SIZE, length=200)
    scenes = [dataset[index] for index in range(200)]
    labels = torch.cat([scene.labels for scene in scenes])
    assert set(labels.tolist()) == set(range(len(CLASSES)))
    assert len(SEMANTIC_CLASSES) == len(CLASSES) + 1
    counts = [len(scene.labels) for scene in scenes]
    assert 0 < counts.count(0) < 20
    assert max(counts) == MOST
    widths = torch.cat([scene.boxes for scene in scenes])
    heights = widths[:, 3] - widths[:, 1]
    assert heights.max() > 2 * heights.min()


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_scan_of_the_test_is_in_a_training_scene(split):
    """By the placements, and by the pixels: a scene's front digit has the outline of the scan that it names."""
    digits, dataset = load_digits(), Scenes(split, SIZE, length=COUNT)
    for index in range(COUNT):
        _, placements = dataset.compose(index)
        assert all((placement.scan < DIGITS_TRAIN) == (split == "train") for placement in placements)
        scene = dataset[index]
        assert scene.labels.tolist() == [digits.target[placement.scan] for placement in placements]
        if placements:
            front = placements[-1]
            tile = scene.masks[-1, front.top : front.top + front.side, front.left : front.left + front.side]
            cells = torch.nn.functional.adaptive_avg_pool2d(tile[None].float(), 10)[0].numpy()
            assert np.corrcoef(cells.flatten(), np.pad(digits.images[front.scan], 1).flatten())[0, 1] > 0.8


def test_each_digit_is_painted_in_a_colour_of_its_own():
    dataset = Scenes("test", SIZE, length=COUNT)
    for index in range(COUNT):
        picture, placements = dataset.compose(index)
        colours = np.array([placement.colour for placement in placements])
        if placements:
            assert np.allclose(picture[_shape(placements[-1], SIZE) == 1], colours[-1])
            apart = np.linalg.norm(colours[:, None] - colours, axis=-1) + np.eye(len(colours))
            assert apart.min() >= APART


def test_tight_boxes_of_one_pixel_and_of_none():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 2, 3] = True
    assert tight_boxes(mask).tolist() == [[3, 2, 4, 3]]
    assert tight_boxes(mask[:0]).shape == (0, 4)
