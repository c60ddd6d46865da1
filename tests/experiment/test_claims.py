"""Verdicts on claims, and the gate for runs that learnt nothing."""

import csv
import dataclasses
import io
import math

import numpy as np
import pytest
from scipy import stats

from frepro import papers
from frepro.experiment import claims
from frepro.experiment.statistics import holm


@pytest.mark.parametrize(
    ("better", "worse", "interval", "verdict"),
    [
        ([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], (2, 2, 2), "agrees"),  # a constant difference
        ([1.0, 2.0], [3.0, 4.0], (-2, -2, -2), "disagrees"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], (0, 0, 0), "undecided"),  # no difference
        ([5.0], [1.0], (4, None, None), "undecided"),  # one seed
        ([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, (3, 1.036757, 4.963243), "agrees"),  # t(0.975, 4) = 2.776445
        ([-1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, (2.6, -0.258525, 5.458525), "undecided"),
    ],
)
def test_paired_statistic(better, worse, interval, verdict):
    found = claims.paired(better, worse)
    assert found == pytest.approx(interval, abs=1e-3)
    claim = papers.load("dfformer").tables[4].claims[0]
    outcome = claims.Outcome(claim, ("a", "b"), "points", None, *found, n=len(better), setting="digits")
    assert outcome.verdict == verdict


def test_a_run_that_did_not_train_voids_a_clear_difference():
    claim = papers.load("dfformer").tables[4].claims[0]
    rows = ("a", "b")
    assert claims.Outcome(claim, rows, "points", 1.0, 9.0, 8.0, 10.0, 3).verdict == "agrees"
    assert claims.Outcome(claim, rows, "points", 1.0, 9.0, 8.0, 10.0, 3, "", ("b, seed 0",)).verdict == "did not train"
    assert claims.Outcome(claim, rows, "points", 1.0, untrained=("b, seed 0",)).verdict == "not run"


CLAIM = papers.load("dfformer").tables[4].claims[0]


def outcome(differences, **more) -> claims.Outcome:
    """The outcome for given paired differences in points."""
    found = claims.paired(differences, [0.0] * len(differences))
    return claims.Outcome(CLAIM, ("a", "b"), "points", 0.2, *found, len(differences), "digits", **more)


@pytest.mark.parametrize(
    ("differences", "more", "verdict", "is_within"),
    [
        ([0.1, -0.1, 0.2, -0.2], {"margin": 1.0}, "equivalent", True),
        ([0.1, -0.1, 0.2, -0.2], {}, "undecided", False),
        ([0.1, -0.1, 0.2, -0.2], {"margin": 0.1}, "undecided", False),
        ([0.4, 0.5, 0.6], {"margin": 1.0}, "agrees", True),  # significant and small
        ([-0.4, -0.5, -0.6], {"margin": 1.0}, "disagrees", True),
        ([4.0, 5.0, 6.0], {"margin": 1.0}, "agrees", False),
        ([4.0, 5.0, 6.0], {"adjusted_p": 0.06, "margin": 1.0}, "undecided", False),  # the interval excludes zero
        ([0.4, 0.5, 0.6], {"adjusted_p": 0.06, "margin": 1.0}, "equivalent", True),
        ([4.0, 5.0, 6.0], {"error": 1.0}, "agrees", False),
        ([4.0, 5.0, 6.0], {"error": 2.0}, "undecided", False),  # t(0.975, 2) = 4.303: from -3.6 to 13.6
        ([0.1, -0.1, 0.2, -0.2], {"margin": 1.0, "error": 0.4}, "equivalent", True),  # t(0.95, 3) = 2.353
        ([0.1, -0.1, 0.2, -0.2], {"margin": 1.0, "error": 0.5}, "undecided", False),
        ([5.0], {"margin": 1.0}, "undecided", False),
        ([0.0], {"margin": 1.0}, "undecided", False),
        ([0.1, -0.1, 0.2, -0.2], {"margin": 1.0, "untrained": ("b, seed 0",)}, "did not train", False),
    ],
)
def test_verdicts_with_a_margin_an_adjustment_and_the_error_of_the_test_set(differences, more, verdict, is_within):
    found = outcome(differences, **more)
    assert (found.verdict, found.is_within_margin) == (verdict, is_within)


def test_only_what_was_tested_counts_in_the_adjustment():
    tested = [outcome([1.0, 2.0, 3.0, 2.0]), outcome([1.0, -2.0, 3.0])]
    others = [claims.Outcome(CLAIM, ("a", "b"), "points", 1.0), outcome([5.0]), outcome([1.0, 2.0], untrained=("b",))]
    first, *rest, last = claims.adjusted([tested[0], *others, tested[1]])
    assert [each.adjusted_p for each in (first, last)] == pytest.approx(holm([each.p for each in tested]))
    assert first.adjusted_p == pytest.approx(2 * tested[0].p)
    assert rest == others


@pytest.mark.parametrize("n", [3, 5, 10])
def test_five_claims_without_an_effect_are_seldom_decided(n):
    """Claims that share their first row, as those of an ablation do; at most 5 % of tables decide any."""
    generator, trials, single, family = np.random.default_rng(n), 600, 0, 0
    for _ in range(trials):
        baseline, *others = generator.normal(size=(6, n))
        alone = [outcome((baseline - other).tolist()) for other in others]
        single += alone[0].verdict in ("agrees", "disagrees")
        family += any(each.verdict in ("agrees", "disagrees") for each in claims.adjusted(alone))
    assert 0 < single <= stats.binom.ppf(0.999, trials, 0.05)
    assert 0 < family <= stats.binom.ppf(0.999, trials, 0.05)


def test_power_is_about_the_published_difference_of_a_score():
    found = outcome([1.0, 2.0, 3.0])
    assert found.power == pytest.approx(found.over_seeds.power(0.2))
    assert found.detectable == pytest.approx(found.over_seeds.detectable())
    assert dataclasses.replace(found, unit="img/s").power is None  # on another machine
    assert dataclasses.replace(found, published=None).power is None
    assert (outcome([1.0]).power, outcome([1.0]).detectable, outcome([1.0]).p) == (None, None, None)


def test_outcomes_are_read_as_they_were_written():
    found = claims.adjusted(
        [
            outcome([0.1, -0.1, 0.2, -0.2], margin=1.0, error=0.4),
            outcome([4.0, 5.0, 6.0]),
            outcome([1.0, 2.0], untrained=("a, seed 0", "b, seed 1")),
            claims.Outcome(CLAIM, ("a", "b"), "points", None, reason="not among the models of this run"),
        ]
    )
    text = claims.to_csv(found)
    assert claims.from_csv(text) == found
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["verdict"] for row in rows] == ["equivalent", "agrees", "did not train", "not run"]
    assert float(rows[1]["adjusted_p"]) == found[1].adjusted_p
    # Columns that another version does not have count as empty.
    later = ("error", "low_with_images", "high_with_images", "margin", "confounded", "reason", "adjusted_p")
    kept = [{name: value for name, value in row.items() if name not in later} for row in rows]
    short = io.StringIO()
    writer = csv.DictWriter(short, list(kept[0]))
    writer.writeheader()
    writer.writerows(kept)
    assert [each.verdict for each in claims.from_csv(short.getvalue())] == [
        "undecided",
        "agrees",
        "did not train",
        "not run",
    ]


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        claims.paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("values", "classes", "is_trained"),
    [
        ({"top1": 10.7, "train_loss": 2.303, "test_images": 1000}, 10, False),  # a loss of a guess, ln(10)
        ({"top1": 23.7, "train_loss": 2.141, "test_images": 1000}, 10, False),  # 7 % below it
        ({"top1": 45.3, "train_loss": 1.765, "test_images": 1000}, 10, True),
        ({"top1": 11.2, "train_loss": 1.2, "test_images": 1000}, 10, False),  # fits, and guesses what it has not seen
        ({"top1": 16.0, "test_images": 1000}, 10, True),  # weights of a file have no training loss
        ({"top1": 10.0, "test_images": 1000}, 10, False),
        ({"top1": 0.4, "train_loss": 6.1, "test_images": 50000}, 1000, True),
        ({"top1": 50.0, "train_loss": math.log(2) * 0.99, "test_images": 400}, 2, False),
        ({"box_ap": 0.0, "train_loss": 9.0, "test_images": 10}, None, True),  # no loss of a guess is known
    ],
)
def test_the_gate(values, classes, is_trained):
    assert claims.did_train(values, classes) is is_trained


