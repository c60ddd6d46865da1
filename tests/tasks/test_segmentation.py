"""Segmenters as runs: maps without a label, images of odd sizes, and the processes that score them together."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from frepro.data import locate
from frepro.data.export import export
from frepro.errors import FreproError
from frepro.training import loop, nonfinite
from tests.small import whole
from tests.training.test_loop import CPU

SEGMENTERS = ["semantic_fpn", "upernet"]


@pytest.fixture
def folder(tmp_path):
    """An ADE20K folder of eight scenes to train and four to test."""
    export("ade20k", tmp_path / "ade", (8, 4), 64)
    return tmp_path / "ade"


def blank(path, size=None) -> None:
    """A map without a label, of its own size or another, which its image then has too."""
    width, height = size or Image.open(path).size
    Image.fromarray(np.zeros((height, width), np.uint8)).save(path)
    if size:
        image = path.parent.parent.parent / "images" / path.parent.name / path.name
        Image.new("RGB", size, (9, 80, 200)).save(image)


def maps(folder, split: str):
    return sorted((folder / "annotations" / split).iterdir())


def ade(folder):
    return locate(str(folder), "segmentation")


@pytest.mark.parametrize("network", SEGMENTERS)
def test_maps_without_a_label(network, folder):
    """In training their loss is nothing, in tests they count nothing."""
    for path in (*maps(folder, "training")[1:], *maps(folder, "validation")[:2]):
        blank(path)
    values = loop.run(whole(network, source=ade(folder)), CPU)["values"]
    assert np.isfinite(values["train_loss"])
    assert 0 <= values["miou"] <= 100


def test_miou_without_a_label_is_refused(folder):
    for path in maps(folder, "validation"):
        blank(path)
    with pytest.raises(FreproError, match="has no label in any of its 4 maps"):
        loop.run(whole("semantic_fpn", source=ade(folder)), CPU)


@pytest.mark.parametrize("network", SEGMENTERS)
@pytest.mark.parametrize("size", [(40, 1), (1, 1), (3, 90)])
def test_images_of_odd_sizes(network, size, folder):
    for path in (maps(folder, "training")[0], maps(folder, "validation")[0]):
        blank(path, size)
    assert loop.run(whole(network, source=ade(folder)), CPU)["values"]["test_images"] == 4


def test_an_image_much_longer_than_wide(folder):
    """Its long side may have 2,048 pixels at most, which leaves one of the other."""
    for path in (maps(folder, "training")[0], maps(folder, "validation")[0]):
        blank(path, (3000, 1))
    assert loop.run(whole("semantic_fpn", source=ade(folder)), CPU)["values"]["test_images"] == 4


def test_upernet_needs_two_images_in_a_pass():
    with pytest.raises(FreproError, match="UperNet's batch norms need at least two images in a forward pass"):
        loop.run(whole("upernet"), loop.Execution(device="cpu", per_device=1))


def test_a_loss_is_gone_through_again_to_the_bit(monkeypatch):
    run = whole("upernet")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "isfinite", lambda loss, finite=torch.isfinite: finite(loss) & (loss.ndim > 0))
        with pytest.raises(FreproError, match="at optimizer step 1"):
            loop.run(run, CPU)
    found = nonfinite.replay(run.measurement.folder / "nonfinite", partial(loop.make_accelerator, "cpu"))
    assert found["again"] == found["loss"]
