"""Batches: every sample once, the same whatever the number of processes, pieces and workers."""

import dataclasses

import numpy as np
import pytest
import torch

from frepro import recipes
from frepro.data import locate
from frepro.data.loading import TestBatches, TrainBatches, loader, samples
from frepro.errors import FreproError
from tests.data.test_sources import make_folder

MEAN_STD = ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def recipe():
    return recipes.load("dfformer", "smoke")


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2)])
def test_updates_hold_the_same_samples_however_they_are_shared(processes, accumulate):
    def updates(processes, accumulate):
        plans = [TrainBatches(100, 16, 7, rank, processes, accumulate) for rank in range(processes)]
        pieces = [list(plan) for plan in plans]
        return [
            sorted(key for rank in pieces for piece in rank[u * accumulate : (u + 1) * accumulate] for key in piece)
            for u in range(plans[0].updates)
        ]

    whole = updates(1, 1)
    assert updates(processes, accumulate) == whole
    seen = [index for update in whole for _, index in update]
    assert len(whole) == 6
    assert len(seen) == len(set(seen)) == 96


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 2)])
def test_repeated_augmentation(processes, accumulate):
    """An epoch of the same length, in which images come three times in a row, within one update."""
    plans = [TrainBatches(100, 12, 7, rank, processes, accumulate, repeats=3) for rank in range(processes)]
    pieces = [list(plan) for plan in plans]
    assert plans[0].updates == 8
    for u in range(8):
        update = [index for part in range(accumulate) for rank in pieces for _, index in rank[u * accumulate + part]]
        assert len(set(update)) == 12  # draws
        assert [index % 100 for index in update] == [index % 100 for index in update[::3] for _ in range(3)]
        assert len({index % 100 for index in update}) == 4  # images


def test_draws_of_one_image_differ(recipe):
    dataset = samples(locate(None), "train", recipe, *MEAN_STD, seed=3)
    first, again = dataset[1, 5], dataset[1, 5 + len(dataset)]
    assert first[1] == again[1]
    assert not torch.equal(first[0], again[0])


def test_epochs_differ_and_repeat():
    plan = TrainBatches(100, 10, 0, 0, 1, 1)
    first = list(plan)
    assert list(plan) == first
    plan.epoch = 1
    assert [index for batch in plan for _, index in batch] != [index for batch in first for _, index in batch]


@pytest.mark.parametrize("length", [1, 7, 50])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 8])
def test_every_test_sample_once(length, processes, batch):
    seen = [i for rank in range(processes) for b in TestBatches(length, batch, rank, processes) for _, i in b]
    assert sorted(seen) == list(range(length))


def test_a_sample_depends_on_seed_epoch_and_index_alone(recipe):
    recipe = dataclasses.replace(recipe, auto_augment="rand-m9-mstd0.5-inc1", reprob=0.5)
    dataset = samples(locate(None), "train", recipe, *MEAN_STD, seed=3)
    sample = dataset[1, 5][0]
    for _ in range(3):  # whatever was drawn before
        torch.rand(1), np.random.rand()
        torch.testing.assert_close(dataset[1, 5][0], sample, rtol=0, atol=0)
    assert not torch.equal(dataset[2, 5][0], sample)
    other = samples(locate(None), "train", recipe, *MEAN_STD, seed=4)
    assert not torch.equal(other[1, 5][0], sample)


def test_workers_change_nothing(recipe):
    dataset = samples(locate(None), "train", recipe, *MEAN_STD, seed=0)
    plan = TrainBatches(len(dataset), 32, 0, 0, 1, 1)
    for (a, ta), (b, tb) in zip(loader(dataset, plan, 0, False), loader(dataset, plan, 2, False), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(ta, tb)


def test_digits_split(recipe):
    full = dataclasses.replace(recipe, samples=None)
    assert len(samples(locate("digits"), "train", full, *MEAN_STD, seed=0)) == 1297
    test = samples(locate("digits"), "test", full, *MEAN_STD, seed=0)
    assert len(test) == 500
    counts = np.bincount([test.images[i][1] for i in range(500)])
    assert counts.min() > 40  # every digit is tested
    image, _ = test[0, 0]
    assert image.shape == (3, 32, 32)


def test_folder_gives_what_was_saved(tmp_path, recipe):
    dataset = samples(locate(str(make_folder(tmp_path))), "test", recipe, *MEAN_STD, seed=0)
    assert [target for _, target in (dataset.images[i] for i in range(6))] == [0, 0, 0, 1, 1, 1]
    expected = (torch.tensor([80, 120, 60]) / 255 - 0.5) / 0.25
    torch.testing.assert_close(dataset[0, 1][0].mean(dim=(1, 2)), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(tmp_path, recipe, workers):
    folder = make_folder(tmp_path)
    from PIL import Image

    bad = folder / "train" / "dog" / "bad.jpg"
    Image.effect_noise((200, 200), 50).convert("RGB").save(bad)
    bad.write_bytes(bad.read_bytes()[:2000])
    dataset = samples(locate(str(folder)), "train", recipe, *MEAN_STD, seed=0)
    with pytest.raises(FreproError, match=r"damaged image .*bad\.jpg"):
        list(loader(dataset, TrainBatches(7, 7, 0, 0, 1, 1), workers, False))
