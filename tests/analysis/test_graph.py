"""Frequency responses on graphs: identity, box, equal attention; and the claim of SPANetV2's Figure 1."""

import math

import pytest
import torch

from frepro.analysis import graph

SIDE = 16


def waves(size=SIDE):
    """Angular frequencies of the periodic grid, and its graph frequencies."""
    w = 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
    return w, 1 - (w.cos()[:, None] + w.cos()) / 2


def test_convolution_matrix_convolves():
    kernel, x = torch.randn(3, 3), torch.randn(5, 5)
    padded = torch.nn.functional.pad(x[None, None], (1, 1, 1, 1), mode="circular")
    expected = torch.nn.functional.conv2d(padded, kernel[None, None])[0, 0]
    torch.testing.assert_close((graph.convolution(kernel, 5) @ x.flatten()).view(5, 5), expected)


def test_identity_passes_everything_alike():
    response = graph.grid_response(torch.eye(SIDE**2))
    torch.testing.assert_close(response.gain, torch.ones_like(response.gain))
    assert math.isnan(response.cutoff)
    torch.testing.assert_close(graph.connectivity_frequencies(torch.eye(9)), torch.zeros(9))  # a graph of loners


def test_frequencies_of_the_grid():
    _, expected = waves()
    response = graph.grid_response(torch.eye(SIDE**2))
    assert response.frequency[0] == 0
    assert response.frequency[-1] == pytest.approx(2)
    torch.testing.assert_close(response.frequency, (expected * 1e8).round().unique() / 1e8, atol=1e-7, rtol=0)


@pytest.mark.parametrize("side", [3, 5])
def test_box_has_the_response_of_a_box(side):
    """Products of Dirichlet kernels, as root mean square over the waves of the same graph frequency."""
    w, frequency = waves()
    box = torch.where(w == 0, torch.ones_like(w), torch.sin(side * w / 2) / (side * torch.sin(w / 2)))
    power = (box[:, None] * box).square()
    response = graph.grid_response(graph.convolution(torch.full((side, side), 1 / side**2).double(), SIDE))
    expected = torch.stack([power[(frequency - f).abs() < 1e-6].mean().sqrt() for f in response.frequency])
    torch.testing.assert_close(response.gain, expected)


def test_equal_attention_passes_the_mean_alone():
    attention = torch.full((SIDE**2, SIDE**2), 1 / SIDE**2, dtype=torch.float64)
    response = graph.grid_response(attention)
    assert response.gain[0] == pytest.approx(1)
    assert float(response.gain[1:].max()) < 1e-12
    assert 0 < response.cutoff < float(response.frequency[1])
    frequencies = graph.connectivity_frequencies(attention)
    assert frequencies[0] == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(frequencies[1:], torch.ones(SIDE**2 - 1, dtype=torch.float64))


def test_own_graph_of_a_ring_of_neighbours():
    """The grid's four neighbours span the grid: their frequencies are the grid's."""
    cross = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64) / 4
    _, expected = waves(6)
    found = graph.connectivity_frequencies(graph.convolution(cross, 6))
    torch.testing.assert_close(found, expected.flatten().sort().values)


def test_random_mixers_are_averages():
    generator = torch.Generator().manual_seed(0)
    for mixer in (graph.convolution(graph.random_kernel(5, generator), 8), graph.random_attention(64, 16, generator)):
        torch.testing.assert_close(mixer.sum(1), torch.ones(64, dtype=torch.float64))
        assert float(mixer.min()) >= 0


def test_larger_kernels_are_more_low_pass_and_attention_most():
    found = graph.simulate((3, 5, 7, 9), draws=10)
    assert [item.name for item in found][-1] == "self-attention"
    cutoffs = [sum(response.cutoff for response in item.grid) / 10 for item in found]
    assert cutoffs == sorted(cutoffs, reverse=True)
    assert cutoffs[0] > 2 * cutoffs[1]
    spreads = [torch.stack(item.connectivity)[:, 1:].sub(1).square().mean() for item in found]
    assert spreads[:4] == sorted(spreads[:4], reverse=True)
    highest = [torch.stack(item.connectivity)[:, -1].mean() for item in found]
    assert highest[0] > highest[-2] > highest[-1] > 1


def test_kernels_of_mean_zero_have_no_cutoff():
    """What the claim rests on: weights of one sign. Others, of mean 0, are flat on average, whatever their number."""
    generator = torch.Generator().manual_seed(0)
    for side in (3, 9):
        kernels = torch.randn(300, side, side, generator=generator, dtype=torch.float64) / side
        spectra = torch.fft.fft2(kernels, s=(SIDE, SIDE)).abs().square().mean(0)
        torch.testing.assert_close(spectra, torch.ones_like(spectra), atol=0.35, rtol=0)
        one = graph.grid_response(graph.convolution(kernels[0], SIDE)).gain
        power = torch.fft.fft2(kernels[0], s=(SIDE, SIDE)).abs().square()
        assert one[0] == pytest.approx(float(power[0, 0].sqrt()))


def test_errors():
    with pytest.raises(ValueError, match="square, odd"):
        graph.convolution(torch.ones(4, 4), 8)
    with pytest.raises(ValueError, match="square grid"):
        graph.grid_response(torch.eye(5))
    with pytest.raises(ValueError, match="negative"):
        graph.connectivity_frequencies(-torch.eye(4))
