"""Tests, equivalence, power and the two-level error, against scipy, hand values and seeded simulations."""

import numpy as np
import pytest
from scipy import stats

from frepro.experiment.statistics import CONFIDENCE, LEVEL, Estimate, crossed_error, holm, paired, quantile


def most(trials: int, level: float = LEVEL) -> int:
    """The number of rejections that a valid test exceeds with a probability of 0.1 %."""
    return int(stats.binom.ppf(0.999, trials, level))


def estimates(samples: np.ndarray) -> list[Estimate]:
    """The estimate of each row of differences."""
    n = samples.shape[1]
    errors = samples.std(axis=1, ddof=1) / n**0.5
    return [Estimate(*each, n) for each in zip(samples.mean(axis=1).tolist(), errors.tolist(), strict=True)]


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_paired_test_and_its_interval_are_scipys(n):
    better, worse = np.random.default_rng(n).normal(size=(2, n)).tolist()
    expected = stats.ttest_rel(better, worse)
    mean, low, high = paired(better, worse)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval(CONFIDENCE)))
    estimate = Estimate(mean, (high - low) / 2 / quantile(CONFIDENCE, n), n)
    assert estimate.p() == pytest.approx(expected.pvalue)
    assert estimate.interval() == pytest.approx((low, high))


def test_equivalence_is_two_one_sided_tests():
    samples = np.random.default_rng(0).normal(size=(50, 4))
    for sample, estimate in zip(samples, estimates(samples), strict=True):
        above = stats.ttest_1samp(sample, -1, alternative="greater").pvalue
        below = stats.ttest_1samp(sample, 1, alternative="less").pvalue
        assert estimate.is_within(1.0) == (max(above, below) < 0.05)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_a_difference_as_large_as_the_margin_is_seldom_equivalent(n):
    found = estimates(np.random.default_rng(n).normal(1.0, 0.5, size=(4000, n)))
    rate = sum(each.is_within(1.0) for each in found)
    assert 0 < rate <= most(4000)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("difference", [0.0, 0.5, -1.0, 2.0])
def test_power_is_the_share_of_samples_that_are_significant(n, difference):
    samples = np.random.default_rng(n).normal(difference, 1.0, size=(20000, n))
    share = float((stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean())
    power = Estimate(0.0, n**-0.5, n).power(difference)
    assert power == pytest.approx(share, abs=4 * (power * (1 - power) / 20000) ** 0.5)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_the_detectable_difference_has_the_power(n):
    estimate = Estimate(-7.0, 0.25, n)
    assert estimate.power(estimate.detectable()) == pytest.approx(0.8)
    assert estimate.detectable(0.5) < estimate.detectable()
    assert [estimate.power(difference) for difference in (1e3, -1e6)] == pytest.approx([1, 1])


def test_differences_that_do_not_vary():
    apart, equal = Estimate(0.5, 0.0, 3), Estimate(0.0, 0.0, 3)
    assert (apart.p(), equal.p()) == (0, 1)
    assert (apart.is_within(1.0), apart.is_within(0.5), equal.is_within(0.1)) == (True, False, True)
    assert (apart.power(0.1), apart.power(0.0), apart.detectable()) == (1, 0, 0)


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.4, 0.6, 0.9], [1, 1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holms_adjustment_by_hand(p, adjusted):
    assert holm(p) == pytest.approx(adjusted)


def test_the_two_level_error_is_that_of_the_bootstrap():
    generator = np.random.default_rng(0)
    differences = generator.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(4, 50)) + generator.normal(size=(4, 1))
    seeds, images = generator.integers(4, size=(20000, 4)), generator.integers(50, size=(20000, 50))
    means = [differences[np.ix_(*chosen)].mean() for chosen in zip(seeds, images, strict=True)]
    assert crossed_error(differences) == pytest.approx(np.std(means) * (4 / 3) ** 0.5, rel=0.02)


def test_the_two_level_error_holds_that_of_the_seeds_and_that_of_the_images():
    generator = np.random.default_rng(0)
    for n, images in ((2, 1), (3, 20), (10, 400)):
        differences = generator.choice([-1, 0, 1], size=(n, images)).astype(float)
        error = crossed_error(differences)
        assert error >= differences.mean(axis=1).std(ddof=1) / n**0.5
        assert error >= differences.mean(axis=0).std() / images**0.5
    assert crossed_error(np.ones((3, 20))) == 0


def test_a_test_set_that_favours_one_of_two_equal_networks_decides_nothing():
    """Two networks that are equal over all images, of which each test set is a sample. Seeds alone cannot tell."""
    generator, n, trials = np.random.default_rng(0), 5, 400
    by_seeds = by_both = 0
    for _ in range(trials):
        difficulty, favour = generator.normal(size=(2, 1, 200))
        better, worse = (generator.normal(size=(n, 200)) < difficulty + sign * 2 * favour for sign in (1, -1))
        differences = better.astype(float) - worse
        (estimate,) = estimates(differences.mean(axis=1)[None])
        by_seeds += estimate.p() < 0.05
        by_both += Estimate(estimate.mean, crossed_error(differences), n).p() < 0.05
    assert by_seeds > 4 * most(trials)
    assert by_both <= most(trials)
