"""Printed cost beside our count, row by row."""

from dataclasses import replace

import pytest

from frepro import figures, papers
from frepro.analysis import tradeoff


@pytest.fixture(scope="module")
def points():
    table = papers.load("spanet").tables[2]
    kept = [row for row in table.rows if str(table.value(row, "label")).startswith(("SPANet", "PVT"))]
    return tradeoff.points(replace(table, rows=kept))


def test_counts_agree_with_the_print(points):
    own = [point for point in points if point.family == "SPANet"]
    assert [point.label for point in own] == ["SPANet-S", "SPANet-M", "SPANet-B"]
    for point in own:
        assert round(point.our_params) == point.params
        assert round(point.our_flops, 1) == point.flops


def test_a_model_that_is_not_here_has_no_count(points):
    others = [point for point in points if point.family == "PVT"]
    assert len(others) == 3
    assert all(point.our_params is None and point.flops > 0 for point in others)


def test_the_picture_holds_print_and_count(points):
    figure = figures.accuracy_against_cost(points, "SPANet")
    flops, params = figure.axes
    lines = [line for line in flops.lines if len(line.get_xdata()) == 3]
    assert {tuple(line.get_xdata()) for line in lines} == {(4.6, 6.8, 12.0), (3.8, 6.7, 9.8)}
    crosses = [line for line in params.lines if line.get_marker() == "x"]
    assert [float(line.get_xdata()[0]) for line in crosses] == [p.our_params for p in points if p.our_params]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"SPANet", "PVT", "our count"}
