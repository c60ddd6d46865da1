"""SPANetV2: equal to the official model, its mixer what the official code computes, and a good timm citizen."""

import pytest
import timm
import torch

import frepro  # noqa: F401  (registers the models)
from frepro.models.spanetv2 import Attention, SpectralAdaptiveModulation
from frepro.ops import resize_filter, spectral_rescale
from tests.golden import assert_official

TINY = {"depths": (1, 1, 2, 1), "dims": (16, 32, 32, 64), "num_classes": 10}
KINDS = ("pure", "hybrid")
# Counted on the official code.
OFFICIAL_PARAMS = {
    "spanetv2_s18_pure": 29_162_892,
    "spanetv2_s18_hybrid": 26_991_948,
    "spanetv2_s36_pure": 44_098_608,
    "spanetv2_s36_hybrid": 40_669_104,
    "spanetv2_m36_pure": 62_934_832,
    "spanetv2_m36_hybrid": 58_334_896,
    "spanetv2_b36_pure": 109_557_808,
    "spanetv2_b36_hybrid": 101_802_544,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(kind="pure", **kwargs):
    return timm.create_model(f"spanetv2_s18_{kind}", **{**TINY, **kwargs})


# The mixers ----------------------------------------------------------------------------------------------------------


def test_rescaling_changes_amplitudes_and_not_phases():
    x = torch.randn(2, 3, 7, 6)
    gain = torch.rand(3, 7, 4)
    gain[:, 1:] = (gain[:, 1:] + gain[:, 1:].flip(1)) / 2  # even along the self-conjugate columns
    before, after = (torch.fft.rfft2(y, norm="ortho") for y in (x, spectral_rescale(x, gain)))
    torch.testing.assert_close(after, before * gain)
    torch.testing.assert_close(spectral_rescale(x, torch.ones(3, 7, 4)), x)


@pytest.mark.parametrize("scaled_sigmoid", [False, True])
def test_mixer_head_by_head(scaled_sigmoid):
    """Each head alone, as Figure 2 draws it; heads then alternate channel by channel."""
    mixer = SpectralAdaptiveModulation(16, size=(6, 5), scaled_sigmoid=scaled_sigmoid)
    if scaled_sigmoid:
        torch.nn.init.constant_(mixer.scale.alpha, 1.7)
    x = torch.randn(2, 6, 5, 16)
    context = mixer.ctx(x).permute(0, 3, 1, 2)
    heads = []
    for i in range(4):
        head = getattr(mixer, f"local_conv_{i + 1}")(context[:, 4 * i : 4 * i + 4])
        gain = torch.sigmoid((1.7 if scaled_sigmoid else 1) * getattr(mixer, f"filter_{i + 1}"))
        heads.append(torch.fft.irfft2(torch.fft.rfft2(head) * gain, s=(6, 5)))
    interleaved = torch.stack([heads[i % 4][:, i // 4] for i in range(16)], dim=1)
    expected = mixer.proj_out(mixer.query(x) * mixer.proj(interleaved).permute(0, 2, 3, 1))
    torch.testing.assert_close(mixer(x), expected)


def test_scaled_sigmoid_begins_as_the_plain_one():
    plain, scaled = tiny().eval(), tiny(scaled_sigmoid=True).eval()
    missing = scaled.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f"stages.{i}.{j}.token_mixer.scale.alpha" for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))]
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(scaled(x), plain(x))


def test_filters_are_refitted_before_the_sigmoid():
    mixer = SpectralAdaptiveModulation(8, size=(8, 8))
    for i in range(1, 5):
        torch.nn.init.normal_(getattr(mixer, f"filter_{i}"))
    x = torch.randn(1, 5, 9, 8)
    expected = resize_filter(mixer.filter_2.permute(1, 2, 0), 5, 9).permute(2, 0, 1).detach()
    y = mixer(x)
    mixer.set_size((5, 9))
    assert mixer.filter_2.equal(expected)
    torch.testing.assert_close(mixer(x), y)


@pytest.mark.parametrize("local_conv", [False, True])
def test_attention_to_the_letter(local_conv):
    mixer = Attention(64, size=(4, 3), local_conv=local_conv)
    x = torch.randn(2, 4, 3, 64)
    query, key, value = mixer.qkv(x).flatten(1, 2).chunk(3, dim=2)
    heads = []
    for head in range(2):
        q, k, v = (part[:, :, 32 * head : 32 * head + 32] for part in (query, key, value))
        heads.append((q @ k.mT / 32**0.5).softmax(dim=-1) @ v)
    expected = torch.cat(heads, dim=2).reshape(2, 4, 3, 64)
    if local_conv:
        image = value.reshape(2, 4, 3, 64).permute(0, 3, 1, 2)
        expected = expected + mixer.local_conv(image).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x), mixer.proj(expected))


