"""Filter pictures: what the filters do to maps, not how their weights are stored."""

import pytest
import timm
import torch

from frepro.analysis import filters
from frepro.ops import dynamic_filter, global_filter, spectral_rescale


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 8), (6, 9), (5, 4)])
def test_whole_spectrum_is_that_of_the_filter_as_it_acts(height, width):
    half = torch.randn(height, width // 2 + 1, 3, dtype=torch.complex128)
    kernel = torch.fft.irfft2(half, s=(height, width), dim=(0, 1))
    expected = torch.fft.fftshift(torch.fft.fft2(kernel, dim=(0, 1)).abs(), dim=(0, 1)).permute(2, 0, 1)
    torch.testing.assert_close(filters.centred_amplitude(half, width), expected)


def test_a_real_gain_acts_as_pictured():
    gain = torch.rand(8, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(filters.centred_amplitude(gain), answer(spectral_rescale(impulse(8, 2).double(), gain)))


def impulse(size, channels):
    x = torch.zeros(1, size, size, channels)
    x[:, 0, 0] = 1
    return x


def answer(x):
    """Centred amplitude of a channels-last impulse response, (C, H, W)."""
    return torch.fft.fftshift(torch.fft.fft2(x, dim=(1, 2)).abs(), dim=(1, 2))[0].permute(2, 0, 1)


def test_filters_of_models():
    torch.manual_seed(0)
    gfnet = timm.create_model("gfnet_ti", img_size=64, num_classes=0)
    found = filters.amplitudes(gfnet)
    assert [*found][:2] == ["blocks.0.filter.complex_weight", "blocks.1.filter.complex_weight"]
    assert len(found) == 12
    expected = answer(global_filter(impulse(4, 256), gfnet.blocks[0].filter.complex_weight.detach()))
    torch.testing.assert_close(found["blocks.0.filter.complex_weight"], expected, atol=1e-6, rtol=1e-4)

    model = timm.create_model("cdfformer_s18", img_size=64, num_classes=0)
    found = filters.amplitudes(model)
    assert len(found) == 12  # stages 3 and 4
    assert {tuple(item.shape) for item in found.values()} == {(4, 4, 4), (4, 2, 2)}
    basis = model.stages[2][0].token_mixer.complex_weights.detach()
    expected = answer(dynamic_filter(impulse(4, 4), torch.eye(4)[None], basis))
    torch.testing.assert_close(found["stages.2.0.token_mixer.complex_weights"], expected, atol=1e-6, rtol=1e-4)

    model = timm.create_model("gfformer_s18", img_size=64, num_classes=0)
    assert filters.amplitudes(model)["stages.0.0.token_mixer.complex_weights"].shape == (128, 16, 16)


def test_gains_and_masks():
    model = timm.create_model("spanetv2_s18_hybrid", img_size=64, num_classes=0)
    found = filters.amplitudes(model)
    assert len(found) == 4 * 6  # heads, blocks of stages 1 and 2
    assert all(float(item.min()) > 0 and float(item.max()) < 1 for item in found.values())
    found = filters.amplitudes(timm.create_model("spanet_small", num_classes=0))
    mask = found["network.0.0.token_mixer.sps.1.filter"]
    assert mask.shape == (1, 56, 56)
    assert mask[0, 28, 28] == pytest.approx(0.8)
    assert mask[0, 0, 0] == pytest.approx(0.2)


def test_alikeness():
    one = torch.rand(6, 6)
    assert filters.alikeness(torch.stack([one, 3 * one + 2, one])) == pytest.approx(1)  # scale and offset apart
    assert filters.alikeness(torch.stack([one, 1 - one])) == pytest.approx(-1)
    torch.manual_seed(0)
    assert abs(filters.alikeness(torch.rand(40, 16, 16))) < 0.01
    # One pair in six is of copies, the others have nothing in common.
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(64, 1), torch.randn(64, 3)], dim=1))
    orthogonal = basis[:, 1:].T.unflatten(1, (8, 8))  # to each other, and to what is constant
    assert filters.alikeness(orthogonal[[0, 0, 1, 2]]) == pytest.approx(1 / 6, abs=1e-5)
    with pytest.raises(ValueError, match="have no correlation"):
        filters.alikeness(torch.rand(4, 1, 1))


def test_alikeness_of_layers_that_are_large_enough():
    models = [timm.create_model("dfformer_s18", img_size=64, num_classes=0, depths=(1, 1, 1, 1)) for _ in range(2)]
    found = filters.alikeness_by_layer({"a": models})
    assert [(row["network"], row["layer"], row["side"]) for row in found] == [
        (network, layer, side) for network in (0, 1) for layer, side in ((1, 16), (2, 8), (3, 4))
    ]
    first = filters.amplitudes(models[0])["stages.0.0.token_mixer.complex_weights"]
    assert found[0]["alikeness"] == filters.alikeness(first)


def test_errors():
    with pytest.raises(ValueError, match="no filter"):
        filters.amplitudes(timm.create_model("convformer_s18", num_classes=0))
    with pytest.raises(ValueError, match="give its width"):
        filters.centred_amplitude(torch.zeros(8, 4, 1))


def test_kinds_of_filters():
    y, x = torch.meshgrid(torch.arange(-8, 8), torch.arange(-8, 8), indexing="ij")
    radius = (y**2 + x**2).sqrt() / 8
    found = {
        "low": (radius < 0.3).float(),
        "high": (radius > 0.7).float(),
        "band": ((radius > 0.4) & (radius < 0.6)).float(),
        "flat": torch.ones(16, 16),
        "notch": ((radius < 0.3) | (radius > 0.7)).float(),
    }
    assert {name: filters.kind(0.1 + item) for name, item in found.items()} == {name: name for name in found}


def test_shares_of_kinds_sum_to_one_at_each_size():
    torch.manual_seed(0)
    model = timm.create_model("dfformer_s18", img_size=64, num_classes=0)
    rows = filters.shares({"DFFormer-S18": [model]})
    assert [(row["side"], row["filters"]) for row in rows] == [(16, 12), (8, 12), (4, 36)]  # 2 x 2 is left out
    assert all(sum(row[name] for name in filters.PASSES) == pytest.approx(1) for row in rows)
