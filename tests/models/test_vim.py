"""Vision Mamba and Vim-F: the official functions, the paper's properties, and what timm asks of a backbone."""

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

# Parameters of the official models, counted; the paper's own forms differ from V1 in their patches alone.
PARAMS = {
    "vim_tiny": 7_148_008,
    "vim_small": 25_796_584,
    "vim_tiny_nope": 7_148_008 - 197 * 192,
    "vim_small_nope": 25_796_584 - 197 * 384,
    "vim_tiny_stride8": 7_148_008 + (729 - 196) * 192,
    "vim_small_stride8": 25_796_584 + (729 - 196) * 384,
    "vimf_tiny": 7_148_008 - 197 * 192 + 2,
    "vimf_small": 25_796_584 - 197 * 384 + 2,
    "vimf_tiny_pe": 7_148_008 + 2,
    "vimf_small_pe": 25_796_584 + 2,
    **dict.fromkeys(("vimf_tiny_h", "vimf_tiny_h_stride8", "vimf_v1_tiny", "vimf_v1_tiny_stride8"), 7_109_130),
    **dict.fromkeys(("vimf_small_h", "vimf_small_h_stride8", "vimf_v1_small", "vimf_v1_small_stride8"), 25_951_242),
    **dict.fromkeys(("vimf_v2_tiny", "vimf_v2_tiny_stride8"), 7_405_592),
    **dict.fromkeys(("vimf_v2_small", "vimf_v2_small_stride8"), 27_133_976),
}
FORMS = [name for name in PARAMS if "tiny" in name]
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


def test_every_form_is_listed():
    assert set(timm.list_models(module="vim") + timm.list_models(module="vimf")) == set(PARAMS)


@pytest.mark.parametrize("name", PARAMS)
def test_params(name):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == PARAMS[name]


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


def test_translation_leaves_the_spectrum_as_it_is():
    """Figure 2 of Vim-F."""
    x = torch.randn(2, 7, 10, 3, dtype=torch.float64)
    torch.testing.assert_close(amplitude_spectrum(x.roll((3, -4), dims=(1, 2))), amplitude_spectrum(x))
    expected = np.abs(np.fft.fft2(x.numpy(), axes=(1, 2))) / np.sqrt(70)  # eq. 7, made orthonormal
    torch.testing.assert_close(amplitude_spectrum(x), torch.from_numpy(expected))


def test_spectrum_gradient():
    x = torch.randn(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(amplitude_spectrum, x)


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


@pytest.mark.parametrize("name", [*FORMS, "vimf_v1_tiny per image"])
def test_an_image_does_not_see_its_batch_but_in_v1(name):
    name, _, per_image = name.partition(" ")
    model = make(name, **({"shift_batch": False} if per_image else {}))
    x = images(batch=3)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    if name.startswith("vimf_v1") and not per_image:
        assert (together - alone).abs().max() > 1e-3
    else:
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kwargs", [{"spectrum": "2d"}, {"stem": "linear"}, {"global_pool": "max"}, {"img_size": 8}])
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


@pytest.mark.parametrize("name", FORMS)
def test_features_are_the_patches_on_their_grid(name):
    """At a size that is not square; 80 x 112 pixels make 5 x 7 patches, or twice that at stride 8."""
    x = images(80, 112)
    model = make(name, img_size=(80, 112))
    stride = model.feature_info[0]["reduction"]
    height, width = model.grid_size
    with torch.no_grad():
        tokens, maps = model.forward_intermediates(x, indices=[0, 2], norm=True)
        _, sequences = model.forward_intermediates(x, indices=[0, 2], norm=True, output_fmt="NLC")
        patches, middle = split_middle(model.forward_features(x))
        torch.testing.assert_close(tokens, model.forward_features(x))
        torch.testing.assert_close(sequences[-1], patches)
        torch.testing.assert_close(model.forward_head(tokens), model.head(middle))
        for a_map, sequence in zip(maps, sequences, strict=True):
            for row, column in ((0, 0), (height - 1, 0), (2, 3)):
                assert torch.equal(a_map[:, :, row, column], sequence[:, row * width + column])

        backbone = make(name, img_size=(80, 112), features_only=True, out_indices=(0, 2))
        assert backbone.feature_info.channels() == [16, 16]
        assert backbone.feature_info.reduction() == [stride, stride]
        raw = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        torch.testing.assert_close(backbone(x), raw)
    assert maps[0].shape == (2, 16, height, width)


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


@pytest.mark.parametrize("name", ["vim_tiny", "vimf_tiny_pe", "vimf_tiny_h"])
def test_set_input_size_is_the_refit_of_each_forward_pass(name):
    model, x = make(name), images(48, 96)
    with torch.no_grad():
        refitted = model(x)
        model.set_input_size((48, 96))
        torch.testing.assert_close(model(x), refitted)
    assert model.grid_size == (3, 6)
    if model.pos_embed is not None:
        assert model.pos_embed.shape == (1, 19, 16)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("size", [(32, 32), (50, 75), (128, 64)])
def test_other_sizes(name, size):
    with torch.no_grad():
        assert make(name)(images(*size)).isfinite().all()


# Training, and timm's contract


@pytest.mark.parametrize("name", FORMS)
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(name):
    gradients = []
    for checkpointing in (False, True):
        model = make(name).train()
        model.set_grad_checkpointing(checkpointing)
        model(images()).square().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient.isfinite().all(), key
        assert gradient.any(), key
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["vim_tiny", "vimf_v2_tiny"])
def test_checkpointed_intermediates(name):
    model = make(name)
    plain = model.forward_intermediates(images(), intermediates_only=True)
    model.train().set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(images(), intermediates_only=True), plain)


def test_classifier():
    model = make("vim_tiny", in_chans=1, drop_rate=0.1)
    x = images()[:, :1]
    assert model(x).shape == (2, 5)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(7, "avg")
    assert model.get_classifier().out_features == 7
    patches, _ = split_middle(model.forward_features(x))
    torch.testing.assert_close(model(x), model.head(patches.mean(1)))
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 17, 16)
    assert make("vim_tiny", num_classes=0)(images()).shape == (2, 16)


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


@pytest.mark.parametrize("name", ["vim_tiny", "vimf_tiny_h", "vimf_v1_tiny", "vimf_v2_tiny"])
def test_bfloat16(name):
    """Under autocast, and with bfloat16 weights; transforms, scan and residual stream are in float32 in both."""
    model, x = make(name), images()
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x)
        half = make(name, dtype=torch.bfloat16)
        half.load_state_dict(model.state_dict())
        low = half(x.bfloat16())
    assert mixed.dtype == low.dtype == torch.bfloat16
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for y in (mixed, low):
        torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1 * exact.std().item())


@pytest.mark.parametrize("name", ["vim_tiny", "vimf_tiny_h", "vimf_v2_tiny"])
def test_export(name):
    model, x = make(name, depth=1, img_size=32), images(32, 32)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    x = images(32, 32, batch=5)
    torch.testing.assert_close(exported.module()(x), model(x))