# The model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_official_logits(kind):
    assert_official(f"spanetv2_s18_{kind}")


@pytest.mark.parametrize(("name", "params"), OFFICIAL_PARAMS.items())
def test_official_number_of_parameters(name, params):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("pure", {"mixers": ("spam", "conv", "spam", "spam")}, "unknown token mixer"),
        ("pure", {"dims": (18, 32, 32, 64)}, "18 channels into 4 heads"),
        ("hybrid", {"dims": (16, 32, 48, 64)}, "48 channels into heads of 32"),
    ],
)
def test_impossible_options_are_refused(kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(kind, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(256, 192), (96, 160), (97, 131), (32, 32), (7, 3)])
def test_any_input_size(kind, size):
    model = tiny(kind).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()
        model.set_input_size(size)
        torch.testing.assert_close(model(x), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_see_their_companions(kind):
    model = tiny(kind).eval()
    x = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "scaled_sigmoid"), [("pure", False), ("pure", True), ("hybrid", True)])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_every_parameter_gets_a_gradient(kind, scaled_sigmoid, size):
    model = tiny(kind, scaled_sigmoid=scaled_sigmoid, img_size=64, drop_path_rate=0.1, drop_rate=0.1).train()
    model(torch.randn(4, 3, *size)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_grad_checkpointing_equals_plain(kind):
    model = tiny(kind).train()
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_features(kind):
    x = torch.randn(1, 3, 96, 64)
    model = tiny(kind).eval()
    final, maps = model.forward_intermediates(x)
    assert final.equal(model.forward_features(x))
    assert model.forward_head(final).equal(model(x))
    for info, feature in zip(model.feature_info, maps, strict=True):
        assert feature.shape == (1, info["num_chs"], 96 // info["reduction"], 64 // info["reduction"])

    backbone = tiny(kind, features_only=True, out_indices=(1, 2)).eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)  # it has fewer modules
    for feature, expected in zip(backbone(x), maps[1:3], strict=True):
        assert feature.equal(expected)
    assert backbone.feature_info.reduction() == [8, 16]


@pytest.mark.parametrize("kind", KINDS)
def test_classifier(kind):
    x = torch.randn(1, 1, 64, 64)
    model = tiny(kind, num_classes=0, in_chans=1).eval()
    assert model(x).shape == (1, 64)
    assert model.forward_head(model.forward_features(x), pre_logits=True).equal(model(x))
    model.reset_classifier(5)
    assert model(x).shape == (1, 5)
    model.reset_classifier(0, "")
    assert model(x).shape == (1, 2, 2, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_and_precisions(kind):
    model = tiny(kind).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), logits, rtol=0, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), logits, rtol=0, atol=0.1)
    halves = tiny(kind, dtype=torch.bfloat16, scaled_sigmoid=True)
    assert {p.dtype for p in halves.parameters()} == {torch.bfloat16}
    assert halves(x.bfloat16()).dtype == torch.bfloat16


def test_export_and_compile():
    model = tiny("hybrid", depths=(1, 1, 1, 1)).eval()  # has all mixers
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = model(x)
        batch = torch.export.Dim("batch", min=1, max=8)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
        torch.testing.assert_close(exported(x[:1]), logits[:1], rtol=0, atol=1e-5)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), logits, rtol=0, atol=1e-5)
