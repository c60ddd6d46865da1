"""Memory of a forward pass, measured in processes of their own."""

import pytest
import timm

from frepro.analysis.memory import forward_memory
from frepro.errors import FreproError


def test_larger_images_need_more_and_weights_stay():
    small, large = (forward_memory("resnet18", size, 1, "cpu") for size in (64, 512))
    parameters = sum(p.numel() for p in timm.create_model("resnet18").parameters())
    assert small["weights"] == large["weights"] == pytest.approx(4 * parameters / 2**20, rel=0.01)
    # The first convolution's map of 64 channels and what a batch norm makes of it.
    assert large["forward"] > 2 * 64 * 256**2 * 4 / 2**20
    assert large["forward"] > small["forward"] + 10


def test_what_does_not_fit_is_named():
    with pytest.raises(FreproError, match=r"resnet18 at 4000000 pixels: .*memory"):
        forward_memory("resnet18", 4_000_000, 1, "cpu")


def test_attention_written_out_holds_its_matrix():
    """CAFormer-S18 at 448 pixels: stage 3 has 28 × 28 tokens and 10 heads."""
    fused, written_out = (forward_memory("caformer_s18", 448, 1, "cpu", fused_attn=fused) for fused in (True, False))
    matrix = 4 * 10 * (28 * 28) ** 2 / 2**20
    assert written_out["forward"] > fused["forward"] + matrix / 2


def test_a_model_of_one_image_size_is_measured_too():
    found = forward_memory("deit_tiny_patch16_224", 96, 1, "cpu")
    parameters = sum(p.numel() for p in timm.create_model("deit_tiny_patch16_224", img_size=96).parameters())
    assert found["weights"] == pytest.approx(4 * parameters / 2**20, rel=0.01)
