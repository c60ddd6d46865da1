"""Comparisons of the variants of a table, published and measured."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from frepro import recipes
from frepro.experiment import Experiment
from frepro.figures.style import COLOURS, PAGE_WIDTH, finished, sentence, subplots
from frepro.recipes.metrics import THROUGHPUT

PUBLISHED, MEASURED = COLOURS[:2]


def comparison(experiment: Experiment) -> Figure:
    """Compare the variants that were trained or evaluated: published and measured accuracy, and relative throughput.

    Each accuracy panel has its own range, since absolute accuracies on ImageNet and on embedded data are not
    comparable. Only the order of the variants is.
    """
    findings = {(f.label, f.metric): f for f in experiment.findings}
    scores = experiment.scores()
    timed = [label for label, *_ in experiment.measured]
    labels = [label for label, *_ in experiment.variants if label in timed or scores.get(label)]
    if not labels:
        return sentence("Nothing was trained.")
    rows = range(len(labels))
    figure, (left, middle, right) = subplots(1, 3, sharey=True, figsize=(PAGE_WIDTH, 1.4 + 0.38 * len(labels)))
    for axes in (left, middle, right):
        axes.xaxis.set_major_locator(MaxNLocator(4))

    score = experiment.main_metric
    published = [findings[label, score.name].published for label in labels]
    left.plot(published, rows, "o", color=PUBLISHED, markersize=8)
    left.set_xlabel(f"published {experiment.published.dataset}\n{score.label} accuracy ({score.unit})")
    left.set_yticks(rows, labels)
    left.set_ylim(len(labels) - 0.5, -0.5)  # the first row is on top, and no marker is cut off

    trained = experiment.trained_seeds()
    _seed_by_seed(middle, [scores.get(label, []) for label in labels], [trained.get(label, []) for label in labels])
    middle.set_xlabel(f"measured {experiment.source.name}\n{score.label} accuracy ({score.unit})\n{_seeds(scores)}")

    baseline = next((label for label, model, _ in experiment.measured if _is_baseline(experiment, model)), labels[0])
    sources = (("published", "o", PUBLISHED, -0.14), ("measured", "D", MEASURED, 0.14))
    for source, marker, colour, shift in sources:
        reference = getattr(findings[baseline, THROUGHPUT.name], source)
        for row, label in enumerate(labels):
            timing = findings[label, THROUGHPUT.name]
            speed = getattr(timing, source)
            if reference is None or speed is None:
                continue
            spread = timing.spread / reference if source == "measured" and timing.spread else None
            right.errorbar(
                speed / reference, row + shift, xerr=spread, fmt=marker, color=colour, markersize=7, capsize=3
            )
    right.axvline(1, color="0.5", linewidth=1)
    right.set_xlabel(f"throughput relative to\n{baseline}\n(higher is faster)")
    handles = [Line2D([], [], marker=marker, color=colour, linestyle="") for _, marker, colour, _ in sources]
    names = [name for name, *_ in sources]
    if not all(all(learnt) for learnt in trained.values()):
        handles.append(Line2D([], [], marker="x", color="k", linestyle=""))
        names.append("seed that did not train (mean hollow)")
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False)
    return finished(figure)


def dense_comparison(experiment: Experiment) -> Figure:
    """Compare the trained backbones in detectors or segmenters: a row per network, with published and measured scores.

    Each panel has its own range, as in ``comparison``.
    """
    metric = experiment.main_metric
    networks = dict.fromkeys(learner.network for learner in experiment.trained_variants if learner.network)
    found = {network: experiment.scores(metric.name, network) for network in networks}
    found = {network: scores for network, scores in found.items() if any(scores.values())}
    if not found:
        return sentence("Nothing was trained.")
    lines = [max(2, len(scores)) for scores in found.values()]
    height = sum(1.0 + 0.36 * count for count in lines)
    figure, grid = subplots(len(found), 2, squeeze=False, figsize=(PAGE_WIDTH, height), height_ratios=lines)
    for (left, right), (network, scores) in zip(grid, found.items(), strict=True):
        labels, printed = list(scores), experiment.printed(network, metric.name)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_ylim(len(labels) - 0.5, -0.5)
            axes.set_yticks(range(len(labels)), labels if axes is left else [""] * len(labels))
        rows = [row for row, label in enumerate(labels) if label in printed]
        left.plot([printed[labels[row]] for row in rows], rows, "o", color=PUBLISHED, markersize=8)
        left.margins(x=0.15)
        _seed_by_seed(right, list(scores.values()), [[True] * len(values) for values in scores.values()])
        title = recipes.NETWORKS[network or ""]
        left.set_xlabel(f"{title}: published\n{experiment.published.dataset} {metric.heading}")
        right.set_xlabel(f"{title}: measured\n{experiment.source.name} {metric.heading}, {_seeds(scores)}")
    return finished(figure)


def _seed_by_seed(axes: Axes, scores: Sequence[Sequence[float]], trained: Sequence[Sequence[bool]]) -> None:
    """Draw mean and standard deviation of each variant, with a tick for each seed below.

    A seed that did not train has a cross instead of a tick, and a mean that includes such a seed is hollow.
    """
    for row, (values, learnt) in enumerate(zip(scores, trained, strict=True)):
        if not values:  # no value: with given weights, only variants that have a file are evaluated
            continue
        spread = stdev(values) if len(values) > 1 else 0
        fill = "none" if not all(learnt) else MEASURED
        axes.errorbar(
            mean(values), row, xerr=spread, fmt="D", color=MEASURED, markersize=7, capsize=4, markerfacecolor=fill
        )
        for value, is_trained in zip(values, learnt, strict=True):
            axes.plot(value, row + 0.25, "|" if is_trained else "x", color="0.35" if is_trained else "k", markersize=9)


def _seeds(scores: Mapping[str, Sequence[float]]) -> str:
    count = max(map(len, scores.values()), default=0)
    return "1 seed" if count == 1 else f"mean ± std, ticks: {count} seeds"


def _is_baseline(experiment: Experiment, model: str) -> bool:
    row = experiment.published.row(model)
    return row is not None and "baseline" in row.marks
