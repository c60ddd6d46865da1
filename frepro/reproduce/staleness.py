"""Why a result must be made again, determined without importing torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from frepro import papers
from frepro.reproduce.notebook import Notebook
from frepro.store import provenance, records
from frepro.training.runs import RUNS, Run

NOT_MADE = "not made yet"


def notebook_dependencies(
    notebook: Notebook, parameters: dict[str, Any], published: papers.Table | papers.Figure, *modules: str
) -> dict[str, str]:
    """Return what every result of a notebook is made from, as name -> fingerprint.

    Args:
        published: The artefact as published.
        modules: Modules that the result depends on in addition to those that the notebook uses itself.
    """
    printed = [records.canonical(item) for item in (published, notebook.tables)]
    return {
        "notebook": notebook.fingerprint,
        "parameters": provenance.sha256(records.canonical(parameters)),
        "published values": provenance.sha256(*printed),
        **provenance.code(*modules, *notebook.modules),
    }


def reasons_for(made_from: dict[str, str], folder: Path, missing: Sequence[Run], is_untimed: bool = False) -> list[str]:
    """Return why a result must be made, missing parts first; empty if it is up to date."""
    changed = changes(made_from, folder)
    if changed == [NOT_MADE]:
        return changed
    reasons = []
    if missing:
        reasons.append("training runs that it depends on are not in the store")
        changed = [reason for reason in changed if reason != f"{RUNS} changed"]
    if is_untimed:
        reasons.append("its models have not been timed on this device")
        changed = [reason for reason in changed if reason != "timings changed"]
    return [*reasons, *changed]


def changes(made_from: dict[str, str], folder: Path) -> list[str]:
    """Return why the result in a folder is not made from these parts; empty if it is, and is complete."""
    made = read_json(folder / "provenance.json")
    if not made:
        return [NOT_MADE]
    if gone := [name for name in made.get("files", []) if not (folder / name).exists()]:
        return [f"{name} is missing" for name in gone]
    before = made.get("made_from")
    if before is None:
        return ["made by an earlier version of frepro, which did not record its inputs"]
    changed = [name for name in {**made_from, **before} if made_from.get(name) != before.get(name)]
    return [f"{'code of ' if name.startswith('frepro.') else ''}{name} changed" for name in changed]


def because(reasons: Sequence[str]) -> str:
    """Return the reasons in one line; only the first if there are many."""
    if not reasons:
        return "up to date: nothing has changed since it was made"
    if list(reasons) == [NOT_MADE]:
        return NOT_MADE
    more = f" and {len(reasons) - 4} more" if len(reasons) > 5 else ""
    return f"stale: {', '.join(reasons[:4] if more else reasons)}{more}"


def made_with_other_code(runs: Sequence[Run]) -> list[str]:
    """Return a line on the code that has changed since stored runs were made. These runs are still used."""
    records = [(run, record) for run in runs if (record := run.measurement.record())]
    changed = [found for run, record in records if (found := run.measurement.changed_since(record))]
    if not changed:
        return []
    names = dict.fromkeys(name for found in changed for name in found)
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    shown_names = ", ".join([*names][: 4 if more else None])
    return [f"    {len(changed)} of them made with other code: {shown_names}{more} (RETRAIN=1 repeats them)"]


def pace(runs: Sequence[Run], before: Sequence[dict[str, Any]]) -> tuple[float, str] | None:
    """Return the mean seconds of training runs the last time, and the processor; ``None`` if unknown.

    Args:
        before: Runs of the last result, used if the store has none.
    """
    stored = [found for run in runs if (found := run.measurement.record())]
    known = [(found["seconds"], found["provenance"]["machine"]["cpu"]) for found in stored]
    known = known or [(run["seconds"], run["origin"]["machine"]["cpu"]) for run in before]
    return (mean(seconds for seconds, _ in known), known[0][1]) if known else None


def rendered_in(folder: Path) -> float | None:
    """Return the seconds that the notebook of a result took; ``None`` without a result or without this record."""
    return read_json(folder / "provenance.json").get("seconds")


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is no readable file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
