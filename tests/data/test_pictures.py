"""The photographs are read from scikit-learn itself; conftest forbids the network."""

import torch

from frepro.data import pictures


def test_photographs():
    images = pictures.photographs(64)
    assert images.shape == (2, 3, 64, 64)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    sky = images[0, :, 2, 32]
    assert float(sky[2]) > float(sky[0])  # "china": blue before red, so the colours are in their places
    assert images.std() > 0.1


def test_crops_repeat_themselves_and_differ_from_each_other():
    first, again = pictures.crops(6, 32, seed=1), pictures.crops(6, 32, seed=1)
    assert torch.equal(first, again)
    assert first.shape == (6, 3, 32, 32)
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first, pictures.crops(6, 32, seed=2))


def test_normalised():
    grey = torch.full((1, 3, 2, 2), 0.5)
    assert torch.equal(pictures.normalised(grey, (0.5, 0.5, 0.25), (1, 1, 0.25))[0, :, 0, 0], torch.tensor([0.0, 0, 1]))
