"""The claims of a table and their verdicts, as a table."""

from collections.abc import Sequence

from frepro.experiment.claims import Outcome
from frepro.experiment.statistics import Estimate
from frepro.report.view import View, mark

GROWN = (
    "seeds were added until claims were decided; interval and p value over the seeds hold for any such rule of stopping"
)


def claims(outcomes: Sequence[Outcome]) -> View:
    """Return the claims of a table. The verdict is the second column, so that it is visible on narrow pages.

    Each column is described on the page "Data and profiles" of the book.
    """
    is_adjusted = any(outcome.adjusted_p is not None for outcome in outcomes)
    headings = [("", "Claim"), ("", "verdict"), ("", "rows"), ("difference", "paper"), ("difference", "here")]
    headings += [("difference", "95 % interval"), ("difference", "and over test images"), ("difference", "n")]
    headings += [("test", "p (Holm)" if is_adjusted else "p")]
    headings += [("power", "least detectable"), ("power", "for the paper's difference")]
    notes: list[str] = []
    rows = [
        [
            outcome.claim.text + (f" (Confounded: {outcome.claim.confounded}.)" if outcome.claim.confounded else ""),
            outcome.verdict + _marked(outcome, notes),
            " > ".join(outcome.rows),
            "" if outcome.published is None else f"{outcome.published:+.1f} {outcome.unit}",
            "" if outcome.measured is None else f"{outcome.measured:+.2f} {outcome.unit}",
            "" if outcome.low is None else f"{outcome.low:+.2f} to {outcome.high:+.2f} {outcome.unit}",
            _interval(outcome.over_both, outcome.unit),
            str(outcome.n) + (mark(GROWN, notes) if outcome.is_sequential and outcome.measured is not None else ""),
            _p(outcome.p if outcome.adjusted_p is None else outcome.adjusted_p),
            "" if outcome.detectable is None else f"{outcome.detectable:.2f} {outcome.unit}",
            "" if outcome.power is None else f"{outcome.power:.2f}",
        ]
        for outcome in outcomes
    ]
    return View(headings, rows, notes, wraps=True)


def _marked(outcome: Outcome, notes: list[str]) -> str:
    """Return the mark of the note on a verdict; empty if it needs none."""
    if outcome.untrained:
        return mark(f"did not train: {', '.join(outcome.untrained)}", notes)
    if outcome.is_within_margin:
        return mark(f"within the margin of ±{outcome.margin:g} {outcome.unit}", notes)
    return mark(outcome.reason, notes) if outcome.reason else ""


def _interval(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return ""
    low, high = estimate.interval()
    return f"{low:+.2f} to {high:+.2f} {unit}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
