"""Configurations as built models have them, against the papers' tables."""

import pytest

from frepro import papers, report
from frepro.analysis import configuration


@pytest.mark.parametrize("paper", configuration.READERS)
def test_models_are_built_as_the_papers_say(paper):
    table = papers.load(paper).tables[1]
    found = configuration.cells(paper)
    assert found == [row.cells for row in table.rows]
    view = report.configuration(table, found)
    assert [row[-1] for row in view.rows] == ["as printed"] * len(found)


def test_what_is_read_follows_the_model():
    network = configuration.create("spanet_small", depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), radii=(4, 3, 2, 1))
    assert configuration.depths(network) == "1-2-1-1"
    assert configuration.dims(network) == "8-16-24-32"
    assert configuration.radii(network) == "4-3-2-1"
    network.stages[1][1].token_mixer.sps[0].radius = 9
    assert configuration.radii(network) == "4-3/9-2-1"  # blocks of a stage that differ show
    assert configuration.mixers(configuration.create("dfformer_s18_afno")) == ", ".join(["AFNO2D"] * 4)
    assert configuration.downsampling(configuration.create("dfformer_s18")).startswith("K = 7-3-3-3")


def test_the_stem_of_half_the_stride_has_maps_of_twice_the_side():
    found = configuration.stem(configuration.create("vimf_tiny_h_stride8"))
    assert [size for size, _ in found] == ["112 × 112", "56 × 56", "28 × 28"]
    assert found[0][1] == "7 × 7, 48, stride 2, padding 3"


def test_a_mismatch_shows():
    table = papers.load("spanet").tables[1]
    found = configuration.cells("spanet")
    found[1][3] = "2-2-2-1"
    view = report.configuration(table, found)
    assert [row[-1] for row in view.rows] == ["as printed", "differs", "as printed"]
    assert "≠ 2-2-2-1" in view.rows[1]
    with pytest.raises(ValueError, match="zip"):
        report.configuration(table, found[:2])
