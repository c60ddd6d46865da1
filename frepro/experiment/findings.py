"""Findings of an experiment: published values with the corresponding measured ones."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any

from frepro import recipes
from frepro.errors import FreproError
from frepro.experiment.variants import TrainedVariant
from frepro.recipes.metrics import BACKBONE_FLOPS, BACKBONE_PARAMS, COSTS, FLOPS, PARAMS, THROUGHPUT

if TYPE_CHECKING:
    from frepro.experiment import Experiment

# The score of a classifier.
ACCURACY = recipes.Classification.main_metric()
# Columns of a table of classifiers whose values are measured. Other columns are shown as published.
MEASURED = tuple(metric.name for metric in (*COSTS, ACCURACY))
# The evidence of an accuracy of weights that the authors published.
RE_EVALUATED = "authors' weights, re-evaluated"


@dataclass(frozen=True)
class Finding:
    """A published value and the measured one in the unit of the column; ``None`` for a missing value.

    Attributes:
        setting: Data set or device of the measurement.
        spread: Standard deviation over the seeds, or over the rounds of a timing.
        n: Number of seeds or rounds.
        weights: File of the evaluated weights, or ``RE_EVALUATED``; empty if they were trained here.
        untrained: Number of seeds that did not train (see ``claims.did_train``). Their scores are part of the mean.
        problem: Why the variant could not be built, or its published weights not be evaluated; else empty.
    """

    group: str
    label: str
    model: str
    metric: str
    unit: str
    published: float | None
    measured: float | None = None
    spread: float | None = None
    n: int | None = None
    setting: str = ""
    weights: str = ""
    untrained: int = 0
    problem: str = ""


def compute(experiment: "Experiment") -> list[Finding]:
    """Return all findings in the order of the variants. Values that were not measured are ``None``.

    Raises:
        FreproError: A run or timing is missing.
    """
    if (
        experiment.to_train()
        or not experiment.is_timed()
        or not all(learner.label in experiment.failed for learner in experiment.to_evaluate())
    ):
        raise FreproError("not everything has been measured: call run() first")
    rates = experiment.rates
    found = []
    for variant in experiment.variants:
        if variant[0] in experiment.broken:
            problem = {"problem": f"cannot be built: {experiment.broken[variant[0]]}"}
            found += [_finding(experiment, *variant, metric, problem) for metric in MEASURED]
        elif experiment.networks:
            found += _of_backbone(experiment, *variant, rates.get(variant[0]))
        else:
            found += _of_classifier(experiment, *variant, rates.get(variant[0]))
    return found


def _of_classifier(
    experiment: "Experiment", label: str, model: str, args: dict[str, Any], rates: list[float] | None
) -> list[Finding]:
    from frepro.analysis import cost

    counted = cost.count(model, **args)
    values: dict[str, dict[str, Any]] = {
        PARAMS.name: {"measured": counted["params"] / 1e6},
        FLOPS.name: {"measured": counted["macs"] / 1e9},
    }
    if rates:
        values[THROUGHPUT.name] = {**spread_of(rates, median), "setting": experiment.timing_settings[label]}
    for learner in experiment.trained_variants:
        if learner.label == label and (scored := _scored(experiment, learner, ACCURACY.name)):
            values[experiment.own_metric] = scored
    if reason := {**experiment.unpublished, **experiment.failed}.get(label):
        values[experiment.own_metric] = {"problem": f"not run: {reason}"}
    metrics = dict.fromkeys([*MEASURED, *values])
    return [_finding(experiment, label, model, args, key, values.get(key, {})) for key in metrics]


def _scored(experiment: "Experiment", learner: TrainedVariant, metric: str) -> dict[str, Any]:
    """Return the fields of a finding for a score of a trained variant; empty if there is no score."""
    values = [record["values"][metric] for record in learner.records() if metric in record["values"]]
    if not values or (experiment.checkpoints is not None and learner.checkpoint is None):
        return {}
    weights = learner.checkpoint.file.name if learner.checkpoint else ""
    if learner.published is not None:
        weights = RE_EVALUATED
    untrained = len(learner.untrained())
    return {**spread_of(values, mean), "setting": experiment.source.name, "weights": weights, "untrained": untrained}


def _of_backbone(
    experiment: "Experiment", label: str, model: str, args: dict[str, Any], rates: list[float] | None
) -> list[Finding]:
    """Return findings of complete detectors or segmenters, of the backbone alone, and scores on other data."""
    from frepro.analysis import cost

    table, found = experiment.published, []
    counted_at = experiment.networks if experiment.sizes else ()
    images = {network: _pair((experiment.images or {}).get(network, experiment.sizes[0])) for network in counted_at}
    complete = {
        network: cost.count_whole(network, model, size, experiment.native_size, **args)
        for network, size in images.items()
    }
    learners = {learner.network: learner for learner in experiment.trained_variants if learner.label == label}
    for row in table.rows:
        if row.model != model or args:
            continue
        for column in table.columns:
            if column.decimals is None:
                continue
            meant, metric = experiment.meant(row, column)
            measured: dict[str, Any] = {}
            if metric in (PARAMS.name, FLOPS.name) and meant in complete:
                counted = complete[meant]
                count = counted["params"] / 1e6 if metric == PARAMS.name else counted["macs"] / 1e9
                measured = {"measured": count, "setting": pixels(images[meant])}
            elif experiment.is_published_setting and meant in learners:
                measured = _scored(experiment, learners[meant], metric)
            printed = table.number(row, column.key)
            found.append(Finding(table.group(row), label, model, column.key, column.unit, printed, **measured))
    for size in experiment.sizes:
        counted = cost.count_backbone(model, _pair(size), experiment.native_size, **args)
        for cost_metric, value in (
            (BACKBONE_PARAMS, counted["params"] / 1e6),
            (BACKBONE_FLOPS, counted["macs"] / 1e9),
        ):
            setting = pixels(size)
            found.append(Finding("", label, model, cost_metric.name, cost_metric.unit, None, value, setting=setting))
    if rates:
        spread = {**spread_of(rates, median), "setting": experiment.timing_settings[label]}
        found.append(Finding("", label, model, THROUGHPUT.name, THROUGHPUT.unit, None, **spread))
    if not experiment.is_published_setting:
        for network, learner in learners.items():
            for score in experiment.published.task.metrics:
                if network and score.in_tables and (scored := _scored(experiment, learner, score.name)):
                    key = f"{experiment.source.name}_{score.name}"
                    found.append(Finding(recipes.NETWORKS[network], label, model, key, score.unit, None, **scored))
    return found


def _finding(
    experiment: "Experiment", label: str, model: str, args: dict[str, Any], key: str, measured: dict[str, Any]
) -> Finding:
    table, row = experiment.published, experiment.row(model)
    metric = ACCURACY if key == experiment.own_metric else recipes.METRICS[key]
    column = table.column(metric.name)
    published = table.number(row, key) if row and table.column(key) and not args else None
    unit = column.unit if column else metric.unit
    return Finding(_group(experiment, model), label, model, key, unit, published, **measured)


def _group(experiment: "Experiment", model: str) -> str:
    row = experiment.row(model)
    return experiment.published.group(row) if row else ""


def _pair(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    return height, width


def spread_of(values: Sequence[float], centre: Callable[[Sequence[float]], float]) -> dict[str, Any]:
    """Return the centre of values, their standard deviation (``None`` for a single value) and their number."""
    return {"measured": centre(values), "spread": stdev(values) if len(values) > 1 else None, "n": len(values)}


def to_csv(findings: Sequence[Finding]) -> str:
    """Return tidy CSV: an unrounded row for each value of each variant, with empty cells for missing values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in fields(Finding))
    writer.writerows(astuple(finding) for finding in findings)
    return text.getvalue()


def from_csv(text: str) -> list[Finding]:
    """Return the findings that ``to_csv`` wrote."""

    def read(row: dict[str, Any]) -> Finding:
        numbers = {name: float(row[name]) if row[name] else None for name in ("published", "measured", "spread")}
        n = int(row["n"]) if row["n"] else None
        return Finding(**{**row, **numbers, "n": n, "untrained": int(row["untrained"])})

    return [read(row) for row in csv.DictReader(io.StringIO(text))]


def pixels(size: Sequence[int]) -> str:
    """Format height and width of images as the setting of a finding."""
    height, width = size
    return f"{height} × {width} pixels"
