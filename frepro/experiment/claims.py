"""Test the claims of a paper on measured values, and decide whether a training run learned anything.

The methods and their sources are in ``statistics``. A claim is decided as follows:

- **not run**: its two rows were not both measured.
- **did not train**: one of its runs learned nothing (``did_train``).
- **agrees** or **disagrees** with the paper's direction: the paired t test over the seeds rejects at 5 % that there is
  no difference, with a p value adjusted by Holm's procedure for all claims of the table that were tested. Where it is
  known which test images each run got right, the 95 % interval over seeds and test images must exclude zero, too.
- **equivalent**: otherwise, if the claim has a margin and two one-sided tests at 5 % show that the difference is
  smaller: the 90 % interval lies within the margin, over the seeds and, where known, over seeds and test images.
- **undecided**: otherwise, and always with a single pair.

Where seeds are added until claims are decided, tests and intervals over the seeds hold for any such rule (see
``statistics``). The interval over seeds and test images is always that of Student's t: it has to agree as well, and
only the number of seeds is chosen by results.

A difference that is both significant and within the margin agrees or disagrees, and tables say that it is within the
margin. The intervals that are shown are ordinary 95 % ones, which are not adjusted; nor are the tests of equivalence.
The claims that a notebook adds to those of the table are adjusted among themselves, so that adding one changes no
verdict on the paper.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from frepro import papers, recipes
from frepro.experiment.statistics import (
    CONFIDENCE,
    LEVEL,
    Estimate,
    anytime_quantile,
    crossed_error,
    holm,
    paired,
    quantile,
)
from frepro.recipes.metrics import THROUGHPUT

if TYPE_CHECKING:
    from frepro.experiment import Experiment
    from frepro.experiment.spec import Spec

# The metric by which a classifier is tested against chance.
ACCURACY = recipes.Classification.main_metric().name

# A classifier whose final training loss is within this fraction of ln(classes), that of a uniform guess, did not train.
PLATEAU = 0.1
# A run also did not train if the probability that guessing scores as well is not below this.
CHANCE = 0.01
POINTS = "points"


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
        adjusted_p: The p value after Holm's adjustment for all tested claims of the table; ``None`` without adjustment.
        error: Standard error over seeds and test images (``statistics.crossed_error``); ``None`` if it is unknown which
            images the runs got right.
        margin: Largest difference that counts as equivalent; ``None`` if equivalence is not tested.
        is_sequential: Whether the number of pairs was chosen by results (``checks.GrownSeeds``).
        reason: Why it was not run; empty if its rows were simply not both measured.
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
    adjusted_p: float | None = None
    error: float | None = None
    margin: float | None = None
    is_sequential: bool = False
    reason: str = ""

    @property
    def over_seeds(self) -> Estimate | None:
        """The mean difference with its error over the pairs; ``None`` if it was not tested."""
        if self.measured is None or self.low is None or self.high is None or self.untrained:
            return None
        reach = (anytime_quantile if self.is_sequential else quantile)(CONFIDENCE, self.n)
        return Estimate(self.measured, (self.high - self.low) / 2 / reach, self.n, self.is_sequential)

    @property
    def over_both(self) -> Estimate | None:
        """The mean difference with its error over seeds and test images; ``None`` if that is unknown."""
        if self.over_seeds is None or self.error is None:
            return None
        return replace(self.over_seeds, error=self.error, is_sequential=False)

    @property
    def estimates(self) -> list[Estimate]:
        """Both estimates, if known."""
        return [each for each in (self.over_seeds, self.over_both) if each is not None]

    @property
    def p(self) -> float | None:
        """The two-sided p value of the t test over the pairs, without adjustment; ``None`` if it was not tested."""
        return None if self.over_seeds is None else self.over_seeds.p()

    @property
    def is_within_margin(self) -> bool:
        """Whether the difference was shown to be smaller than the margin."""
        margin = self.margin
        return margin is not None and bool(self.estimates) and all(each.is_within(margin) for each in self.estimates)

    @property
    def detectable(self) -> float | None:
        """The smallest difference that the t test over the pairs finds with a power of 80 %, without adjustment."""
        return None if self.over_seeds is None else self.over_seeds.detectable()

    @property
    def power(self) -> float | None:
        """The power of the t test over the pairs, without adjustment, if the true difference were the published one.

        ``None`` if it was not tested, and for throughput, whose differences depend on the machine.
        """
        if self.over_seeds is None or self.published is None or self.unit != POINTS:
            return None
        return self.over_seeds.power(self.published)

    @property
    def verdict(self) -> str:
        """The verdict on the paper's direction (see the module)."""
        if self.measured is None:
            return "not run"
        if self.untrained:
            return "did not train"
        p = self.p if self.adjusted_p is None else self.adjusted_p
        direction = "agrees" if self.measured > 0 else "disagrees"
        if p is not None and p < LEVEL and all(verdict(*each.interval()) == direction for each in self.estimates):
            return direction
        return "equivalent" if self.is_within_margin else "undecided"

    @property
    def is_open(self) -> bool:
        """Whether more seeds can still decide it."""
        return self.is_sequential and self.over_seeds is not None and self.verdict == "undecided"


