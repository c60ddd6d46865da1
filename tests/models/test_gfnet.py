"""GFNet: the block's formula, the official sizes, and what timm asks of a backbone."""

import numpy as np
import pytest
import timm
import torch

from frepro.models.gfnet import GFNet, GFNetBlock, GlobalFilter

# Parameters of the official models, counted.
PARAMS = {
    "gfnet_ti": 7_511_784,
    "gfnet_xs": 15_985_768,
    "gfnet_s": 24_869_608,
    "gfnet_b": 43_120_616,
    "gfnet_h_ti": 15_085_096,
    "gfnet_h_s": 32_162_632,
    "gfnet_h_b": 53_744_200,
}
PLAIN = {"depths": (3,), "dims": (16,), "img_size": 64, "num_classes": 5}
PYRAMID = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 20), "img_size": 64, "num_classes": 5}
FORMS = [("gfnet_ti", PLAIN), ("gfnet_h_ti", PYRAMID)]


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


def test_every_form_is_listed():
    assert set(timm.list_models(module="gfnet")) == set(PARAMS)


@pytest.mark.parametrize("name", PARAMS)
def test_params(name):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == PARAMS[name]


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


@pytest.mark.parametrize(("name", "kwargs"), FORMS)
def test_features(name, kwargs):
    model, x = make(name, **kwargs), images(64, 96)
    last, maps = model.forward_intermediates(x, indices=[0, 2], norm=True)
    torch.testing.assert_close(last, model.forward_features(x))
    torch.testing.assert_close(model.forward_head(last), model(x))
    channels_last = model.forward_intermediates(
        x, indices=[0, 2], norm=True, output_fmt="NHWC", intermediates_only=True, stop_early=True
    )
    torch.testing.assert_close([m.permute(0, 3, 1, 2) for m in channels_last], maps)

    backbone = make(name, features_only=True, out_indices=(0, 2), **kwargs)
    backbone.model.load_state_dict(model.state_dict(), strict=False)  # it ends at stage 2
    features = backbone(x)
    assert [f.shape[1] for f in features] == backbone.feature_info.channels()
    assert [(64 // f.shape[2], 96 // f.shape[3]) for f in features] == [
        (reduction, reduction) for reduction in backbone.feature_info.reduction()
    ]
    torch.testing.assert_close(features, model.forward_intermediates(x, indices=[0, 2], intermediates_only=True))
    if name == "gfnet_ti":
        torch.testing.assert_close(maps[-1], last)


@pytest.mark.parametrize(("name", "kwargs"), FORMS)
def test_sizes(name, kwargs):
    model = make(name, **kwargs)
    with torch.no_grad():
        for size in ((32, 32), (50, 75), (128, 64)):
            assert model(images(*size)).isfinite().all()
        x = images(96, 64)
        refitted = model(x)
        model.set_input_size((96, 64))
        torch.testing.assert_close(model(x), refitted)
    smallest = min(model.feature_info[-1]["reduction"], 32)
    with pytest.raises(ValueError, match="too small"):
        model.set_input_size(smallest - 1)


@pytest.mark.parametrize(("name", "kwargs"), FORMS)
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(name, kwargs):
    gradients = []
    for checkpointing in (False, True):
        model = make(name, **kwargs).train()
        model.set_grad_checkpointing(checkpointing)
        model(images()).square().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient.isfinite().all(), key
        assert gradient.any(), key
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(("name", "kwargs"), FORMS)
def test_classifier(name, kwargs):
    model, x = make(name, in_chans=1, drop_path_rate=0.2, **kwargs), images()[:, :1]
    width = model.num_features
    assert model(x).shape == (2, 5)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, width)
    model.reset_classifier(0, "")
    assert model(x).ndim == 4
    assert model.no_weight_decay() == {"pos_embed"}
    assert model.default_cfg["first_conv"] in {key.removesuffix(".weight") for key in model.state_dict()}


@pytest.mark.parametrize(("name", "kwargs"), FORMS)
def test_bfloat16(name, kwargs):
    model, x = make(name, **kwargs), images()
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x)
        half = make(name, dtype=torch.bfloat16, **kwargs)
        half.load_state_dict(model.state_dict())
        low = half(x.bfloat16())
    for y in (mixed, low):
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1 * exact.std().item())


@pytest.mark.parametrize(("name", "kwargs"), FORMS)
def test_export(name, kwargs):
    model, x = make(name, **kwargs), images()
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    x = torch.cat([x, x, x])
    torch.testing.assert_close(exported.module()(x), model(x))
