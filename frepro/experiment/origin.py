"""The origin of a table's numbers, and the files that it is stored in."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frepro.experiment import claims, seed_records
from frepro.experiment.findings import to_csv
from frepro.store import provenance, records
from frepro.training import runs

if TYPE_CHECKING:
    from frepro.experiment import Experiment


def origin(experiment: "Experiment") -> dict[str, Any]:
    """Return every run with its seed, scores and origin, and every timing with all its rounds."""
    found: list[tuple[runs.Run, dict[str, Any], str | None]] = [
        (run, record, None) for run in experiment.runs if (record := run.measurement.record())
    ]
    found += [
        (each.runs[0], each.records()[0], each.checkpoint.file.name) for each in experiment.evaluated if each.checkpoint
    ]
    return {
        "paper": experiment.paper,
        "table": experiment.table,
        "profile": experiment.profile,
        "data": asdict(experiment.source) | {"root": None, "folders": {}},
        "recipe": {name: asdict(recipe) for name, recipe in experiment.networks.items()} or asdict(experiment.recipe),
        **({"fine_tuning": asdict(experiment.fine_tuning)} if experiment.starts else {}),
        "runs": [
            {
                "key": record["key"],
                "model": run.model,
                "model_args": run.all_model_args,
                "network": run.recipe.network,
                "seed": run.seed,
                **({"start": run.start.measurement.key} if isinstance(run.start, runs.Run) else {}),
                "weights": weights,
                "values": record["values"],
                "seconds": record["seconds"],
                "origin": _origin(record),
            }
            for run, record, weights in found
        ],
        "timings": [
            {
                "key": record["key"],
                "label": label,
                "model": timing.model,
                "model_args": timing.model_args,
                "benchmark": asdict(timing.benchmark),
                "values": record["values"],
                "seconds": record["seconds"],
                "origin": _origin(record),
            }
            for label, timing in experiment.timings.items()
            if (record := timing.measurement.record())
        ],
    }


def dependencies(experiment: "Experiment") -> dict[str, str]:
    """Return everything that the findings of an experiment depend on, as name -> fingerprint."""
    models = [model for _, model, _ in experiment.variants]
    parts = runs.code_of(["frepro.experiment", "frepro.analysis.cost"], models)
    if experiment.runs:
        parts |= runs.dependencies(experiment.runs, experiment.paper)
    for learner in experiment.evaluated:
        assert learner.checkpoint is not None
        parts |= runs.dependencies(learner.runs, experiment.paper)
        parts[f"checkpoint of {learner.label}"] = learner.checkpoint.fingerprint
    if experiment.measured:
        benchmark = records.canonical(experiment.recipe.benchmark)
        parts[f"benchmark of recipe {experiment.paper}"] = provenance.sha256(benchmark)
        parts["device"] = provenance.sha256(experiment.device_name[1])
        parts["timings"] = provenance.sha256(records.canonical(experiment.rates))
    return parts


def write(experiment: "Experiment", output: str | None, **figures: Any) -> None:
    """Write the CSV files, origin.json and the figures, given as name=figure, to a folder; ``None`` writes nothing."""
    if output is None:
        return
    folder = Path(output)
    records.write_text(folder / "findings.csv", to_csv(experiment.findings))
    if outcomes := experiment.outcomes():
        records.write_text(folder / "claims.csv", claims.to_csv(outcomes))
    records.write_text(
        folder / "origin.json", json.dumps(origin(experiment), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    )
    if lines := seed_records.to_lines(experiment):
        records.write_text(folder / seed_records.NAME, lines)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    adopted = {"adopted": True} if record.get("adopted") else {}
    return {"code": record["code"], **adopted, **record["provenance"]}