def verdict(low: float | None, high: float | None) -> str:
    """Return "agrees" or "disagrees" if the whole interval is on one side of zero, else "undecided"."""
    if low is not None and low > 0:
        return "agrees"
    if high is not None and high < 0:
        return "disagrees"
    return "undecided"


def adjusted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes with p values that are adjusted for all of them that were tested."""
    tested = [outcome for outcome in outcomes if outcome.p is not None]
    values = iter(holm([outcome.p for outcome in tested if outcome.p is not None]))
    return [outcome if outcome.p is None else replace(outcome, adjusted_p=next(values)) for outcome in outcomes]


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
    """Return all claims of the table, then those of variants, each with the labels of its two rows."""
    labels = {model: label for label, model, args in spec.variants if not args}
    published = []
    for claim in spec.published.claims:
        better, worse = (
            labels.get(model) or _printed_label(spec, model, claim) for model in (claim.better, claim.worse)
        )
        published.append((claim, (better, worse)))
    return [*published, *((claim, (claim.better, claim.worse)) for claim in spec.claims)]


def _printed_label(spec: "Spec", model: str, claim: papers.Claim) -> str:
    return str(_table(spec, model, claim).value(_row(spec, model, claim), "label"))


def _table(spec: "Spec", model: str, claim: papers.Claim) -> papers.Table:
    """Return the table with the row of a model in a claim."""
    if model == claim.better or claim.other_table is None:
        return spec.published
    return papers.load(spec.paper).tables[claim.other_table]


def _row(spec: "Spec", model: str, claim: papers.Claim) -> papers.Row:
    """Return the row of a model in a claim of the table, which has one: ``papers.read`` checks that."""
    row = _table(spec, model, claim).row(model, claim.group)
    assert row is not None
    return row


def _subject(spec: "Spec", claim: papers.Claim) -> tuple[str | None, str]:
    """Return the network of a claim, and its metric as in the record of a run."""
    column = spec.published.column(claim.metric)
    if not spec.networks or claim in spec.claims or column is None:
        return claim.group, claim.metric
    return spec.meant(_row(spec, claim.better, claim), column)


def outcomes(experiment: "Experiment") -> list[Outcome]:
    """Return the outcome of each claim of the table, then of each claim about variants, in both cases adjusted."""
    found = [_tested(experiment, claim, rows) for claim, rows in compared(experiment)]
    count = len(experiment.published.claims)
    return [*adjusted(found[:count]), *adjusted(found[count:])]


def _tested(experiment: "Experiment", claim: papers.Claim, rows: tuple[str, str]) -> Outcome:
    network, name = _subject(experiment, claim)
    metric = recipes.METRICS.get(name)
    sign = -1 if metric and not metric.higher_is_better else 1
    is_speed = metric is THROUGHPUT
    unit = POINTS if metric is None or metric.unit == "%" else metric.unit
    published = _published_difference(experiment, claim, sign)
    margin = experiment.published.margin_of(claim)
    values = experiment.rates if is_speed else experiment.scores(name, network)
    if not all(values.get(label) for label in rows):
        return Outcome(claim, rows, unit, published, margin=margin, reason=_reason(experiment, claim, rows))
    better, worse = ([sign * value for value in values[label]] for label in rows)
    setting = experiment.device_name[1] if is_speed else experiment.source.name
    untrained = () if is_speed else _untrained(experiment, network, rows)
    error = _error(experiment, rows) if name == ACCURACY and network is None else None
    is_sequential = experiment.is_sequential and not is_speed
    return Outcome(
        claim,
        rows,
        unit,
        published,
        *paired(better, worse, is_sequential),
        len(better),
        setting,
        untrained,
        error=error,
        margin=margin,
        is_sequential=is_sequential,
    )


def _reason(experiment: "Experiment", claim: papers.Claim, rows: Sequence[str]) -> str:
    """Return why a claim was not run; empty if its rows were simply not both measured."""
    if experiment.models and claim not in experiment.claims and not {claim.better, claim.worse} <= {*experiment.models}:
        return "not among the models of this run"
    broken = [f"{label} cannot be built: {experiment.broken[label]}" for label in rows if label in experiment.broken]
    return "; ".join(broken)


def _error(experiment: "Experiment", rows: Sequence[str]) -> float | None:
    """Return the standard error of the mean difference in accuracy over seeds and test images, in points.

    ``None`` with a single seed, or if it is unknown for a run which test images it got right.
    """
    learners = {each.label: each for each in experiment.trained_variants if each.network is None}
    better, worse = (learners[label].correct() for label in rows)
    if len(better) < 2 or len(worse) < 2:
        return None
    import numpy as np

    return 100 * crossed_error(np.array(better, dtype=float) - np.array(worse, dtype=float))


def _untrained(experiment: "Experiment", network: str | None, rows: Sequence[str]) -> tuple[str, ...]:
    """Return the runs that a claim depends on and that did not train."""
    learners = [each for each in experiment.trained_variants if each.label in rows and each.network == network]
    return tuple(run for learner in learners for run in learner.untrained())


def _published_difference(experiment: "Experiment", claim: papers.Claim, sign: int) -> float | None:
    if claim in experiment.claims or experiment.published.column(claim.metric) is None:
        return None
    better, worse = (
        _table(experiment, model, claim).number(_row(experiment, model, claim), claim.metric)
        for model in (claim.better, claim.worse)
    )
    return None if better is None or worse is None else sign * (better - worse)


def to_csv(outcomes: Sequence[Outcome]) -> str:
    """Return tidy CSV: an unrounded row for each claim, with empty cells for missing values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_cells(_EMPTY)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_cells, outcomes))
    return text.getvalue()


