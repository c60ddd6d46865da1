"""Tables of published and measured values, costs and scores. All rounding and units are here."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from frepro import papers
from frepro.experiment.claims import PLATEAU
from frepro.experiment.findings import MEASURED, SHOWN, UNITS, Finding
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
            is_timed = column.key == "throughput" and any(f.setting for f in findings if f.metric == column.key)
            headings += [(name, "paper"), (name, "ours, here" if is_timed else "ours")]
        else:
            headings.append(("", name) if column.decimals is None else (name, "paper"))
    with_notes = table.is_of_backbones or any(column.key in ("params", "flops") for column in columns)
    rows: list[list[str]] = []
    notes: list[str] = []
    for label, row, by_metric in _lines(findings, table, whole):
        cells = [label]
        if with_notes and row is not None and row.note is not None:
            cells[0] += mark(row.note, notes)
        problems = {finding.problem for finding in by_metric.values() if finding.problem}
        cells[0] += "".join(mark(f"cannot be built: {problem}", notes) for problem in problems)
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
                    text += mark(f"weights of {finding.weights}, evaluated here; nothing was trained", notes)
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


COSTS = {"params": ("parameters", 2), "flops": ("FLOPs", 2), "throughput": ("throughput", 1)}


def costs(findings: Sequence[Finding], metrics: Sequence[str] = tuple(COSTS)) -> View:
    """Return measured costs for a table without published ones. Variants with a missing value are omitted."""
    headings = [("", "Variant"), *(("ours, here", f"{COSTS[metric][0]} ({UNITS[metric]})") for metric in metrics)]
    rows = [
        [label, *(number(by_metric[metric], COSTS[metric][1]) for metric in metrics)]
        for label, by_metric in _by_label(findings).items()
        if all(metric in by_metric and by_metric[metric].measured is not None for metric in metrics)
    ]
    return View(headings, rows, [])


# Name, unit and decimals of the quantities that are counted for a backbone.
BACKBONE = {"backbone_params": ("parameters", "M", 2), "backbone_flops": ("FLOPs", "G", 1)}


def backbones(findings: Sequence[Finding]) -> View:
    """Return the cost of backbones: counts without a head at each image size, and throughput as classifiers."""
    counted = {(f.label, f.metric, f.setting): f for f in findings if f.metric in BACKBONE}
    timed = {f.label: f for f in findings if f.metric == "throughput"}
    sizes = list(dict.fromkeys(size for _, _, size in counted))
    headings = [("", "Backbone")]
    headings += [(size, f"{name} ({unit})") for size in sizes for name, unit, _ in BACKBONE.values()]
    headings += [("classifier, here", f"throughput ({UNITS['throughput']})")] if timed else []
    rows = []
    for label in dict.fromkeys(f.label for f in findings):
        cells = [
            number(counted[label, metric, size], decimals)
            for size in sizes
            for metric, (_, _, decimals) in BACKBONE.items()
        ]
        if timed:
            cells.append(number(timed[label], 1) if label in timed else NOT_RUN)
        rows.append([label, *cells])
    return View(headings, rows, [])


# Display names of the metrics of detectors and segmenters.
DENSE = {
    "box_ap": "box AP",
    "box_ap50": "box AP50",
    "box_ap75": "box AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
    "miou": "mIoU",
    "aacc": "pixel accuracy",
}


def dense_scores(findings: Sequence[Finding]) -> View:
    """Return measured scores of detectors or segmenters with standard deviations, a row per network and backbone."""
    order = [metric for task in ("detection", "segmentation") for metric in SHOWN[task]]
    found: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in findings:
        metric = finding.metric.removeprefix(f"{finding.setting}_")
        if metric != finding.metric and metric in order and finding.measured is not None:
            found.setdefault((finding.label, finding.group), {})[metric] = finding
    every = [finding for by_metric in found.values() for finding in by_metric.values()]
    where = f"{every[0].setting}, test images" if every else ""
    metrics = [metric for metric in order if any(metric in by_metric for by_metric in found.values())]
    headings = [(where, "Backbone"), (where, "Network")]
    headings += [(f"{DENSE[metric]} (%)", part) for metric in metrics for part in ("mean", "std")]
    rows = []
    for (label, network), by_metric in found.items():
        cells = [label, network]
        for metric in metrics:
            scored = by_metric.get(metric)
            cells.append(f"{scored.measured:.2f}" if scored else "")
            cells.append(f"{scored.spread:.2f}" if scored and scored.spread is not None else "")
        first = next(iter(by_metric.values()))
        rows.append([*cells, f"{first.n}*" if first.weights else str(first.n)])
    files = dict.fromkeys(finding.weights for finding in every if finding.weights)
    notes = [f"weights of {', '.join(files)}, evaluated here; nothing was trained"] if files else []
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


def scores(findings: Sequence[Finding], metric: str, name: str, unit: str = "%") -> View:
    """Return a table of one metric of each variant: mean, standard deviation and number of seeds."""
    chosen = [finding for finding in findings if finding.metric == metric and finding.measured is not None]
    rows: list[list[str]] = []
    notes: list[str] = []
    for f in chosen:
        marked = mark(untrained(f), notes) if f.untrained else ""
        rows.append([f.label, f"{f.measured:.2f}{marked}", "" if f.spread is None else f"{f.spread:.2f}", str(f.n)])
    heading = f"{name} ({unit})"
    return View([("", "Variant"), (heading, "mean"), (heading, "std"), (heading, "n seeds")], rows, notes)


def untrained(finding: Finding) -> str:
    """Return the note on a finding's seeds that did not train."""
    return (
        f"{finding.untrained} of {finding.n} {'seed' if finding.n == 1 else 'seeds'} did not train: the training loss "
        f"ended within {PLATEAU:.0%} of a uniform guess's, or the score is no better than chance"
    )


def summary(findings: Sequence[Finding], table: papers.Table, metric: str, name: str) -> View:
    """Return published values, measured values and scores in one table for a terminal.

    If a table publishes nothing that is measured, this is the cost of its models. For detectors and segmenters, these
    are the scores or, if there are none, the cost of the backbones.
    """
    if table.is_of_backbones:
        scored = dense_scores(findings)
        return scored if scored.rows else backbones(findings)
    if not any(column.key in MEASURED for column in table.columns):
        return costs(findings, ["params", "flops"])
    left, right = published_beside_measured(findings, table), scores(findings, metric, name)
    if not right.rows:
        return left
    by_label = {label: cells for label, *cells in right.rows}
    rows = [row + by_label.get(label, ["", "", ""]) for label, row in zip(_by_label(findings), left.rows, strict=True)]
    return View(left.headings + right.headings[1:], rows, [*left.notes, *right.notes])
