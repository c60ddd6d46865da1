"""GFNet: the formulas of filter and block, and the official names and beginnings."""

import numpy as np
import pytest
import timm
import torch

from frepro.models.gfnet import GFNet, GFNetBlock, GlobalFilter

PLAIN = {"depths": (3,), "dims": (16,), "img_size": 64, "num_classes": 5}
PYRAMID = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 20), "img_size": 64, "num_classes": 5}


def make(name: str, **kwargs) -> GFNet:
    """A registered model at a size for tests, in which nothing is zero or one by initialisation."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(height=64, width=64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_official_tensor_names():
    """One of each kind; a pyramid has a list around its stages and a scale in its blocks."""
    shapes = {
        key: tuple(value.shape) for key, value in timm.create_model("gfnet_ti", device="meta").state_dict().items()
    }
    assert shapes["patch_embed.proj.weight"] == (256, 3, 16, 16)
    assert shapes["pos_embed"] == (1, 196, 256)
    assert shapes["blocks.11.filter.complex_weight"] == (14, 8, 256, 2)
    assert shapes["blocks.11.mlp.fc1.weight"] == (1024, 256)
    assert shapes["head.weight"] == (1000, 256)
    assert "blocks.0.gamma" not in shapes
    pyramid = timm.create_model("gfnet_h_ti", device="meta").state_dict()
    shapes = {key: tuple(value.shape) for key, value in pyramid.items()}
    assert shapes["patch_embed.0.proj.weight"] == (64, 3, 4, 4)
    assert shapes["patch_embed.3.proj.weight"] == (512, 256, 2, 2)
    assert shapes["pos_embed"] == (1, 3136, 64)
    assert shapes["blocks.2.9.filter.complex_weight"] == (14, 8, 256, 2)
    assert shapes["blocks.2.9.gamma"] == (256,)


@pytest.mark.parametrize(("name", "scale"), [("gfnet_h_ti", 1e-3), ("gfnet_h_s", 1e-5), ("gfnet_h_b", 1e-6)])
def test_layer_scales_begin_as_the_official_ones(name, scale):
    model = timm.create_model(name, **PYRAMID)
    assert torch.equal(model.blocks[0][0].gamma, torch.full((8,), scale))


def test_filter_is_a_product_of_spectra():
    mixer = GlobalFilter(3, size=(6, 8))
    x = torch.randn(2, 6, 8, 3)
    weight = torch.view_as_complex(mixer.complex_weight.detach()).numpy()
    expected = np.fft.irfft2(np.fft.rfft2(x.numpy(), axes=(1, 2)) * weight, s=(6, 8), axes=(1, 2))
    torch.testing.assert_close(mixer(x), torch.from_numpy(expected).float())


def test_block_has_one_residual_around_filter_and_mlp():
    block = GFNetBlock(6, size=(4, 4), drop_path=0.0, layer_scale=0.5)
    x = torch.randn(2, 4, 4, 6)
    expected = x + 0.5 * block.mlp(block.norm2(block.filter(block.norm1(x))))
    torch.testing.assert_close(block(x), expected)


def test_plain_model_is_its_parts_in_order():
    model, x = make("gfnet_ti", **PLAIN), images()
    tokens = model.patch_embed.proj(x).flatten(2).transpose(1, 2) + model.pos_embed
    maps = tokens.unflatten(1, (4, 4))
    for block in model.blocks:
        maps = block(maps)
    torch.testing.assert_close(model(x), model.head(model.norm(maps).mean((1, 2))))


@pytest.mark.parametrize(("name", "kwargs", "smallest"), [("gfnet_ti", PLAIN, 16), ("gfnet_h_ti", PYRAMID, 32)])
def test_too_small_an_image_is_refused(name, kwargs, smallest):
    model = make(name, **kwargs)
    model.set_input_size(smallest)
    with pytest.raises(ValueError, match="too small"):
        model.set_input_size(smallest - 1)
