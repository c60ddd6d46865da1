"""Moving an image in a circle: what stays, and what does not."""

import pytest
import timm
import torch

from frepro.analysis import translation


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("vimf_tiny", depth=1)


@pytest.fixture(scope="module")
def image():
    return torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_a_move_by_whole_patches_leaves_the_amplitude(model, image):
    moved = translation.move(model, image, (96, 80))
    assert torch.allclose(moved.patches[0].roll((6, 5), dims=(0, 1)), moved.patches[1], atol=1e-5)
    patches, grid, released = moved.changes().values()
    assert patches > 0.5
    assert grid < 1e-5
    assert released > 0.01


def test_a_move_by_half_a_patch_does_not(model, image):
    assert translation.move(model, image, (8, 0)).changes()["amplitude over height and width (eq. 7)"] > 0.05


def test_no_move_changes_nothing(model, image):
    assert max(translation.move(model, image, (0, 224)).changes().values()) == 0


def test_a_padded_stem_is_refused(image):
    with pytest.raises(ValueError, match="use vimf_tiny"):
        translation.move(timm.create_model("vimf_tiny_h", depth=1), image, (16, 16))


def test_relative_change_of_a_known_pair():
    assert translation.relative_change(torch.tensor([[3.0, 4.0], [3.0, 9.0]])) == 1.0
