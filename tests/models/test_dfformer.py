"""DFFormer: equal to the official model, its filters what the formulas say, and a good timm citizen."""

import pytest
import timm
import torch

import frepro  # noqa: F401 - registers the models
from frepro.models.dfformer import DynamicFilter, GlobalFilter
from tests.golden import assert_official

TINY = {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32), "num_classes": 10}
NAMES = sorted(timm.list_models(module="dfformer"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["dfformer_s18", "cdfformer_s18", "gfformer_s18", "dfformer_s18_afno"])
def test_recorded_logits_of_the_official_code(name):
    assert_official(name)


def test_there_are_fifteen():
    assert len(NAMES) == 15


def test_dynamic_filter_is_a_circular_convolution():
    """By hand for one image and channel: mix the basis, go back to space, convolve in a circle."""
    mixer = DynamicFilter(8, size=(6, 5))
    x = torch.randn(2, 6, 5, 8)
    coefficients = mixer.reweight(x.mean(dim=(1, 2))).view(2, 4, 16).softmax(dim=1)
    hidden = mixer.act1(mixer.pwconv1(x))
    basis = torch.view_as_complex(mixer.complex_weights)
    filtered = torch.zeros_like(hidden)
    for b in range(2):
        for c in range(16):
            spectrum = sum(coefficients[b, n, c] * basis[:, :, n] for n in range(4))
            kernel = torch.fft.irfft2(spectrum, s=(6, 5))
            for dy in range(6):
                for dx in range(5):
                    shifted = torch.roll(hidden[b, :, :, c], (dy, dx), dims=(0, 1))
                    filtered[b, :, :, c] += kernel[dy, dx] * shifted
    torch.testing.assert_close(mixer(x), mixer.pwconv2(filtered), rtol=1e-4, atol=1e-5)


def test_equal_filters_make_the_dynamic_filter_static():
    dynamic, static = DynamicFilter(8, size=(6, 6)), GlobalFilter(8, size=(6, 6))
    with torch.no_grad():
        dynamic.complex_weights[:] = dynamic.complex_weights[:, :, :1]
        static.complex_weights[:] = dynamic.complex_weights[:, :, :1]
    static.pwconv1, static.act1, static.pwconv2 = dynamic.pwconv1, dynamic.act1, dynamic.pwconv2
    x = torch.randn(2, 6, 6, 8)
    torch.testing.assert_close(dynamic(x), static(x))


@pytest.mark.parametrize("mixer", [GlobalFilter, DynamicFilter])
def test_filters_commute_with_circular_shifts(mixer):
    mixer = mixer(8, size=(6, 6))
    x = torch.randn(1, 6, 6, 8)
    shifted = mixer(torch.roll(x, (2, 1), dims=(1, 2)))
    torch.testing.assert_close(shifted, torch.roll(mixer(x), (2, 1), dims=(1, 2)), rtol=1e-4, atol=1e-6)


def test_ablations_change_what_they_say():
    def parts(name):
        model = timm.create_model(name, **TINY)
        mixer = model.stages[0][0].token_mixer
        return type(mixer).__name__, type(mixer.act1).__name__, type(model.stages[0][0].mlp.act).__name__, mixer

    assert parts("dfformer_s18")[:3] == ("DynamicFilter", "StarReLU", "StarReLU")
    assert parts("dfformer_s18_k2")[3].num_filters == 2
    assert parts("dfformer_s18_d8")[3].reweight.fc1.out_features == 2  # 16 / 8
    assert parts("gfformer_s18")[0] == "GlobalFilter"
    assert parts("dfformer_s18_afno")[:2] == ("AFNO2D", "StarReLU")
    assert parts("dfformer_s18_relu_afno")[:3] == ("AFNO2D", "ReLU", "ReLU")
    *gelu, mixer = parts("dfformer_s18_gelu")
    assert gelu == ["DynamicFilter", "GELU", "GELU"]
    assert type(mixer.reweight.act).__name__ == "StarReLU"  # the routing keeps it
    assert parts("cdfformer_s18")[0] == "SepConv"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    model = timm.create_model(name, **TINY, img_size=64)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, p in model.named_parameters() if p.grad.abs().max() == 0] == []


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (256, 192), (37, 61)])
def test_any_input_size(size):
    model = timm.create_model("dfformer_s18", **TINY).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_set_input_size_keeps_the_function():
    model = timm.create_model("dfformer_s18", **TINY).eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        on_the_fly = model(x)
        model.set_input_size((96, 64))
        assert model.stages[0][0].token_mixer.complex_weights.shape == (24, 9, 4, 2)
        torch.testing.assert_close(model(x), on_the_fly)


def test_features_are_the_stages():
    x = torch.randn(1, 3, 64, 96)
    model = timm.create_model("cdfformer_s18", **TINY).eval()
    backbone = timm.create_model("cdfformer_s18", **TINY, features_only=True).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        maps = backbone(x)
        last, intermediates = model.forward_intermediates(x)
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // r, 96 // r) for c, r in zip((16, 16, 32, 32), (4, 8, 16, 32), strict=True)
    ]
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    torch.testing.assert_close(last, intermediates[-1])
    torch.testing.assert_close(last, model.forward_features(x))


def test_autocast_keeps_the_spectrum_in_float32():
    model = timm.create_model("dfformer_s18", **TINY, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
        model.bfloat16()
        half = model(x.bfloat16())
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.05)
    assert half.dtype == torch.bfloat16


def test_checkpointing_classifier_and_head():
    model = timm.create_model("dfformer_s18", **TINY, img_size=64)
    x = torch.randn(2, 3, 64, 64)
    plain = model(x)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), plain)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 32)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)
