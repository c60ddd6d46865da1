"""The claims of a table and their verdicts, as a table."""

from collections.abc import Sequence

from frepro.experiment.claims import Outcome
from frepro.report.view import View, mark


def claims(outcomes: Sequence[Outcome]) -> View:
    """Return the claims of a table. The verdict is the second column, so that it is visible on narrow pages."""
    headings = [("", "Claim"), ("", "verdict"), ("", "rows"), ("difference", "paper"), ("difference", "here")]
    headings += [("difference", "95 % interval"), ("difference", "n")]
    rows, notes = [], list[str]()
    for outcome in outcomes:
        interval = "" if outcome.low is None else f"{outcome.low:+.2f} to {outcome.high:+.2f} {outcome.unit}"
        published = "" if outcome.published is None else f"{outcome.published:+.1f} {outcome.unit}"
        here = "" if outcome.measured is None else f"{outcome.measured:+.2f} {outcome.unit}"
        marked = mark(f"did not train: {', '.join(outcome.untrained)}", notes) if outcome.untrained else ""
        cells = [f"{outcome.verdict}{marked}", " > ".join(outcome.rows), published, here, interval, str(outcome.n)]
        rows.append([outcome.claim.text, *cells])
    return View(headings, rows, notes, wraps=True)
