"""Tables of published and measured values, costs and scores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from frepro import papers
from frepro.experiment.claims import PLATEAU
from frepro.experiment.findings import MEASURED, RE_EVALUATED, Finding
from frepro.recipes import METRICS, Metric
from frepro.recipes.metrics import BACKBONE_COSTS, COSTS, FLOPS, PARAMS, THROUGHPUT
from frepro.report.view import NO_MODEL, NOT_RUN, View, cell, mark, number


def published_beside_measured(
    findings: Sequence[Finding], table: papers.Table, metrics: Sequence[str] = MEASURED, whole: bool = False
) -> View:
    """Return the columns of a table with published and measured values; a missing measured value reads "not run".

    A measured number has one decimal more than the published one, to show how well they agree. Text, and quantities
    that are not measured, are shown as published. If costs are shown, the notes of rows appear below the table. Values
    from the weights of a file are marked. For detectors and segmenters, every number can be measured.

    Args:
        metrics: Keys of the columns to show, in the order of the table.
        whole: Include the rows of the table without a model, in their original order.
    """
    columns = [column for column in table.columns if column.key in metrics]
    headings = [("", "Variant")]
    for column in columns:
        name = f"{column.name} ({column.unit})" if column.unit else column.name
        if _is_measured(column, table):
            is_timed = column.key == THROUGHPUT.name and any(f.setting for f in findings if f.metric == column.key)
            headings += [(name, "paper"), (name, "ours, here" if is_timed else "ours")]
        else:
            headings.append(("", name) if column.decimals is None else (name, "paper"))
    with_notes = table.is_of_backbones or any(column.key in (PARAMS.name, FLOPS.name) for column in columns)
    rows: list[list[str]] = []
    notes: list[str] = []
    for label, row, by_metric in _lines(findings, table, whole):
        cells = [label]
        if with_notes and row is not None and row.note is not None:
            cells[0] += mark(row.note, notes)
        problems = {finding.problem for finding in by_metric.values() if finding.problem}
        cells[0] += "".join(mark(problem, notes) for problem in problems)
        for column in columns:
            finding = by_metric.get(column.key)
            value = finding.published if finding else table.value(row, column.key) if row else None
            cells.append(cell(value, column.decimals))
            if _is_measured(column, table) and finding is None:
                cells.append(NO_MODEL)
            elif finding is not None:
                text = NOT_RUN if finding.measured is None else number(finding, (column.decimals or 0) + 1)
                if finding.untrained:
                    text += mark(untrained(finding), notes)
                if finding.weights:
                    text += mark(evaluated([finding.weights]), notes)
                cells.append(text)
        rows.append(cells)
    return View(headings, rows, notes)


def _is_measured(column: papers.Column, table: papers.Table) -> bool:
    return column.key in MEASURED or (table.is_of_backbones and column.decimals is not None)


def _lines(
    findings: Sequence[Finding], table: papers.Table, whole: bool
) -> Iterator[tuple[str, papers.Row | None, dict[str, Finding]]]:
    """Yield label, row (``None`` for a variant that is not in the table) and findings by metric of each line.

    Lines are identified by section and label. With ``whole``, they are in the order of the table.
    """
    found: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in findings:
        if not table.is_of_backbones or table.column(finding.metric):
            found.setdefault((finding.group, finding.label), {})[finding.metric] = finding
    rows = table.rows if table.column("label") else []
    by_line = {(table.group(row), str(table.value(row, "label"))): row for row in rows}
    order = [line for line, row in by_line.items() if whole and (row.model is None or line in found)]
    for line in dict.fromkeys([*order, *found]):
        yield line[1], by_line.get(line), found.get(line, {})


def _by_label(findings: Sequence[Finding]) -> dict[str, dict[str, Finding]]:
    return {
        label: {finding.metric: finding for finding in group}
        for label, group in groupby(findings, key=lambda finding: finding.label)
    }


ALL_COSTS = tuple(cost.name for cost in COSTS)


def costs(findings: Sequence[Finding], metrics: Sequence[str] = ALL_COSTS) -> View:
    """Return measured costs for a table without published ones. Variants with a missing value are omitted."""
    headings = [("", "Variant"), *(("ours, here", METRICS[metric].heading) for metric in metrics)]
    rows = [
        [label, *(number(by_metric[metric], METRICS[metric].decimals) for metric in metrics)]
        for label, by_metric in _by_label(findings).items()
        if all(metric in by_metric and by_metric[metric].measured is not None for metric in metrics)
    ]
    return View(headings, rows, [])


def backbones(findings: Sequence[Finding]) -> View:
    """Return the cost of backbones: counts without a head at each image size, and throughput as classifiers."""
    names = [cost.name for cost in BACKBONE_COSTS]
    counted = {(f.label, f.metric, f.setting): f for f in findings if f.metric in names}
    timed = {f.label: f for f in findings if f.metric == THROUGHPUT.name}
    sizes = list(dict.fromkeys(size for _, _, size in counted))
    headings = [("", "Backbone")]
    headings += [(size, cost.heading) for size in sizes for cost in BACKBONE_COSTS]
    headings += [("classifier, here", THROUGHPUT.heading)] if timed else []
    rows = []
    for label in dict.fromkeys(f.label for f in findings):
        cells = [number(counted[label, cost.name, size], cost.decimals) for size in sizes for cost in BACKBONE_COSTS]
        if timed:
            cells.append(number(timed[label], THROUGHPUT.decimals) if label in timed else NOT_RUN)
        rows.append([label, *cells])
    return View(headings, rows, [])


def dense_scores(findings: Sequence[Finding]) -> View:
    """Return measured scores of detectors or segmenters with standard deviations, a row per network and backbone."""
    found: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in findings:
        name = finding.metric.removeprefix(f"{finding.setting}_")
        if name != finding.metric and name in METRICS and finding.measured is not None:
            found.setdefault((finding.label, finding.group), {})[name] = finding
    every = [finding for by_metric in found.values() for finding in by_metric.values()]
    where = f"{every[0].setting}, test images" if every else ""
    metrics = [metric for name, metric in METRICS.items() if any(name in by_metric for by_metric in found.values())]
    headings = [(where, "Backbone"), (where, "Network")]
    headings += [(metric.heading, part) for metric in metrics for part in ("mean", "std")]
    rows = []
    for (label, network), by_metric in found.items():
        cells = [label, network]
        for metric in metrics:
            scored = by_metric.get(metric.name)
            values = (scored.measured, scored.spread) if scored else (None, None)
            cells += [_rounded(metric, value) for value in values]
        first = next(iter(by_metric.values()))
        rows.append([*cells, f"{first.n}*" if first.weights else str(first.n)])
    files = dict.fromkeys(finding.weights for finding in every if finding.weights)
    notes = [evaluated(files)] if files else []
    return View([*headings, ("", "n seeds")], rows, notes)


def configuration(table: papers.Table, cells: Sequence[Sequence[str]]) -> View:
    """Return a table of configurations as published, next to those of the models (``analysis.configuration``).

    A value of a model that differs is marked with "≠".
    """
    first, *columns = table.columns
    headings = [("", first.name)]
    for column in columns:
        headings += [(column.name, "paper"), (column.name, "model")]
    rows = []
    for row, read in zip(table.rows, cells, strict=True):
        pairs = list(zip(map(str, row.cells), read, strict=True))
        texts = [text for printed, own in pairs[1:] for text in (printed, own if own == printed else f"≠ {own}")]
        is_same = all(printed == own for printed, own in pairs)
        rows.append([pairs[0][0], *texts, "as printed" if is_same else "differs"])
    return View([*headings, ("", "model is")], rows, [])


def _rounded(metric: Metric, value: float | None) -> str:
    return "" if value is None else metric.number(value)


def scores(findings: Sequence[Finding], metric: str, name: str) -> View:
    """Return a table of one score of each variant: mean, standard deviation and number of seeds.

    Args:
        metric: Key of the score in the findings: a name in ``METRICS``, after the name of a data set if it is not the
            published one.
        name: Heading, without the unit.
    """
    score = next(each for key, each in METRICS.items() if f"_{metric}".endswith(f"_{key}"))
    chosen = [finding for finding in findings if finding.metric == metric and finding.measured is not None]
    rows: list[list[str]] = []
    notes: list[str] = []
    for f in chosen:
        marked = mark(untrained(f), notes) if f.untrained else ""
        marked += mark(evaluated([f.weights]), notes) if f.weights else ""
        rows.append([f.label, _rounded(score, f.measured) + marked, _rounded(score, f.spread), str(f.n)])
    heading = replace(score, label=name).heading
    return View([("", "Variant"), (heading, "mean"), (heading, "std"), (heading, "n seeds")], rows, notes)


def evaluated(weights: Iterable[str]) -> str:
    """Return the note on scores of weights that were not trained here (``Finding.weights``)."""
    files = ", ".join(weights)
    return files if files == RE_EVALUATED else f"weights of {files}, evaluated here; nothing was trained"


def untrained(finding: Finding) -> str:
    """Return the note on the seeds of a score that did not train."""
    seeds = "seed" if finding.n == 1 else "seeds"
    return (
        f"{finding.untrained} of {finding.n} {seeds} did not train: the training loss ended within {PLATEAU:.0%} of a "
        "uniform guess's, or the score is no better than chance"
    )


def summary(findings: Sequence[Finding], table: papers.Table, metric: str, name: str) -> View:
    """Return published values, measured values and scores in one table for a terminal.

    If a table publishes nothing that is measured, this is the cost of its models. For detectors and segmenters, these
    are the scores or, if there are none, the cost of the backbones.
    """
    if table.is_of_backbones:
        dense = dense_scores(findings)
        return dense if dense.rows else backbones(findings)
    if not any(column.key in MEASURED for column in table.columns):
        return costs(findings, [PARAMS.name, FLOPS.name])
    left, right = published_beside_measured(findings, table), scores(findings, metric, name)
    if not right.rows:
        return left
    by_label = {label: cells for label, *cells in right.rows}
    rows = [row + by_label.get(label, ["", "", ""]) for label, row in zip(_by_label(findings), left.rows, strict=True)]
    return View(left.headings + right.headings[1:], rows, [*left.notes, *right.notes])