def test_seeds_that_were_added_by_results_need_a_clearer_difference():
    differences = [4.0, 5.0, 6.0, 5.0]
    for is_sequential, verdict in ((False, "agrees"), (True, "agrees")):
        found = claims.paired(differences, [0.0] * 4, is_sequential)
        tested = claims.Outcome(CLAIM, ("a", "b"), "points", 0.2, *found, 4, "digits", is_sequential=is_sequential)
        assert tested.verdict == verdict
        assert tested.over_seeds.error == pytest.approx(np.std(differences, ddof=1) / 2)
        assert not tested.is_open
    found = claims.paired([1.0, 2.0, 3.0, 4.0], [0.0] * 4, True)
    tested = claims.Outcome(CLAIM, ("a", "b"), "points", 0.2, *found, 4, "digits", is_sequential=True)
    assert (tested.verdict, tested.is_open) == ("undecided", True)  # a single t test would decide it
    assert stats.ttest_1samp([1.0, 2.0, 3.0, 4.0], 0).pvalue < 0.05
    (read,) = claims.from_csv(claims.to_csv([tested]))
    assert (read.verdict, read.is_open, read.p) == (tested.verdict, True, pytest.approx(tested.p))
    assert not dataclasses.replace(tested, untrained=("b, seed 0",)).is_open  # more seeds would not help
