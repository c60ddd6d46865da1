"""Vision Mamba and Vim-F: the official functions and the papers' properties."""

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from frepro.models.vim import BidirectionalMamba, VisionMamba, insert_middle, resize_pos_embed, split_middle
from frepro.models.vimf import SpectralPatchEmbed, VimF, v1_spectrum
from frepro.ops import amplitude_spectrum
from tests.golden import assert_official

SMALL = {"embed_dim": 16, "depth": 3, "d_state": 4, "img_size": 64, "num_classes": 5}


def make(name: str, **kwargs) -> VisionMamba:
    """A registered model at a size for tests, in which nothing is zero or one by initialisation."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(height=64, width=64, batch=2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# The official functions


@pytest.mark.parametrize("name", ["vim_tiny", "vimf_v1_tiny", "vimf_v2_tiny"])
def test_recorded_logits_of_the_official_code(name):
    assert_official(name)


def test_long_sequence_takes_the_same_weights():
    """Table 3: 784 tokens for 196, all weights as they are."""
    tokens = {}
    for name in ("vimf_tiny_h", "vimf_tiny_h_stride8"):
        model = make(name, img_size=224, depth=1)
        tokens[name] = model.forward_features(images(224, 224, batch=1)).shape[1] - 1
    assert tokens == {"vimf_tiny_h": 196, "vimf_tiny_h_stride8": 784}
    model.load_state_dict(make("vimf_tiny_h", depth=1).state_dict())


def test_stochastic_depth_grows_to_its_rate():
    """The official list, one rate ahead of the block whose output it drops: 0, 0, ... r, and r at the end."""
    model = make("vim_tiny", depth=5, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_first_step_sizes_are_mambas():
    mixer = BidirectionalMamba(32)
    steps = nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.001 - 1e-6
    assert steps.max() <= 0.1 + 1e-6
    assert not mixer.dt_proj_b.bias.any()


# The mixer


def test_reversed_sequence_with_directions_swapped_is_the_reversed_output():
    mixer = BidirectionalMamba(8, d_state=4).double()
    swapped = BidirectionalMamba(8, d_state=4).double()
    pairs = {"conv1d": "conv1d_b", "x_proj": "x_proj_b", "dt_proj": "dt_proj_b", "A_log": "A_b_log", "D": "D_b"}
    exchange = pairs | {backward: forward for forward, backward in pairs.items()}
    with torch.no_grad():
        mixer.A_log.add_(torch.randn_like(mixer.A_log))
    swapped.load_state_dict(
        {
            ".".join([exchange.get(first, first), *rest]): value
            for (first, *rest), value in ((key.split("."), value) for key, value in mixer.state_dict().items())
        }
    )
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(swapped(x.flip(1)), mixer(x).flip(1))
    assert (mixer(x.flip(1)) - mixer(x).flip(1)).abs().max() > 1e-3


def test_directions_are_averaged_or_added():
    x = torch.randn(1, 5, 8)
    added, averaged = BidirectionalMamba(8, average_directions=False), BidirectionalMamba(8)
    averaged.load_state_dict(added.state_dict())
    torch.testing.assert_close(added(x), 2 * averaged(x))


# The spectrum


def test_patches_of_a_translated_image_differ_in_their_spatial_part_alone():
    embed = SpectralPatchEmbed(3, 8, stride=16, stem="patch", spectrum=amplitude_spectrum)
    x = images(64, 96)
    moved = x.roll((16, 48), dims=(2, 3))
    embed.sup_c.data = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(embed(moved), embed(x), rtol=1e-4, atol=1e-5)
    embed.sup_c.data = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(embed(moved), embed(x).roll((1, 3), dims=(1, 2)))


def test_v1_spectrum_is_over_tokens_and_channels_and_rolled():
    x = torch.randn(5, 2, 3, 4)
    spectrum = np.abs(np.fft.fft2(x.numpy().reshape(5, 6, 4), norm="ortho"))
    for shift_batch, axes in ((True, (0, 1, 2)), (False, (1, 2))):
        expected = torch.from_numpy(np.fft.fftshift(spectrum, axes)).reshape(5, 2, 3, 4).float()
        torch.testing.assert_close(v1_spectrum(x, shift_batch=shift_batch), expected)


@pytest.mark.parametrize("kwargs", [{"spectrum": "2d"}, {"stem": "linear"}, {"img_size": 8}])
def test_unknown_options_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        VimF(**{**SMALL, **kwargs})


# Tokens and maps


@pytest.mark.parametrize("count", [1, 2, 9, 196])
def test_the_class_token_is_in_the_middle(count):
    patches, middle = torch.randn(2, count, 3), torch.randn(2, 1, 3)
    tokens = insert_middle(patches, middle)
    assert torch.equal(tokens[:, count // 2], middle[:, 0])
    taken_apart = split_middle(tokens)
    assert torch.equal(taken_apart[0], patches)
    assert torch.equal(taken_apart[1], middle[:, 0])


def test_a_pixel_shows_first_at_its_place_on_the_map():
    model = make("vim_tiny")
    x = images(batch=1)
    changed = x.clone()
    changed[..., 40, 20] += 5  # row 2, column 1 of the patches
    with torch.no_grad():
        difference = (model.patch_embed(changed) - model.patch_embed(x)).abs().sum(3)[0]
    assert difference.nonzero().tolist() == [[2, 1]]


def test_intermediates_with_the_class_token():
    model = make("vim_tiny")
    patches, middle = model.forward_intermediates(
        images(), indices=1, norm=True, return_prefix_tokens=True, intermediates_only=True
    )[0]
    assert patches.shape == (2, 16, 4, 4)
    torch.testing.assert_close(middle[:, 0], split_middle(model.forward_features(images()))[1])


def test_position_embeddings_of_another_grid():
    pos_embed = torch.randn(1, 13, 4)
    assert resize_pos_embed(pos_embed, (3, 4), (3, 4)) is pos_embed
    resized = resize_pos_embed(pos_embed, (3, 4), (5, 2))
    assert resized.shape == (1, 11, 4)
    assert torch.equal(resized[:, 5], pos_embed[:, 6])  # the class token's

    ramp = insert_middle(torch.arange(4.0).repeat(4)[None, :, None], torch.zeros(1, 1, 1))
    wide = split_middle(resize_pos_embed(ramp, (4, 4), (4, 8)))[0].view(4, 8)
    assert (wide[:, 1:] > wide[:, :-1]).all()  # columns stay columns
    torch.testing.assert_close(wide, wide[:1].expand(4, -1))


# Head and optimizer


def test_pooling():
    """The class token, or the mean of the patches."""
    model, x = make("vim_tiny"), images()
    patches, middle = split_middle(model.forward_features(x))
    torch.testing.assert_close(model(x), model.head(middle))
    model.reset_classifier(7, "avg")
    torch.testing.assert_close(model(x), model.head(patches.mean(1)))


def test_weight_decay_spares_tokens_vectors_and_biases_alone():
    """A_log is a matrix and decayed, as it was in the official runs."""
    model = make("vimf_tiny_pe")
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in decayed}
    assert spared == {"pos_embed", "cls_token"}
    assert id(model.layers[0].mixer.A_log) in decayed
    assert id(model.layers[0].mixer.D) not in decayed


def test_layer_groups_follow_depth():
    model = make("vim_tiny")
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert {"pos_embed", "cls_token", "patch_embed.proj.weight"} <= set(groups[0])
    assert "layers.1.mixer.A_log" in groups[2]
    assert "norm_f.weight" in groups[3]
    assert set(groups[4]) == {"head.weight", "head.bias"}
