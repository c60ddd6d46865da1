"""Spectra: cosines, noise and blurs have known ones."""

import math

import pytest
import timm
import torch

from frepro.analysis import fourier


@pytest.mark.parametrize("size", [7, 14])
def test_frequency_axis_is_the_true_one(size):
    """A pure cosine peaks at its own frequency, for odd and even maps."""
    index = torch.arange(size)
    for cycles in range(1, size // 2 + 1):
        phase = 2 * math.pi * cycles * (index[:, None] + index) / size
        spectrum = fourier.log_amplitude(phase.cos()[None, None])
        frequency, values = fourier.relative_log_amplitude(spectrum)
        peak = int(values.argmax())
        assert frequency[peak] == pytest.approx(2 * cycles / size)  # in units of pi: 2 pi cycles / size
        row, column = divmod(int(spectrum.argmax()), size)
        assert abs(float(fourier.frequencies(size)[row])) == pytest.approx(2 * cycles / size)
        assert row == column
    assert frequency[-1] == pytest.approx(1 if size % 2 == 0 else 1 - 1 / size)


def test_frequencies_are_those_of_the_shifted_transform():
    assert fourier.frequencies(4).tolist() == [-1, -0.5, 0, 0.5]
    torch.testing.assert_close(fourier.frequencies(5), torch.tensor([-0.8, -0.4, 0, 0.4, 0.8], dtype=torch.float64))


@pytest.mark.parametrize("size", [15, 16])
def test_white_noise_is_flat(size):
    """All frequencies alike but those whose coefficient is real: log(2) / 2 lower (a known integral)."""
    noise = torch.randn(40, 400, size, size, generator=torch.Generator().manual_seed(0))
    spectrum = fourier.log_amplitude(noise)
    _, values = fourier.relative_log_amplitude(spectrum)
    complex_ones = values[1:] if size % 2 else values[1:-1]
    torch.testing.assert_close(complex_ones, torch.full_like(complex_ones, math.log(2) / 2), atol=0.03, rtol=0)
    if size % 2 == 0:
        assert abs(float(values[-1])) < 0.03
    euler = 0.5772156649
    assert spectrum.median() == pytest.approx(-euler / 2, abs=0.01)  # mean of log |z|, z complex of unit variance


@pytest.mark.parametrize(("size", "side"), [(14, 3), (15, 5)])
def test_box_blur_has_the_response_of_a_box(size, side):
    """Dirichlet kernel: sin(k w / 2) / (k sin(w / 2)), squared on the diagonal."""
    image = torch.zeros(1, 1, size, size)
    image[..., :side, :side] = 1e3  # large, so that the logarithm's epsilon counts for nothing
    frequency, values = fourier.relative_log_amplitude(fourier.log_amplitude(image))
    w = math.pi * frequency[1:].double()
    expected = 2 * (torch.sin(side * w / 2) / (side * torch.sin(w / 2))).abs().log()
    away = expected > -6  # off the zeros, where rounding rules
    torch.testing.assert_close(values[1:][away].double(), expected[away], atol=1e-3, rtol=0)
    assert away.sum() >= 5


def test_scale_changes_nothing():
    maps = torch.randn(2, 3, 14, 14)
    _, once = fourier.relative_log_amplitude(fourier.log_amplitude(maps))
    _, twice = fourier.relative_log_amplitude(fourier.log_amplitude(2 * maps))
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=0)


def test_non_square_spectrum():
    with pytest.raises(ValueError, match="square"):
        fourier.relative_log_amplitude(torch.zeros(4, 6))


def test_spectra_of_a_model_average_over_all_images():
    torch.manual_seed(0)
    model = timm.create_model("cdfformer_s18", num_classes=0)
    images = torch.randn(5, 3, 64, 64)
    whole = fourier.spectra(model, images)
    parts = fourier.spectra(model, images.split(2))
    assert [(item.kind, item.stage) for item in whole][:2] == [("downsample", 1), ("block", 1)]
    assert len(whole) == 22
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.log_amplitude, b.log_amplitude, atol=1e-4, rtol=0)
    assert whole[0].log_amplitude.shape == (16, 16)


def layer(size, depth, high=0.0):
    """A spectrum that is 0 at zero frequency and ``high`` elsewhere."""
    values = torch.full((size, size), high)
    values[size // 2, size // 2] = 0
    return fourier.Spectrum("x", "block", 1, depth, values)


def test_layers_of_similar_size():
    stages = [layer(16, 1), layer(8, 2), layer(8, 3), layer(4, 4)]
    plain = [layer(8, depth) for depth in range(1, 4)]
    found = fourier.of_similar_size({"four stages": stages, "plain": plain})
    assert {label: (len(one.log_amplitude), one.depth) for label, one in found.items()} == {
        "four stages": (8, 3),
        "plain": (8, 3),
    }
    assert len(fourier.of_similar_size({"a": stages, "b": [layer(7, 1)]})["a"].log_amplitude) == 8


def test_high_frequencies_leave_out_the_smallest_maps():
    rows = fourier.high_frequencies({"A": [[layer(8, 1, -1.0), layer(2, 2, -3.0)], [layer(4, 1, -2.0)]]})
    assert [(row["network"], row["block"], row["high"]) for row in rows] == [(0, 1, -1), (1, 1, -2)]
