"""SPANetV2: equal to the official model, its mixers what the official code computes."""

import pytest
import timm
import torch

import frepro  # noqa: F401  (registers the models)
from frepro.models.spanetv2 import Attention, SpectralAdaptiveModulation
from frepro.ops import resize_filter
from tests.golden import assert_official

TINY = {"depths": (1, 1, 2, 1), "dims": (16, 32, 32, 64), "num_classes": 10}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(kind="pure", **kwargs):
    return timm.create_model(f"spanetv2_s18_{kind}", **{**TINY, **kwargs})


# The mixers ----------------------------------------------------------------------------------------------------------


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
    scaled(x).square().sum().backward()
    assert all(parameter.grad.any() for name, parameter in scaled.named_parameters() if name.endswith("alpha"))


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


@pytest.mark.parametrize("kind", ["pure", "hybrid"])
def test_official_logits(kind):
    assert_official(f"spanetv2_s18_{kind}")


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("pure", {"mixers": ("spam", "spectrum", "spam", "spam")}, "unknown token mixer"),
        ("pure", {"dims": (18, 32, 32, 64)}, "18 channels into 4 heads"),
        ("hybrid", {"dims": (16, 32, 48, 64)}, "48 channels into heads of 32"),
    ],
)
def test_impossible_options_are_refused(kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(kind, **kwargs)
