"""Test the claims of a paper on measured values, and decide whether a training run learned anything."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from frepro import papers

if TYPE_CHECKING:
    from frepro.experiment import Experiment

CONFIDENCE = 0.95
# A classifier whose final training loss is within this fraction of ln(classes), that of a uniform guess, did not train.
PLATEAU = 0.1
# A run also did not train if the probability that guessing scores as well is not below this.
CHANCE = 0.01


@dataclass(frozen=True)
class Outcome:
    """A claim and its test on the measured values.

    Attributes:
        rows: Labels of the two rows; the one with the higher value according to the paper is first.
        unit: Unit of the differences.
        published: Difference of the two published values; ``None`` if one is not published.
        measured: Mean of (better - worse) over the pairs; ``None`` if it was not measured. A pair is two runs with the
            same seed, or two timings in the same round.
        low: Lower end of the 95 % confidence interval of the mean by Student's t; ``None`` for a single pair.
        high: Upper end of that interval.
        n: Number of pairs.
        setting: Data set or device of the measurement.
        untrained: Runs that it depends on and that did not train, as "SPANet-S, seed 0".
    """

    claim: papers.Claim
    rows: tuple[str, str]
    unit: str
    published: float | None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    setting: str = ""
    untrained: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The verdict on the paper's direction: "not run", "did not train", or the result of ``verdict``."""
        if self.measured is None:
            return "not run"
        return "did not train" if self.untrained else verdict(self.low, self.high)


def verdict(low: float | None, high: float | None) -> str:
    """Return "agrees" or "disagrees" if the whole interval is on one side of zero, else "undecided"."""
    if low is not None and low > 0:
        return "agrees"
    if high is not None and high < 0:
        return "disagrees"
    return "undecided"


def paired(better: Sequence[float], worse: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean of the paired differences (better - worse) and its 95 % confidence interval by Student's t.

    The interval is ``None`` for a single pair, and has zero width if all differences are equal.
    """
    differences = [b - w for b, w in zip(better, worse, strict=True)]
    centre = mean(differences)
    if len(differences) == 1:
        return centre, None, None
    from scipy import stats

    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    reach = float(quantile) * stdev(differences) / len(differences) ** 0.5
    return centre, centre - reach, centre + reach


def did_train(values: Mapping[str, Any], classes: int | None) -> bool:
    """Return whether a training run learned anything, according to the values of its record.

    A classifier did not train if its training loss is within ``PLATEAU`` of the loss of a uniform guess, or if its
    top-1 accuracy is not better than chance in a one-sided binomial test at the level ``CHANCE``. Label smoothing and
    mixup do not change the loss of a uniform guess, ln(classes).

    Args:
        classes: Number of classes; ``None`` for detectors and segmenters, whose loss of a guess is unknown.
    """
    if "top1" not in values or classes is None:
        return True
    if values.get("train_loss", 0.0) > (1 - PLATEAU) * math.log(classes):
        return False
    from scipy import stats

    images = values["test_images"]
    correct = round(values["top1"] / 100 * images)
    return bool(stats.binom.sf(correct - 1, images, 1 / classes) < CHANCE)


def outcomes(experiment: "Experiment") -> list[Outcome]:
    """Return the outcome of each claim about the variants of the table. Each claim is tested on its own."""
    found = []
    for claim, rows in experiment.all_claims():
        is_speed = claim.metric == "throughput"
        unit = "img/s" if is_speed else "points"
        published = _published_difference(experiment, claim)
        values = experiment.rates if is_speed else _claimed(experiment, claim)
        if not all(values.get(label) for label in rows):
            found.append(Outcome(claim, rows, unit, published))
            continue
        better, worse = (values[label] for label in rows)
        setting = experiment.device_name[1] if is_speed else experiment.source.name
        untrained = () if is_speed else _untrained(experiment, claim, rows)
        found.append(Outcome(claim, rows, unit, published, *paired(better, worse), len(better), setting, untrained))
    return found


def _untrained(experiment: "Experiment", claim: papers.Claim, rows: Sequence[str]) -> tuple[str, ...]:
    """Return the runs that a claim depends on and that did not train."""
    network = experiment.claimed_network(claim)[0]
    learners = [each for each in experiment.trained_variants if each.label in rows and each.network == network]
    return tuple(run for learner in learners for run in learner.untrained())


def _claimed(experiment: "Experiment", claim: papers.Claim) -> dict[str, list[float]]:
    """Return the scores that a claim is about."""
    network, metric = experiment.claimed_network(claim)
    return experiment.scores(metric, network)


def _published_difference(experiment: "Experiment", claim: papers.Claim) -> float | None:
    if claim in experiment.claims or experiment.published.column(claim.metric) is None:
        return None
    rows = [experiment.published.row(model, claim.group) for model in (claim.better, claim.worse)]
    better, worse = (experiment.published.value(row, claim.metric) for row in rows)
    return None if better is None or worse is None else better - worse
