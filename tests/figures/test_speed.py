"""Pictures of the benchmark hold what they were given."""

import pytest

from frepro.bench.results import BESIDE, MACHINE, OURS, PEER, REFERENCE, Found, Key, line
from frepro.figures import speed

FACTS = {"flops": 4e6, "bytes": 2_000_000}


def found(seconds, **more):
    """From seconds of each round by (section, name, size, work, side)."""
    rounds = {Key(*key[:3], "float32", *key[3:]): values for key, values in seconds.items()}
    return Found([line(key, values, **more) for key, values in rounds.items()], rounds, {})


def test_ratios_are_drawn_by_what_they_compare_with():
    scan = ("operations", "selective_scan", "2 × 3", "forward")
    figure = speed.speed(found({(*scan, REFERENCE): [4, 6], (*scan, OURS): [2, 2], (*scan, BESIDE): [3, 1]}).ratios[:2])
    left, right = figure.axes
    assert "the PyTorch reference" in left.get_xlabel()
    assert "the code given by --beside" in right.get_xlabel()
    _, spread, median = left.lines[:3]
    assert list(spread.get_xdata()) == [2, 3]
    assert list(median.get_xdata()) == [2.5]
    assert [text.get_text() for text in right.texts] == ["1.00"]
    assert left.get_yticklabels()[0].get_text() == "selective_scan  2 × 3"


def test_roofline_has_the_measured_edges():
    entries = {
        ("operations", "copy", "2 MB", "forward", MACHINE): [0.002],  # 1 GB/s
        ("operations", "matrix_product", "n", "forward", REFERENCE): [0.004],
        ("operations", "matrix_product", "n", "forward", OURS): [0.001],  # 4 · 10⁹ operations a second
        ("operations", "star_relu", "n", "forward", REFERENCE): [0.02],
        ("operations", "star_relu", "n", "forward", OURS): [0.01],
    }
    (axes,) = speed.roofline(found(entries, **FACTS)).axes
    roof, _, reference, ours = axes.lines
    assert max(roof.get_ydata()) == pytest.approx(4)
    assert reference.get_ydata() == pytest.approx([0.2])
    assert ours.get_ydata() == pytest.approx([0.4])
    assert ours.get_xdata() == pytest.approx([2])


def test_resolution_labels_each_curve_at_its_end():
    entries = {
        ("resolution", name, size, "inference", side): [1 / (int(size) * rate)] * 2
        for name, side, rate in (("dfformer_s18", OURS, 1), ("caformer_s18", PEER, 2))
        for size in ("224", "448")
    }
    figure = speed.resolution(found(entries, images=2, weights_mib=10.0, forward_mib=5.0).lines)
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["dfformer_s18", "caformer_s18"]
    assert list(right.lines[0].get_ydata()) == [15, 15]
    heights = [text.get_position()[1] for text in right.texts]  # equal curves, but labels apart
    assert abs(heights[0] - heights[1]) >= 10
    assert "2 images" in figure.get_suptitle()


def test_vim_is_compared_with_deit_at_each_resolution():
    entries = {
        ("resolution", name, size, "inference", side): [seconds] * 3
        for name, side, by_size in (
            ("dfformer_s18", OURS, {"224": 7.0}),
            ("vimf_tiny_h", OURS, {"224": 2.0, "512": 4.0}),
            ("deit_tiny_patch16_224", PEER, {"224": 1.0, "512": 8.0}),
        )
        for size, seconds in by_size.items()
    }
    results = found(entries, images=1, weights_mib=10.0, forward_mib=5.0)
    results.provenance["device"] = {"name": "a machine"}
    figure = speed.vim(results)
    speedup, duration, memory = figure.axes
    assert [0.5, 2.0] in [list(each.get_ydata()) for each in speedup.lines]
    assert [list(each.get_ydata()) for each in duration.lines] == [[2000, 4000], [1000, 8000]]
    assert list(memory.lines[0].get_ydata()) == [15, 15]
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert "pixels" in memory.get_xlabel()
    assert "vimf_tiny_h: faster at 512 pixels and beyond" in figure.get_suptitle()
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"vimf_tiny_h", "deit_tiny_patch16_224"}


def test_a_models_row_holds_all_its_works():
    entries = {
        ("models", "vim_tiny", size, work, side): [seconds, seconds]
        for size, work in (("8 × n", "inference"), ("8 × n", "training step"), ("1 × n", "latency"))
        for side, seconds in ((OURS, 1.0), (REFERENCE, 3.0))
    }
    (axes,) = speed.speed(found(entries).ratios).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vim_tiny"]
    assert [text.get_text() for text in axes.texts] == ["3.00"] * 3
