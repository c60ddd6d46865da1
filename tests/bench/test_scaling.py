"""DFFormer's claim about resolution, tested on results that are made up so that the answer is known."""

import json

import pytest

from frepro import paths, report
from frepro.analysis.illustration import Illustration
from frepro.bench import scaling
from frepro.bench.results import OURS, PEER, Found, Key, folder, line, write
from frepro.figures import speed
from frepro.report import benchmark as bench_report
from frepro.reproduce import Artefact, plan

# Seconds of both rounds by model and resolution: CAFormer is faster at 224 and slower from 512 on.
SECONDS = {
    "convformer_s18": {224: (1.0, 1.1), 512: (4.0, 4.1), 768: (9.0, 9.1)},
    "caformer_s18": {224: (1.0, 1.1), 512: (8.0, 8.2), 768: (36.0, 36.4)},
    "dfformer_s18": {224: (2.0, 2.2), 512: (6.0, 6.1), 768: (13.0, 13.2)},
    "cdfformer_s18": {224: (3.0, 3.1), 512: (20.0, 20.1), 768: (45.0, 45.1)},
}
MEMORY = {"convformer_s18": 1.0, "caformer_s18": 3.0, "dfformer_s18": 1.2, "cdfformer_s18": 4.0}


@pytest.fixture
def found() -> Found:
    lines, rounds = [], {}
    for name, by_size in SECONDS.items():
        for size, times in by_size.items():
            side = OURS if "df" in name else PEER
            key = Key("resolution", name, str(size), "float32", "inference", side)
            grown = 1 + (MEMORY[name] - 1) * (size - 224) / (768 - 224)
            rounds[key] = list(times)
            lines.append(line(key, times, images=2, weights_mib=0.0, forward_mib=size**2 * grown))
    made = {"time": "now", "commit": "c" * 40, "device": {"name": "a machine", "threads": 2}}
    return Found(lines, rounds, made | {"settings": {"resolution_batch": 2, "rounds": 2}})


def test_where_filters_overtake_attention(found):
    outcomes = scaling.faster(found, "dfformer_s18", "caformer_s18")
    assert [outcome.verdict for outcome in outcomes] == ["disagrees", "agrees", "agrees"]
    assert outcomes[1].measured == pytest.approx((2 / 6 - 2 / 8 + 2 / 6.1 - 2 / 8.2) / 2)  # images a second
    assert scaling.overtakes(outcomes) == "faster at 512 pixels and beyond"
    assert scaling.overtakes(outcomes[1:]) == "faster at all resolutions, at 512 pixels already"
    assert "not faster" in scaling.overtakes(scaling.faster(found, "cdfformer_s18", "caformer_s18"))
    view = report.claims(outcomes)
    assert view.rows[2][:3] == ["DFFormer-S18 is faster at 768 pixels.", "agrees", "DFFormer-S18 > CAFormer-S18"]


def test_the_claims_have_the_papers_direction(found):
    """At 224 pixels CAFormer is the faster one (Table 2: 741 against 535 and 567 images a second)."""
    least, greatest = scaling.published(found, "dfformer_s18")
    assert (least.rows, greatest.rows) == (("CAFormer-S18", "DFFormer-S18"), ("DFFormer-S18", "CAFormer-S18"))
    assert (least.verdict, greatest.verdict) == ("agrees", "agrees")
    assert "224 pixels" in least.claim.text
    assert "768 pixels" in greatest.claim.text
    assert [outcome.verdict for outcome in scaling.published(found, "cdfformer_s18")] == ["agrees", "disagrees"]


def test_shares_of_convformers_throughput_and_how_they_change(found):
    attention = scaling.shares(found, "throughput")["caformer_s18"]
    assert [attention[size].value for size in (224, 512, 768)] == pytest.approx([1, 0.5, 0.25], rel=0.01)
    view = bench_report.shares(found, "throughput")
    verdicts = {row[0]: row[-1] for row in view.rows}
    assert verdicts == {"convformer_s18": "", "caformer_s18": "", "dfformer_s18": "agrees", "cdfformer_s18": "agrees"}
    assert view.rows[1][4] == "0.25 (0.25–0.25)"


def test_memory_that_grows_less_than_with_attention(found):
    view = bench_report.shares(found, "memory")
    cells = {row[0]: row[1:] for row in view.rows}
    assert cells["caformer_s18"] == ["1.00", "2.06", "3.00", "3.00", ""]
    assert cells["dfformer_s18"][-2:] == ["1.20", "undecided"]  # measured once
    assert cells["cdfformer_s18"][-2:] == ["4.00", "undecided"]


