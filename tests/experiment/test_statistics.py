"""Tests, equivalence, power and the two-level error, against scipy, hand values and seeded simulations."""

import numpy as np
import pytest
from scipy import stats

from frepro.experiment.statistics import (
    CONFIDENCE,
    EFFECT_VARIANCE,
    LEVEL,
    Estimate,
    anytime_quantile,
    crossed_error,
    e_value,
    holm,
    paired,
    quantile,
)


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


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("t", [0.0, 0.7, -3.0, 12.0])
def test_the_e_value_is_a_ratio_of_likelihoods(n, t):
    """Of the t statistic: noncentral with a normal prior on the effect, to central."""
    from scipy import integrate

    scale = EFFECT_VARIANCE**0.5

    def weighted(effect: float) -> float:
        return stats.nct.pdf(t, n - 1, effect * n**0.5) * stats.norm.pdf(effect, scale=scale)

    likelihood, _ = integrate.quad(weighted, -6 * scale, 6 * scale, points=[0, t / n**0.5], limit=400)
    assert e_value(t, n) == pytest.approx(likelihood / stats.t.pdf(t, n - 1), rel=1e-3)


def test_sequential_intervals_are_those_of_the_test():
    for n in (3, 4, 10, 50):
        estimate = Estimate(0.0, 0.7, n, is_sequential=True)
        _, high = estimate.interval()
        assert Estimate(high, 0.7, n, is_sequential=True).p() == pytest.approx(LEVEL)
        assert high > Estimate(0.0, 0.7, n).interval()[1]
    assert anytime_quantile(CONFIDENCE, 2) == np.inf  # two seeds decide nothing
    assert Estimate(1.0, 0.0, 5, is_sequential=True).p() == pytest.approx((1 + 5 * EFFECT_VARIANCE) ** -2)
    assert Estimate(0.0, 0.0, 5, is_sequential=True).p() == 1


def stopped(differences: np.ndarray, margin: float) -> tuple[bool, bool]:
    """Add seeds to a table until each claim is decided or equivalent; return whether any was decided, or equivalent.

    Args:
        differences: Paired differences, (claims, most seeds).
    """
    for n in range(3, differences.shape[1] + 1):
        found = [
            Estimate(*each, n, is_sequential=True)
            for each in zip(
                differences[:, :n].mean(axis=1).tolist(),
                (differences[:, :n].std(axis=1, ddof=1) / n**0.5).tolist(),
                strict=True,
            )
        ]
        decided = [p < LEVEL for p in holm([each.p() for each in found])]
        equivalent = [each.is_within(margin) for each in found]
        if all(a or b for a, b in zip(decided, equivalent, strict=True)):
            break
    return any(decided), any(equivalent)


def test_stopping_when_decided_makes_few_false_decisions():
    trials, rng = 300, np.random.default_rng(0)
    null = [stopped(rng.normal(size=(4, 30)), margin=0.0)[0] for _ in range(trials)]
    assert sum(null) <= most(trials)
    # A t test at each look would make many.
    samples = rng.normal(size=(trials, 30))
    looks = [[stats.ttest_1samp(each[:n], 0).pvalue < LEVEL for n in range(3, 31)] for each in samples[:100]]
    assert sum(map(any, looks)) > most(100)


def test_stopping_when_decided_finds_few_false_equivalences():
    trials, rng = 300, np.random.default_rng(1)
    at_the_margin = [stopped(rng.normal(1.0, 1.0, size=(1, 40)), margin=1.0)[1] for _ in range(trials)]
    assert sum(at_the_margin) <= most(trials)


def test_stopping_finds_what_is_there():
    rng = np.random.default_rng(2)
    large = [stopped(rng.normal(2.0, 1.0, size=(4, 30)), margin=1.0) for _ in range(50)]
    small = [stopped(rng.normal(0.0, 1.0, size=(1, 50)), margin=1.0) for _ in range(50)]
    assert np.mean([decided for decided, _ in large]) > 0.95
    assert np.mean([equivalent for _, equivalent in small]) > 0.95
