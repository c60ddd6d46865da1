"""Statistics of paired comparisons: tests, equivalence, power, several claims at once, and the test set's own error.

Nothing here knows about experiments. The methods and their sources:

- The mean of paired differences is tested by Student's t. A pair is two runs with the same seed.
- Equivalence is shown by two one-sided tests, each at 5 % (Schuirmann, Journal of Pharmacokinetics and
  Biopharmaceutics 15 (1987), 657-680). Both reject exactly if the 90 % interval lies within the margin.
- Where seeds are added until claims are decided, the t test is replaced by one that holds for any rule of stopping. The
  likelihood ratio of the t statistic, with a normal prior on the effect in standard deviations, is an e-process: under
  the null hypothesis, the probability that it ever exceeds 1 / level is at most the level (Wang and Ramdas,
  Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance, Sequential Analysis 44, 2025;
  the ratio is that of Rouder et al., Psychonomic Bulletin & Review 16 (2009), 225-237, with a fixed variance). Its
  inverse is a p value at any time, so Holm's procedure and the two one-sided tests apply to it.
- Several claims are tested together by Holm's step-down procedure (Scandinavian Journal of Statistics 6 (1979), 65-70).
  It bounds the probability of any false rejection, whatever the dependence between the claims.
- Power is that of the two-sided t test, by the noncentral t distribution (Cohen, Statistical Power Analysis for the
  Behavioral Sciences, 2nd edition, 1988).
- Scores vary with the seeds and with the choice of test images (Bouthillier et al., Accounting for Variance in Machine
  Learning Benchmarks, MLSys 2021). McNemar's test (Psychometrika 12 (1947), 153-157) compares two networks on the same
  images. It is about these two networks, not about new seeds, and seeds cannot be pooled as if each had test images of
  its own. Instead, seeds and test images are both resampled, independently of each other. This is the bootstrap (Efron
  and Tibshirani, An Introduction to the Bootstrap, 1993) for two crossed factors (Owen, The Pigeonhole Bootstrap,
  Annals of Applied Statistics 1 (2007), 386-411).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean, stdev
from typing import Any

# The significance level of every test, and the confidence of every interval that is shown.
LEVEL = 0.05
CONFIDENCE = 1 - LEVEL
POWER = 0.8

# Variance of the prior on the mean paired difference, in standard deviations of a single difference. Where seeds are
# few, only effects of one to four standard deviations are found, and with this value three seeds suffice for intervals.
EFFECT_VARIANCE = 9.0


@dataclass(frozen=True)
class Estimate:
    """An estimated mean difference with its standard error, which has n - 1 degrees of freedom.

    Attributes:
        mean: The mean difference, in any unit.
        error: Its standard error in this unit; zero if all differences are equal.
        n: Number of pairs, at least 2.
        is_sequential: Whether n was chosen by results. Interval and p value then hold for any such choice.
    """

    mean: float
    error: float
    n: int
    is_sequential: bool = False

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the confidence interval of the mean, by Student's t or for any choice of n."""
        reach = (anytime_quantile if self.is_sequential else quantile)(confidence, self.n) * self.error
        return self.mean - reach, self.mean + reach

    def p(self) -> float:
        """Return the two-sided p value of the hypothesis that the true difference is zero."""
        if self.is_sequential:
            t = abs(self.mean) / self.error if self.error else float("inf") if self.mean else 0.0
            return min(1.0, 1 / e_value(t, self.n))
        if self.error == 0:
            return float(self.mean == 0)
        from scipy import stats

        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.n - 1))

    def is_within(self, margin: float) -> bool:
        """Return whether two one-sided tests at ``LEVEL`` show that the true difference is smaller than a margin.

        This is so if the 90 % interval lies within plus and minus the margin.
        """
        low, high = self.interval(1 - 2 * LEVEL)
        return -margin < low and high < margin

    def power(self, difference: float) -> float:
        """Return the probability that a two-sided test at ``LEVEL`` finds a true difference, at this error and n.

        The error is taken as known. It is itself estimated from n pairs, so for few pairs the power is a rough figure.
        """
        if self.error == 0:
            return float(difference != 0)
        from scipy import stats

        critical, shift = quantile(CONFIDENCE, self.n), difference / self.error
        # The lower tail is the upper one of the opposite difference, for which scipy is accurate far from zero, too.
        return float(sum(stats.nct.sf(critical, self.n - 1, each) for each in (shift, -shift)))

    def detectable(self, power: float = POWER) -> float:
        """Return the smallest true difference that a two-sided test at ``LEVEL`` finds with a given power."""
        if self.error == 0:
            return 0.0
        from scipy import optimize

        unit = Estimate(0.0, 1.0, self.n)
        return float(optimize.brentq(lambda shift: unit.power(shift) - power, 0, 100)) * self.error


