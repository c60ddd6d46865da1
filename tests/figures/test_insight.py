"""Figures hold what they were given, with labelled axes; how they look is for eyes."""

import math

import pytest
import torch

from frepro import figures
from frepro.analysis.features import Layer
from frepro.analysis.fourier import Spectrum
from frepro.analysis.similarity import Similarity


def spectrum(size, depth, stage=1):
    generator = torch.Generator().manual_seed(depth)
    return Spectrum("x", "block", stage, depth, torch.randn(size, size, generator=generator))


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_relative_log_amplitude_ends_where_its_frequencies_end():
    layers = [spectrum(14, 1), spectrum(7, 2)]
    figure = figures.relative_log_amplitude({"a": layers, "b": layers[:1] * 2})
    first, second = panels(figure)
    assert [axes.get_title() for axes in (first, second)] == ["a", "b"]
    even, odd = first.lines[:2]
    assert even.get_xdata()[-1] == 1
    assert odd.get_xdata()[-1] == pytest.approx(6 / 7)
    assert even.get_ydata()[0] == odd.get_ydata()[0] == 0
    deep, shallow = odd.get_color(), even.get_color()
    assert sum(deep[:2]) > sum(shallow[:2])  # deeper is yellower
    assert "rad" in figure.get_supxlabel()
    assert "amplitude" in figure.get_supylabel()


def test_spectrum_maps_are_relative_to_zero_frequency():
    figure = figures.spectrum_maps({"even": spectrum(8, 1), "odd": torch.ones(5, 5)})
    even, odd = (axes.images[0] for axes in panels(figure))
    assert even.get_array()[4, 4] == 0
    assert even.get_extent() == pytest.approx([-1.125, 0.875, -1.125, 0.875])
    assert odd.get_extent() == pytest.approx([-1, 1, -1, 1])
    assert even.get_clim() == odd.get_clim()
    assert figure.axes[-1].get_ylabel() == "Δ log amplitude"


def test_filter_gallery():
    figure = figures.filter_gallery({"a": torch.rand(4, 6, 6), "b": torch.rand(2, 3, 3)}, count=3)
    shown = [axes for axes in panels(figure) if axes.images]
    assert len(panels(figure)) == 6
    assert len(shown) == 5
    sizes = [text.get_text() for axes in shown for text in axes.texts if "×" in text.get_text()]
    assert sizes == ["6 × 6", "3 × 3"]


def test_similarity_marks_stages():
    layers = [Layer("x", "block", stage, i) for i, stage in enumerate((1, 1, 2, 2, 2, 3))]
    values = torch.rand(6, 4)
    figure = figures.similarity({("A", "B"): Similarity(values, layers, layers[:4])})
    (axes,) = panels(figure)
    assert torch.equal(torch.as_tensor(axes.images[0].get_array()), values)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    horizontal = [line.get_ydata()[0] for line in axes.lines if line.get_ydata()[0] == line.get_ydata()[1]]
    assert horizontal == [1.5, 4.5]
    assert axes.get_ylabel() == "A: stage"


def test_shape_bias():
    figure = figures.shape_bias({"A": {"cat": 0.2, "dog": 0.6}, "B": {"cat": 1.0, "dog": math.nan}})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["A (mean 0.40)", "B (mean 1.00)"]  # a category without decisions does not count


def test_pictures():
    images = torch.rand(3, 3, 4, 4)
    figure = figures.pictures(images, ["a", "b", "c"])
    assert [axes.get_title() for axes in panels(figure)] == ["a", "b", "c"]
    shown = [torch.as_tensor(axes.images[0].get_array()) for axes in panels(figure)]
    torch.testing.assert_close(torch.stack(shown), images.permute(0, 2, 3, 1))


def test_context_maps():
    figure = figures.context_maps(torch.rand(2, 3, 8, 8), {1: torch.rand(2, 8, 8), 3: torch.rand(2, 8, 8)})
    assert [axes.get_title() for axes in panels(figure)[:3]] == ["image", "stage 1", "stage 3"]
    assert [len(axes.images) for axes in panels(figure)] == [1, 2, 2, 1, 2, 2]


def test_a_model_without_bias_is_left_out_by_name():
    figure = figures.shape_bias({"A": {"cat": 0.2}, "B": {"cat": math.nan}})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["A (mean 0.20)", "B (left out: over 50 % follow neither cue)"]


def test_filters_are_labelled_by_kind():
    radius = (torch.arange(-4, 4)[:, None] ** 2 + torch.arange(-4, 4)[None] ** 2).sqrt()
    figure = figures.filter_gallery({"a": torch.stack([10 - radius, 1 + radius])})
    assert [text.get_text() for axes in panels(figure) for text in axes.texts if text.get_text() != "8 × 8"] == [
        "low",
        "high",
    ]


def test_a_note_is_above_the_panels():
    figure = figures.pictures(torch.rand(3, 3, 4, 4), ["a", "b", "c"])
    figures.noted(figure, "random weights: " + ", ".join(["SPANet-S"] * 30))
    figure.canvas.draw()
    top = max(axes.get_tightbbox().y1 for axes in panels(figure))
    note = figure._suptitle.get_window_extent()
    assert figure.get_suptitle().startswith("Random weights: SPANet-S")
    assert note.y0 >= top
    assert note.width <= figure.bbox.width
