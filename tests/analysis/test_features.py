"""Feature maps: the right tensors of the right places, whatever a family's layout."""

import pytest
import timm
import torch
from torch import nn

from frepro.analysis import features

SIZE = 64
ALL = features.KINDS
NO_RESIDUAL = ("downsample", "mixer", "block")


def make(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **kwargs)


@pytest.fixture
def images():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["dfformer_s18", "cdfformer_s18", "spanetv2_s18_hybrid", "caformer_s18"])
def test_forty_layers_of_the_s18_frame(name, images):
    """Figure 7 of DFFormer: 4 downsamplings, 18 token mixers, 18 MLPs."""
    found = features.feature_maps(make(name), images, ("downsample", "mixer_residual", "block"))
    assert len(found) == 40
    assert [layer.stage for layer in found] == [1] * 7 + [2] * 7 + [3] * 19 + [4] * 7
    sides = {1: (64, 16), 2: (128, 8), 3: (320, 4), 4: (512, 2)}
    assert all(layer.value.shape == (2, sides[layer.stage][0], *2 * sides[layer.stage][1:]) for layer in found)
    blocks = [layer for layer in found if layer.kind == "block"]
    assert [layer.depth for layer in blocks] == list(range(1, 19))


@pytest.mark.parametrize(
    ("name", "kinds", "counts"),
    [
        ("spanet_small", ALL, (4, 24, 24, 24)),
        ("convformer_s18", ALL, (4, 18, 18, 18)),
        ("focalnet_tiny_srf", ALL, (4, 12, 12, 12)),
        ("convnext_atto", NO_RESIDUAL, (4, 12, 12)),
        ("gfnet_h_ti", NO_RESIDUAL, (4, 19, 19)),
    ],
)
def test_layers_of_other_families(name, kinds, counts, images):
    kwargs = {"img_size": SIZE} if name.startswith(("spanet", "gfnet")) else {}
    found = features.feature_maps(make(name, **kwargs), images, kinds)
    assert tuple(sum(layer.kind == kind for layer in found) for kind in kinds) == counts
    assert {layer.value.shape[2] for layer in found} == {16, 8, 4, 2}


@pytest.mark.parametrize("name", ["dfformer_s18", "spanet_small"])
def test_stages_end_in_the_models_own_features(name):
    """Also where channels and sides are the same number: 64 x 64 x 64."""
    images = torch.randn(1, 3, 256, 256)
    model = make(name).eval()
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True)
    found = features.feature_maps(model, images, ("block",))
    for number, want in enumerate(expected, start=1):
        torch.testing.assert_close(features.stage(found, number)[-1].value, want)


@pytest.mark.parametrize("name", ["caformer_s18", "convnext_atto"])
def test_stages_end_in_timms_own_features(name, images):
    """Also where convolutions' maps, (B, C, H, W), are followed by attention's tokens, (B, N, C)."""
    model = make(name).eval()
    found = features.feature_maps(model, images, ("block",))
    with torch.no_grad():
        x = model.stem(images)
        for number, stage in enumerate(model.stages, start=1):
            x = stage(x)
            torch.testing.assert_close(features.stage(found, number)[-1].value, x)


def test_tokens_lie_on_their_grid(images):
    model = make("vit_tiny_patch16_224", img_size=(64, 32)).eval()
    found = features.feature_maps(model, images[..., :32], ALL)
    assert len(found) == 1 + 3 * 12
    with torch.no_grad():
        want = model.forward_intermediates(images[..., :32], norm=False, intermediates_only=True)
    blocks = [layer.value for layer in found if layer.kind == "block"]
    assert blocks[0].shape == (2, 192, 4, 2)
    assert all(torch.equal(a, b) for a, b in zip(blocks, want, strict=True))


@pytest.mark.parametrize("name", ["vim_tiny", "vimf_tiny_h"])
def test_class_token_in_the_middle_is_left_out(name, images):
    model = make(name, depth=2, img_size=SIZE).eval()
    found = features.feature_maps(model, images, NO_RESIDUAL)
    assert [layer.kind for layer in found] == ["downsample", "mixer", "block", "mixer", "block"]
    with torch.no_grad():
        want = model.forward_intermediates(images, intermediates_only=True)
    blocks = [layer.value for layer in found if layer.kind == "block"]
    for a, b in zip(blocks, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["dfformer_s18", "spanet_small"])
def test_a_block_is_the_sum_of_what_is_found_in_it(name, images):
    model = make(name).eval()
    down, mixer, residual, block = features.feature_maps(model, images, ALL)[:4]
    assert [item.kind for item in (down, mixer, residual, block)] == list(ALL)
    torch.testing.assert_close(residual.value, down.value + mixer.value)  # no ResScale in stage 1
    first = model.stages[0][0]
    x = residual.value if name == "spanet_small" else residual.value.permute(0, 2, 3, 1)
    with torch.no_grad():
        branch = first.mlp(first.norm2(x))
    branch = branch if name == "spanet_small" else branch.permute(0, 3, 1, 2)
    torch.testing.assert_close(block.value, residual.value + branch)


def test_windows_are_put_together():
    """Swin's attention gives windows; the map found is what the residual stream gains."""
    model = make("swin_tiny_patch4_window7_224").eval()
    found = features.feature_maps(model, torch.randn(1, 3, 224, 224), ALL)
    down, mixer, residual, _ = found[:4]
    assert mixer.value.shape == (1, 96, 56, 56)
    torch.testing.assert_close(residual.value, down.value + mixer.value)
    assert sum(item.kind == "mixer" for item in found) == 12


def test_model_is_left_as_it_was(images):
    model = make("dfformer_s18").train()
    features.feature_maps(model, images)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no layer of kind"):
        features.feature_maps(make("gfnet_ti", img_size=SIZE), images, ("mixer_residual",))


def test_errors(images):
    with pytest.raises(ValueError, match="unknown kind of layer"):
        features.feature_maps(make("dfformer_s18"), images, ("blocks",))
    with pytest.raises(ValueError, match="no block with a token mixer"):
        features.feature_maps(nn.Sequential(nn.Conv2d(3, 3, 1)), images)


def test_batches():
    images = torch.zeros(4, 3, 2, 2)
    assert [len(batch) for batch in features.batches(images)] == [4]
    assert [len(batch) for batch in features.batches(images.split(3))] == [3, 1]
    assert [len(batch) for batch in features.batches([(images, torch.zeros(4))])] == [4]
