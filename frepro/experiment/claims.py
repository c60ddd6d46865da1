"""Test the claims of a paper on measured values, and decide whether a training run learned anything."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from frepro import papers, recipes
from frepro.recipes.metrics import THROUGHPUT

if TYPE_CHECKING:
    from frepro.experiment import Experiment
    from frepro.experiment.spec import Spec

# The metric by which a classifier is tested against chance.
ACCURACY = recipes.Classification.main_metric().name

CONFIDENCE = 0.95
# A classifier whose final training loss is within this fraction of ln(classes), that of a uniform guess, did not train.
PLATEAU = 0.1
# A run also did not train if the probability that guessing scores as well is not below this.
CHANCE = 0.01


@dataclass(frozen=True)
class Outcome:
    """A claim and its test on the measured values.

    A difference is positive if the first row is better: its value is higher or, for a metric that is better if lower,
    lower than that of the second.

    Attributes:
        rows: Labels of the two rows; the better one according to the paper is first.
        unit: Unit of the differences.
        published: Difference of the two published values; ``None`` if one is not published.
        measured: Mean difference over the pairs; ``None`` if it was not measured. A pair is two runs with the same
            seed, or two timings in the same round.
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
    """Return the mean of the paired differences (better - worse), and its 95 % confidence interval by Student's t.

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
    accuracy is not better than chance in a one-sided binomial test at the level ``CHANCE``. Label smoothing and
    mixup do not change the loss of a uniform guess, ln(classes).

    Args:
        classes: Number of classes; ``None`` for detectors and segmenters, whose loss of a guess is unknown.
    """
    if ACCURACY not in values or classes is None:
        return True
    if values.get("train_loss", 0.0) > (1 - PLATEAU) * math.log(classes):
        return False
    from scipy import stats

    images = values["test_images"]
    correct = round(values[ACCURACY] / 100 * images)
    return bool(stats.binom.sf(correct - 1, images, 1 / classes) < CHANCE)


def compared(spec: "Spec") -> list[tuple[papers.Claim, tuple[str, str]]]:
    """Return the claims of the table, then those of variants, each with the labels of its two rows.

    Claims of the table about a model that ``spec.models`` excludes are omitted.
    """
    labels = {model: label for label, model, args in spec.variants if not args}
    published = []
    for claim in spec.published.claims:
        pair = (claim.better, claim.worse)
        if not spec.models or set(pair) <= set(spec.models):
            better, worse = (labels.get(model) or _printed_label(spec, model, claim) for model in pair)
            published.append((claim, (better, worse)))
    return [*published, *((claim, (claim.better, claim.worse)) for claim in spec.claims)]


def _printed_label(spec: "Spec", model: str, claim: papers.Claim) -> str:
    return str(spec.published.value(_row(spec, model, claim), "label"))


def _row(spec: "Spec", model: str, claim: papers.Claim) -> papers.Row:
    """Return the row of a model in a claim of the table, which has one: ``papers.read`` checks that."""
    row = spec.published.row(model, claim.group)
    assert row is not None
    return row


def _subject(spec: "Spec", claim: papers.Claim) -> tuple[str | None, str]:
    """Return the network of a claim, and its metric as in the record of a run."""
    column = spec.published.column(claim.metric)
    if not spec.networks or claim in spec.claims or column is None:
        return claim.group, claim.metric
    return spec.meant(_row(spec, claim.better, claim), column)


def outcomes(experiment: "Experiment") -> list[Outcome]:
    """Return the outcome of each claim about the variants of the table. Each claim is tested on its own."""
    found = []
    for claim, rows in compared(experiment):
        network, name = _subject(experiment, claim)
        metric = recipes.METRICS.get(name)
        sign = -1 if metric and not metric.higher_is_better else 1
        is_speed = metric is THROUGHPUT
        unit = "points" if metric is None or metric.unit == "%" else metric.unit
        published = _published_difference(experiment, claim, sign)
        values = experiment.rates if is_speed else experiment.scores(name, network)
        if not all(values.get(label) for label in rows):
            found.append(Outcome(claim, rows, unit, published))
            continue
        better, worse = ([sign * value for value in values[label]] for label in rows)
        setting = experiment.device_name[1] if is_speed else experiment.source.name
        untrained = () if is_speed else _untrained(experiment, network, rows)
        found.append(Outcome(claim, rows, unit, published, *paired(better, worse), len(better), setting, untrained))
    return found


def _untrained(experiment: "Experiment", network: str | None, rows: Sequence[str]) -> tuple[str, ...]:
    """Return the runs that a claim depends on and that did not train."""
    learners = [each for each in experiment.trained_variants if each.label in rows and each.network == network]
    return tuple(run for learner in learners for run in learner.untrained())


def _published_difference(experiment: "Experiment", claim: papers.Claim, sign: int) -> float | None:
    if claim in experiment.claims or experiment.published.column(claim.metric) is None:
        return None
    rows = [_row(experiment, model, claim) for model in (claim.better, claim.worse)]
    better, worse = (experiment.published.number(row, claim.metric) for row in rows)
    return None if better is None or worse is None else sign * (better - worse)