@lru_cache
def quantile(confidence: float, n: int) -> float:
    """Return half the width of a confidence interval from n pairs, in standard errors."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, n - 1))


def e_value(t: float, n: int) -> float:
    """Return the likelihood ratio of a t statistic of n pairs: an effect by the prior, to none.

    With c = 1 + n ``EFFECT_VARIANCE``, it is c^(-1/2) ((1 + t²/(n-1)) / (1 + t²/(c (n-1))))^(n/2).
    """
    c = 1 + n * EFFECT_VARIANCE
    if math.isinf(t):
        return float(c ** ((n - 1) / 2))
    u = t**2 / (n - 1)
    return float(c**-0.5 * ((1 + u) / (1 + u / c)) ** (n / 2))


@lru_cache
def anytime_quantile(confidence: float, n: int) -> float:
    """Return half the width of a confidence interval that holds for any choice of n, in standard errors.

    All such intervals, for n = 2, 3, ..., contain the true mean together with this confidence. The width is the t
    statistic at which ``e_value`` is 1 / (1 - confidence), and infinite if no t statistic reaches that.
    """
    c = 1 + n * EFFECT_VARIANCE
    ratio = (c**0.5 / (1 - confidence)) ** (2 / n)
    return math.sqrt((n - 1) * (ratio - 1) / (1 - ratio / c)) if ratio < c else math.inf


def paired(
    better: Sequence[float], worse: Sequence[float], is_sequential: bool = False
) -> tuple[float, float | None, float | None]:
    """Return the mean of the paired differences (better - worse), and its 95 % confidence interval.

    The interval is by Student's t or, if the number of pairs was chosen by results, holds for any such choice. It is
    ``None`` for a single pair, and has zero width if all differences are equal.
    """
    differences = [b - w for b, w in zip(better, worse, strict=True)]
    n = len(differences)
    if n == 1:
        return differences[0], None, None
    estimate = Estimate(mean(differences), stdev(differences) / n**0.5, n, is_sequential)
    return estimate.mean, *estimate.interval()


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down procedure, in the given order.

    Rejecting each hypothesis whose adjusted value is below a level rejects a true one with at most that probability.
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def crossed_error(differences: Any) -> float:
    """Return the standard error of a mean difference over seeds and over test images, both resampled.

    It is that of the bootstrap that resamples seeds and, independently, images, each time with replacement and in all
    combinations. The variance over infinitely many replicates has a closed form (Owen 2007), so nothing is drawn.
    Resampling n seeds underestimates their variance by the factor (n - 1) / n, which is corrected here. By Student's t
    with n - 1 degrees of freedom, the interval is then never narrower than that of the seeds alone. It is conservative:
    the variance that is due to single pairs of seed and image counts more than once.

    Args:
        differences: Array (seeds, images) of the differences of two networks with the same seed on one image, such as
            -1, 0 and 1 for which of them is right; at least two seeds.
    """
    import numpy as np

    centred = np.asarray(differences, dtype=np.float64)
    centred = centred - centred.mean()
    n, images = centred.shape
    by_seed, by_image = centred.sum(axis=1), centred.sum(axis=0)
    total = (1 - 1 / images) * by_seed @ by_seed + (1 - 1 / n) * by_image @ by_image + np.square(centred).sum()
    return float(np.sqrt(total * n / (n - 1)) / (n * images))