_EMPTY = Outcome(papers.Claim("", "", ""), ("", ""), "", None)


def _cells(outcome: Outcome) -> dict[str, Any]:
    claim, over_both = outcome.claim, outcome.over_both
    low, high = (None, None) if over_both is None else over_both.interval()
    return {
        "claim": claim.text,
        "verdict": outcome.verdict,
        "better": outcome.rows[0],
        "worse": outcome.rows[1],
        "better_model": claim.better,
        "worse_model": claim.worse,
        "metric": claim.metric,
        "group": claim.group,
        "confounded": claim.confounded,
        "unit": outcome.unit,
        "published": outcome.published,
        "measured": outcome.measured,
        "low": outcome.low,
        "high": outcome.high,
        "n": outcome.n,
        "is_sequential": outcome.is_sequential,
        "p": outcome.p,
        "adjusted_p": outcome.adjusted_p,
        "error": outcome.error,
        "low_with_images": low,
        "high_with_images": high,
        "margin": outcome.margin,
        "is_within_margin": outcome.is_within_margin,
        "detectable": outcome.detectable,
        "power": outcome.power,
        "setting": outcome.setting,
        "untrained": "; ".join(outcome.untrained),
        "reason": outcome.reason,
    }


def from_csv(text: str) -> list[Outcome]:
    """Return the outcomes that ``to_csv`` wrote; a column that is missing counts as empty. Verdicts are derived."""

    def read(row: dict[str, str]) -> Outcome:
        def number(name: str) -> float | None:
            return float(row[name]) if row.get(name) else None

        claim = papers.Claim(
            row["better_model"],
            row["worse_model"],
            row["claim"],
            row["metric"],
            row["group"] or None,
            confounded=row.get("confounded") or None,
        )
        numbers = ("published", "measured", "low", "high", "adjusted_p", "error", "margin")
        found: dict[str, Any] = {name: number(name) for name in numbers}
        return Outcome(
            claim,
            (row["better"], row["worse"]),
            row["unit"],
            n=int(row["n"]),
            setting=row["setting"],
            untrained=tuple(row["untrained"].split("; ")) if row["untrained"] else (),
            is_sequential=row.get("is_sequential") == "True",
            reason=row.get("reason") or "",
            **found,
        )

    return [read(row) for row in csv.DictReader(io.StringIO(text))]
