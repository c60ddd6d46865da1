"""Timings of a table: what is missing, and in which session each variant was timed."""

import pytest

from frepro.experiment.timings import LATER, Timings
from frepro.recipes import Benchmark
from frepro.training.runs import Throughput


@pytest.fixture
def timings(tmp_path, monkeypatch) -> Timings:
    """Three models, of which the last has another session than the first two."""
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path))
    benchmark = Benchmark(batch_size=1, img_size=32, rounds=2)
    names = ("resnet18", "resnet34", "resnet50")
    found = {name: Throughput("p/table_1", name, {}, benchmark, "cpu", "a CPU") for name in names}
    for name, session in zip(names, ("one", "one", "two"), strict=True):
        found[name].measurement.write({"images_per_second": [1.0, 2.0], "session": session}, 1.0, "cpu")
    return Timings(found, "a CPU")


def test_a_variant_of_another_session_is_marked(timings):
    assert timings.settings() == {"resnet18": "a CPU", "resnet34": "a CPU", "resnet50": f"a CPU{LATER}"}
    assert timings.rates() == {label: [1.0, 2.0] for label in timings.by_label}


def test_a_pair_that_is_compared_needs_one_session(timings):
    assert timings.missing([("resnet18", "resnet34")]) == []
    assert [each.model for each in timings.missing([("resnet34", "resnet50")])] == ["resnet34", "resnet50"]
    assert timings.missing([("resnet34", "not in the table")]) == []


def test_a_variant_without_a_record_is_missing(timings):
    timing = Throughput("p/table_1", "resnet101", {}, Benchmark(1, 32, 2), "cpu", "a CPU")
    wider = Timings({**timings.by_label, "resnet101": timing}, timings.device)
    assert wider.missing([]) == [timing]
    assert "resnet101" not in wider.rates()
