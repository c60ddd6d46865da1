"""Sweeps of a recipe: runs that differ in peak learning rate, warm-up and length, to choose these for small models.

They use a validation split, never the test images that tables report. What was run is stored as one CSV per recipe and
data set, with its provenance, and a later sweep adds to it.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from frepro import paths, recipes
from frepro.data import Source
from frepro.errors import FreproError
from frepro.experiment.claims import did_train
from frepro.experiment.runner import train_missing
from frepro.recipes import Recipe
from frepro.store import provenance, records
from frepro.training.runs import Run

COLUMNS = ("model", "model_args", "lr", "warmup_epochs", "epochs", "seed", "score", "train_loss", "trained", "seconds")
# What identifies a row; a sweep replaces the rows that it repeats.
KEY = COLUMNS[:6]


def runs_of(
    model: str,
    model_args: dict[str, Any],
    recipe: Recipe,
    profile: str,
    source: Source,
    lrs: Sequence[float],
    warmups: Sequence[int],
    lengths: Sequence[int],
    seeds: Sequence[int],
) -> list[Run]:
    """Return the runs of a sweep: every combination of length, warm-up, rate and seed.

    Args:
        lrs: Peak learning rates; empty for the recipe's.
        warmups: Lengths of the warm-up in epochs; empty for the recipe's.
        lengths: Numbers of epochs; empty for the recipe's.

    Raises:
        FreproError: No lengths are given, and that of the recipe is a number of optimizer steps.
    """
    if recipe.updates is not None and not lengths:
        raise FreproError("the length of this recipe is a number of optimizer steps: give --epochs")
    values: tuple[Sequence[int | None], Sequence[int | None], Sequence[float | None]]
    values = (lengths or [None], warmups or [None], lrs or [None])
    return [
        Run(
            model,
            recipes.adjusted(recipe, model, lr=lr, warmup_epochs=warmup, epochs=length),
            profile,
            source,
            seed,
            model_args,
        )
        for length, warmup, lr, seed in product(*values, seeds)
    ]


def sweep(
    runs: Sequence[Run],
    name: str,
    device: str,
    jobs: int,
    per_device: int | None,
    workers: int | None,
    log: Callable[[str], None],
) -> Path:
    """Execute the runs of a sweep that are missing, add all of them to its file, and return the file.

    Args:
        name: Name of the recipe. The others are those of ``runner.train_missing``.
    """
    profile, source = runs[0].profile, runs[0].source
    file = paths.results() / "sweeps" / f"{name}-{profile}-{source.name}.csv"
    missing = [run for run in runs if run.measurement.record() is None]
    train_missing(missing, device, jobs, per_device, workers, log)
    rows = {tuple(row[column] for column in KEY): row for row in read(file)}
    for run in runs:
        row = _row(run)
        rows[tuple(row[column] for column in KEY)] = row
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows.values(), key=_order))
    records.write_text(file, text.getvalue())
    records.write_text(file.with_suffix(".json"), json.dumps(provenance.record(), indent=1) + "\n")
    return file


def read(file: Path) -> list[dict[str, str]]:
    """Return the rows of a sweep's file; none if there is no such file."""
    if not file.exists():
        return []
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    numbers = (float(row[column]) for column in ("epochs", "warmup_epochs", "lr", "seed"))
    return row["model"], row["model_args"], *numbers


def _row(run: Run) -> dict[str, str]:
    record = run.measurement.record()
    assert record is not None
    values, recipe = record["values"], run.recipe
    trained = did_train(values, run.source.classes)
    found = {
        "model": run.model,
        "model_args": records.canonical(run.model_args),
        "lr": recipe.lr,
        "warmup_epochs": recipe.warmup_epochs,
        "epochs": recipe.epochs,
        "seed": run.seed,
        "score": f"{values[recipe.main_metric().name]:.2f}",
        "train_loss": f"{values['train_loss']:.4f}",
        "trained": "yes" if trained else "no",
        "seconds": f"{record['seconds']:.1f}",
    }
    return {name: str(value) for name, value in found.items()}
