"""The picture of frequency responses holds what it was given."""

import pytest

from frepro import figures
from frepro.analysis import graph


def test_frequency_responses_mark_the_cutoff():
    found = graph.simulate((3,), size=6, draws=2)
    figure = figures.frequency_responses(found)
    left, right = figure.axes
    mean = sum(response.cutoff for response in found[0].grid) / 2
    mark = left.lines[1]
    assert mark.get_xdata()[0] == pytest.approx(mean)
    assert mark.get_ydata()[0] == pytest.approx(0.5**0.5)
    assert f"{mean:.3f}" in left.get_legend().get_texts()[0].get_text()
    assert [label.get_text() for label in right.get_yticklabels()] == ["3 × 3", "self-attention"]
    assert all("λ" in axes.get_xlabel() for axes in (left, right))


def test_the_summary_has_what_the_picture_marks():
    found = graph.simulate((3,), size=6, draws=3)
    row = graph.summary(found)[0]
    _, cutoff, spread, highest = row.values()
    cutoffs = [response.cutoff for response in found[0].grid]
    assert cutoff == pytest.approx(sum(cutoffs) / 3)
    assert spread == pytest.approx((sum((c - cutoff) ** 2 for c in cutoffs) / 2) ** 0.5)
    assert highest == pytest.approx(sum(float(values.max()) for values in found[0].connectivity) / 3)