@pytest.mark.parametrize(
    ("mine", "attention", "verdict"),
    [((1, 0.9, 1.1), (0.5, 0.4, 0.6), "agrees"), ((0.3, 0.2, 0.35), (0.5, 0.4, 0.6), "disagrees"),
     ((0.5, 0.3, 0.7), (0.5, 0.4, 0.6), "undecided")],
)  # fmt: skip
def test_ranges_that_overlap_decide_nothing(mine, attention, verdict):
    mine, attention = scaling.Share(*mine), scaling.Share(*attention)
    assert scaling.stays_closer(mine, attention, "throughput") == verdict
    assert scaling.stays_closer(attention, mine, "memory") == verdict


def test_stored_results_are_drawn_and_make_the_figures_stale(found, store):
    figure_5 = Artefact("dfformer", "figure", 5)
    without = plan(figure_5, {"profile": "demo"}).made_from
    target = store / "bench" / "gpu"
    target.mkdir(parents=True)
    write(with_vim(found), target)
    assert plan(figure_5, {"profile": "demo"}).made_from != without
    assert plan(Artefact("dfformer", "figure", 8), {"profile": "demo"})._benchmarks() == {}

    machines = scaling.machines("demo")
    assert list(machines) == ["a machine"]
    values = scaling.throughput(machines)
    assert len(values) == len(scaling.memory(machines)) == 12
    assert values[0]["least"] < values[0]["images_per_second"] < values[0]["greatest"]
    made = Illustration("dfformer", 5, values, scaling.sources(machines), scaling.stands_in(machines))
    assert made.stands_in == "a machine (batches of 2) for the paper's V100 (batches of 4)"
    figure = speed.against_resolution(scaling.lines(machines), "memory")
    assert [axes.get_title() for axes in figure.axes] == ["a machine\ninference, 2 images at a time"]
    assert len(figure.axes[0].texts) == len(SECONDS)


def with_vim(found: Found) -> Found:
    """Further models, with further sizes, as the benchmark measures them for another figure."""
    rounds = {
        Key("resolution", name, str(size), "float32", "inference", side): [seconds, 1.01 * seconds]
        for name, side, by_size in (
            ("vimf_tiny_h", OURS, {224: 2.0, 512: 4.0, 1024: 8.0}),
            ("deit_tiny_patch16_224", PEER, {224: 1.0, 512: 5.0, 1024: 20.0}),
        )
        for size, seconds in by_size.items()
    }
    lines = [line(key, times, images=2, weights_mib=5.0, forward_mib=9.0) for key, times in rounds.items()]
    return Found([*found.lines, *lines], {**found.rounds, **rounds}, found.provenance)


def test_dfformers_figures_hold_its_models_alone(found, store):
    target = store / "bench" / "cpu-avx2"
    target.mkdir(parents=True)
    write(with_vim(found), target)
    (each,) = scaling.machines("demo").values()
    assert {line.name for line in each.lines} == {key.name for key in each.rounds} == set(SECONDS)
    assert {size for by_size in scaling.shares(each, "throughput").values() for size in by_size} == {224, 512, 768}


def test_from_which_resolution_vim_is_faster(found):
    said = "vimf_tiny_h against deit_tiny_patch16_224: faster at 512 pixels and beyond."
    view = bench_report.vim(with_vim(found))
    assert view.rows[0] == ["vimf_tiny_h", *("0.50", "1.25", "2.50"), *("2010", "4020", "8040"), *["14"] * 3]
    assert view.rows[1][:4] == ["deit_tiny_patch16_224", "", "", ""]
    assert said in view.notes


def test_machines_of_two_instruction_sets_are_two(found, store):
    for name in ("AVX2", "AVX-512"):
        target = folder("cpu", name)
        target.mkdir(parents=True)
        kernels = {"instruction_set": name, "march": "native", "processor": name, "held": {}}
        write(Found(found.lines, found.rounds, {**found.provenance, "kernels": kernels}), target)
    machines = scaling.machines("demo")
    assert list(machines) == ["a machine, AVX-512", "a machine, AVX2"]
    figure = speed.against_resolution(scaling.lines(machines), "throughput")
    assert [axes.get_title().splitlines()[0] for axes in figure.axes] == list(machines)
    (outcome, *_) = scaling.faster(machines["a machine, AVX2"], "dfformer_s18", "caformer_s18")
    assert outcome.setting == "a machine, AVX2"


def test_the_figures_are_in_the_book():
    text = (paths.BOOK / "_toc.yml").read_text(encoding="utf-8")
    assert all(f"results/dfformer/figure_{number}\n" in text for number in (5, 6))
    for number in (5, 6):
        cells = json.loads(paths.notebook("dfformer", f"figure_{number}").read_text(encoding="utf-8"))["cells"]
        assert "V100" in "".join("".join(cell["source"]) for cell in cells)
