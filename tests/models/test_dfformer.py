"""DFFormer: equal to the official model, its filters what the formulas say."""

import pytest
import timm
import torch

import frepro  # noqa: F401 - registers the models
from frepro.models.dfformer import DynamicFilter, GlobalFilter
from tests.golden import assert_official

TINY = {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32), "num_classes": 10}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["dfformer_s18", "cdfformer_s18", "gfformer_s18", "dfformer_s18_afno"])
def test_recorded_logits_of_the_official_code(name):
    assert_official(name)


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
