"""Verdicts on claims, and the gate for runs that learnt nothing."""

import math

import pytest

from frepro import papers
from frepro.experiment import claims


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
