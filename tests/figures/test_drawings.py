"""Drawings: all that the graph says is written, nothing lies on something else, and what is committed is current."""

import re
from html import unescape
from itertools import combinations

import pytest

from frepro import paths
from frepro.analysis.structure import Node
from frepro.figures import drawings


@pytest.fixture(scope="module")
def graphs() -> dict[str, list[Node]]:
    return {name: drawings.graph(drawing) for name, drawing in drawings.declared().items()}


@pytest.mark.parametrize("name", drawings.declared())
def test_the_committed_drawing_is_of_the_module_as_it_is(graphs, name):
    svg = (paths.ROOT / "results" / "models" / f"{name}.svg").read_text(encoding="utf-8")
    written = [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    squeezed = sorted(" ".join(text.split()) for text in written)
    assert squeezed == sorted(" ".join(text.split()) for text in drawings.labels(graphs[name])), "frepro sizes"


@pytest.mark.parametrize("name", drawings.declared())
def test_no_box_lies_on_another_and_no_line_on_a_box(graphs, name):
    rows, routes = drawings._place(graphs[name])
    boxes = [box for row in rows for box in row if box.node is not None]
    assert len(boxes) == len(graphs[name])
    for a, b in combinations(boxes, 2):
        apart = abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2
        assert apart, (a.node, b.node)
    for route in routes:
        for x, y in route[1:-1]:
            assert all(abs(x - box.x) > box.width / 2 or abs(y - box.y) > box.height / 2 for box in boxes)


def test_drawings_fit_a_page(graphs):
    for nodes in graphs.values():
        width, _ = drawings.draw(nodes).get_size_inches()
        assert width <= 7.4


def test_the_pictures_are_all_there():
    committed = {path.stem for path in (paths.ROOT / "results" / "models").glob("*.svg")}
    assert committed == set(drawings.pictures())


def test_scanning_shows_equal_spectra_of_unequal_maps():
    _, _, below_left, below_right = drawings.scanning().axes
    above_left, above_right, *_ = drawings.scanning().axes
    spectra = [axis.images[0].get_array() for axis in (below_left, below_right)]
    maps = [axis.images[0].get_array() for axis in (above_left, above_right)]
    assert abs(spectra[0] - spectra[1]).max() < 1e-3 * spectra[0].max()
    assert abs(maps[0] - maps[1]).max() > 0.5 * maps[0].max()
