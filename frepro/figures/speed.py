"""Figures of the benchmark: speed-ups, roofline, and throughput and memory versus resolution."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from frepro.bench import scaling
from frepro.bench.results import BESIDE, OURS, PARTS, PEERS, REFERENCE, Found, Line, Ratio
from frepro.figures.style import COLOURS, PAGE_WIDTH, finished, subplots
from frepro.report.benchmark import against_title, peak_rates, picture_of_models, vim_verdicts

MARKERS = "oDs^v<>p*"
PALETTE = [*COLOURS[:6], *COLOURS[7:]]  # the seventh is too pale for markers


def pictures(found: Found) -> dict[str, Figure]:
    """Return the figures by name: "operations", "roofline", "models" (per variant), "parts", "resolution", "vim"."""
    drawn = {}
    ratios = [ratio for ratio in found.ratios if ratio.side == OURS]
    if operations := [ratio for ratio in ratios if ratio.section == "operations"]:
        drawn["operations"] = speed(operations)
        drawn["roofline"] = roofline(found)
    for variant in dict.fromkeys(ratio.variant for ratio in ratios if ratio.section == "models"):
        chosen = [ratio for ratio in ratios if ratio.section == "models" and ratio.variant == variant]
        drawn[picture_of_models(variant)] = speed(chosen)
    if lines := found.section("parts"):
        drawn["parts"] = parts(lines)
    if formers := scaling.only(found, scaling.MODELS).lines:
        drawn["resolution"] = resolution(formers)
    if scaling.only(found, scaling.VIM).lines:
        drawn["vim"] = vim(found)
    return drawn


def speed(ratios: Sequence[Ratio]) -> Figure:
    """Plot the speed-up of frepro, a panel per kind of comparison, a row per operation or model."""
    panels: dict[str, list[Ratio]] = {}
    for ratio in ratios:
        kind = "timm's peer" if ratio.against in PEERS.values() else against_title(ratio.against)
        panels.setdefault(kind, []).append(ratio)
    is_model = ratios[0].section == "models"

    def row_of(ratio: Ratio) -> tuple[str, str]:
        return ratio.name, "" if is_model else ratio.size  # a model's latency is that of one image

    rows = {key: i for i, key in enumerate(dict.fromkeys(map(row_of, ratios)))}
    works = dict.fromkeys(ratio.work for ratio in ratios)
    apart = 0.38 if len(works) == 2 else 0.27
    styles = {work: (MARKERS[i], PALETTE[i], (i - (len(works) - 1) / 2) * apart) for i, work in enumerate(works)}

    height = 1.3 + (max(0.5, 0.2 * len(works)) if is_model else 0.36) * len(rows)
    figure, grid = subplots(1, len(panels), sharey=True, squeeze=False, figsize=(PAGE_WIDTH, height))
    for axes, (kind, shown) in zip(grid[0], panels.items(), strict=True):
        axes.axvline(1, color="0.35", linewidth=1.2, zorder=1)
        for ratio in shown:
            marker, colour, shift = styles[ratio.work]
            row = rows[row_of(ratio)] + shift
            axes.plot([ratio.low, ratio.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(ratio.ratio, row, marker, color=colour, markersize=5.5)
            text = f"{ratio.ratio:.{2 if ratio.ratio < 10 else 1}f}"
            axes.annotate(
                text, (ratio.high, row), (5, 0), textcoords="offset points", va="center", fontsize=8, color="0.15"
            ).set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        _log_axis(axes, [v for r in shown for v in (r.low, r.high)])
        axes.set_xlabel(f"speed-up over\n{kind}")
        axes.grid(axis="y", visible=False)
    labels = [name if is_model else f"{name}  {size}" for name, size in rows]
    grid[0, 0].set_yticks(range(len(rows)), labels)
    grid[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    for i in range(1, len(rows)):  # a line between operations
        if is_model or labels[i].split()[0] != labels[i - 1].split()[0]:
            for axes in grid[0]:
                axes.axhline(i - 0.5, color="0.85", linewidth=0.6)
    handles = [
        Line2D([], [], marker=marker, color=colour, linewidth=2, label=work)
        for work, (marker, colour, _) in styles.items()
    ]
    counts = dict.fromkeys(str(ratio.rounds) for ratio in ratios)
    title = f"median and range of {' or '.join(counts)} rounds"
    figure.legend(
        handles=handles, title=title, title_fontsize=8, loc="outside upper center", ncols=len(works), frameon=False
    )
    return finished(figure)


def parts(lines: Sequence[Line]) -> Figure:
    """Plot the parts of inference time, a bar per model: frepro's, timm's, and others (hatched)."""
    times = {(line.name, line.side, line.work): 1e3 * line.seconds for line in lines if line.seconds is not None}
    models = list(dict.fromkeys((line.name, line.side) for line in lines))
    figure, axes = subplots(1, 1, figsize=(PAGE_WIDTH, 1.1 + 0.3 * len(models)))
    starts = [0.0] * len(models)
    for part, colour in zip(PARTS, PALETTE, strict=False):
        widths = [times[*model, part] for model in models]
        hatches = ["///" if side == BESIDE else "" for _, side in models]
        axes.barh(
            range(len(models)), widths, left=starts, color=colour, hatch=hatches, edgecolor="white", linewidth=0.6,
            height=0.72,
        )  # fmt: skip
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    longest = max(
        total for total in starts if total <= 4 * median(starts)
    )  # longer bars are cut to keep others visible
    for row, total in enumerate(starts):
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
        if total <= longest:
            axes.annotate(f"{total:.0f}", (total, row), (4, 0), **place)
        else:
            text = axes.annotate(f"{total:.0f}, cut", (1.13 * longest, row), (-5, 0), ha="right", **place)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    axes.set_yticks(range(len(models)), [name if side != BESIDE else f"{name} (beside)" for name, side in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, 1.13 * longest)
    axes.set_xlabel(f"milliseconds per inference pass ({lines[0].size}), medians of {lines[0].rounds} rounds")
    axes.grid(axis="y", visible=False)
    handles = [Patch(facecolor=colour, label=part) for part, colour in zip(PARTS, PALETTE, strict=False)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(PARTS), frameon=False)
    return finished(figure)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic with few plain ticks; it includes the values, 1, and the labels to their right."""
    low, high = min(*values, 1), max(*values, 1)
    span = max(high / low, 1.5)
    left, right = low / span**0.08, high * span**0.32
    apart = (right / left) ** 0.1  # a tenth of the axis: the width of a number with three digits
    scales = [[1 + step * i for i in range(-9, 40)] for step in (0.1, 0.25, 0.5)]
    scales += [[step * 10.0**power for power in range(-2, 4) for step in steps] for steps in ((1, 2, 5), (1,))]
    for scale in scales:  # use the finest one whose labels do not touch
        ticks = [tick for tick in scale if left <= tick <= high * span**0.2]
        if all(tick >= apart * before for before, tick in pairwise(ticks)):
            break
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def roofline(found: Found) -> Figure:
    """Plot operations per second versus operations per byte, with the measured limits of the machine.

    Hollow markers are the reference and filled ones frepro, joined by a line.
    """
    bandwidth, rate = peak_rates(found)
    by_side = {side: found.section("operations", work="forward", side=side) for side in (REFERENCE, OURS)}
    shown = [
        (ours.name, ours.flops / ours.bytes, slow, fast)
        for reference, ours in zip(by_side[REFERENCE], by_side[OURS], strict=True)
        if ours.flops and ours.bytes and ours.name != "matrix_product"
        if (slow := reference.flops_per_second) and (fast := ours.flops_per_second)
    ]
    figure, axes = subplots(1, 1, figsize=(PAGE_WIDTH, 4.6))
    names = list(dict.fromkeys(name for name, *_ in shown))
    intensities = [intensity for _, intensity, *_ in shown]
    edges = [min(intensities) / 2, rate / bandwidth, max(*intensities, rate / bandwidth) * 2]
    axes.plot(edges, [min(x * bandwidth, rate) / 1e9 for x in edges], color="0.2", linewidth=1.6)
    for name, x, slow, fast in shown:
        i = names.index(name)
        style: dict[str, Any] = {"marker": MARKERS[i], "color": PALETTE[i], "markersize": 8}
        axes.plot([x, x], [slow / 1e9, fast / 1e9], color=PALETTE[i], linewidth=1)
        axes.plot(x, slow / 1e9, **style, markerfacecolor="white", markeredgewidth=1.3)
        axes.plot(x, fast / 1e9, **style, markeredgecolor="white")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that must be read or written")
    axes.set_ylabel("10⁹ operations/s, forward")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())
    slope = (edges[0] * edges[1]) ** 0.5  # the middle of the sloped part
    axes.annotate(
        f"copy: {bandwidth / 1e9:.1f} GB/s", (slope, slope * bandwidth / 1e9), (-8, 6), textcoords="offset points",
        ha="right", fontsize=8.5,
    )  # fmt: skip
    axes.annotate(
        f"matrix product: {rate / 1e9:.0f} · 10⁹/s", (edges[2], rate / 1e9), (-4, 5), textcoords="offset points",
        ha="right", fontsize=8.5,
    )  # fmt: skip
    handles = [
        Line2D([], [], marker=MARKERS[i], color=PALETTE[i], linestyle="", label=name) for i, name in enumerate(names)
    ]
    handles += [
        Line2D([], [], marker="o", color="0.4", linestyle="", markerfacecolor="white", label="reference"),
        Line2D([], [], marker="o", color="0.4", linestyle="", label="ours"),
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8.5)
    return finished(figure)


def resolution(lines: Sequence[Line]) -> Figure:
    """Plot throughput and peak memory of inference versus resolution, as in DFFormer's Figures 5 and 6."""
    figure, grid = subplots(1, 2, figsize=(PAGE_WIDTH, 4.0))
    for axes, quantity in zip(grid, QUANTITIES, strict=True):
        axes.set_title(QUANTITIES[quantity], fontsize=9)
    _against_resolution({axes: (lines, quantity) for axes, quantity in zip(grid, QUANTITIES, strict=True)})
    figure.suptitle(_conditions(lines), fontsize=9)
    return finished(figure)


def vim(found: Found) -> Figure:
    """Plot Vim's speed-up over DeiT-Ti, milliseconds and peak memory versus resolution, one panel below the other.

    The figure is narrow, for its text to remain legible on a phone.
    """
    lines = scaling.only(found, scaling.VIM).lines
    ratios = [ratio for ratio in found.ratios if ratio.section == "resolution" and ratio.against == scaling.DEIT]
    sizes = sorted({int(line.size) for line in lines})
    figure, (speedup, duration, memory) = subplots(3, 1, sharex=True, figsize=(4.6, 8.4))
    speedup.axhline(1, color="0.35", linewidth=1.2)
    for i, name in enumerate(dict.fromkeys(line.name for line in lines)):
        mine = [line for line in lines if line.name == name]
        look = {"color": PALETTE[i], "marker": MARKERS[i], "markersize": 6, "linewidth": 1.8, "label": name}
        look["linestyle"] = "-" if mine[0].side == OURS else "--"
        if against := [ratio for ratio in ratios if ratio.name == name]:
            values = [ratio.ratio for ratio in against]
            spread = [[r.ratio - r.low for r in against], [r.high - r.ratio for r in against]]
            speedup.errorbar([int(r.size) for r in against], values, yerr=spread, capsize=2, elinewidth=1, **look)
        milliseconds = {int(x.size): 1e3 * x.seconds for x in mine if x.seconds is not None}
        peaks = {int(x.size): x.peak_mib for x in mine if x.peak_mib is not None}
        duration.plot(list(milliseconds), list(milliseconds.values()), **look)
        memory.plot(list(peaks), list(peaks.values()), **look)
    labels = (f"times as fast as\n{scaling.DEIT}", "milliseconds for an image", "peak memory (MiB)")
    for axes, label in zip((speedup, duration, memory), labels, strict=True):
        axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    memory.set_xscale("log")
    memory.set_xticks(sizes, [str(size) for size in sizes])
    memory.xaxis.set_minor_locator(NullLocator())
    memory.set_xlabel("resolution (pixels per side)")
    speedup.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    verdicts = [f"{name}: {verdict}" for name, verdict in vim_verdicts(found).items()]
    figure.suptitle("\n".join([f"{_conditions(lines)}, against {scaling.DEIT}", *verdicts]), fontsize=8.5)
    handles, names = duration.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return finished(figure)


def against_resolution(machines: Mapping[str, Sequence[Line]], quantity: str) -> Figure:
    """Plot a quantity of ``QUANTITIES`` versus resolution, a panel per machine."""
    figure, grid = subplots(1, len(machines), squeeze=False, figsize=(PAGE_WIDTH, 4.4))
    for axes, (machine, lines) in zip(grid[0], machines.items(), strict=True):
        axes.set_title(f"{machine}\n{_conditions(lines)}", fontsize=9)
        axes.set_ylabel(QUANTITIES[quantity])
    _against_resolution({axes: (lines, quantity) for axes, lines in zip(grid[0], machines.values(), strict=True)})
    return finished(figure)


QUANTITIES = {"throughput": "images/s", "memory": "peak memory (MiB), weights and forward pass"}


def _conditions(lines: Sequence[Line]) -> str:
    batch = lines[0].images
    return f"inference, {batch} image{'' if batch == 1 else 's'} at a time"


def _against_resolution(panels: Mapping[Axes, tuple[Sequence[Line], str]]) -> None:
    """Fill each panel with the curves of its quantity, and add labels when the layout of the panels is final."""
    ends = {axes: _curves(axes, lines, quantity) for axes, (lines, quantity) in panels.items()}
    for axes, (lines, _) in panels.items():
        sizes = sorted({int(line.size) for line in lines})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("resolution (pixels per side)")
        axes.set_xlim(sizes[0] / 1.06, sizes[-1] * (sizes[-1] / sizes[0]) ** (0.42 if len(panels) > 1 else 0.2))
    for axes, (lines, _) in panels.items():
        _label_ends(axes, ends[axes], _colours(lines))


def _colours(lines: Sequence[Line]) -> dict[str, tuple]:
    return {name: PALETTE[i] for i, name in enumerate(dict.fromkeys(line.name for line in lines))}


def _curves(axes: Axes, lines: Sequence[Line], quantity: str) -> dict[str, tuple[float, float]]:
    """Plot a curve per model, frepro's as solid lines, and return the end of each."""
    ends: dict[str, tuple[float, float]] = {}
    names = list(dict.fromkeys(line.name for line in lines))
    for i, name in enumerate(names):
        mine = [line for line in lines if line.name == name]
        look: dict[str, Any] = {"color": _colours(lines)[name], "marker": MARKERS[i], "markersize": 5, "linewidth": 1.6}
        look["linestyle"] = "-" if mine[0].side == OURS else "--"
        if quantity == "throughput":
            rates = [
                (int(line.size), rate, least, greatest)
                for line in mine
                if (rate := line.images_per_second)
                and (least := line.least_images_per_second)
                and (greatest := line.greatest_images_per_second)
            ]
            points = [(size, rate) for size, rate, *_ in rates]
            bars = [[rate - least for _, rate, least, _ in rates], [greatest - rate for _, rate, _, greatest in rates]]
            if points:
                x, y = zip(*points, strict=True)
                axes.errorbar(x, y, yerr=bars, capsize=2, elinewidth=1, **look)
        else:
            points = [(int(line.size), memory) for line in mine if (memory := line.peak_mib) is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, **look)
        if points:
            ends[name] = points[-1]
    return ends


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, tuple]) -> None:
    """Label each curve at its right end; labels move vertically to avoid overlap."""
    if not ends:
        return
    axes.figure.canvas.draw()
    points = 72 / axes.figure.dpi
    heights = {name: axes.transData.transform(end)[1] * points for name, end in ends.items()}
    order = sorted(heights, key=lambda name: heights[name])
    placed: list[float] = []
    for name in order:
        placed.append(max(heights[name], placed[-1] + 11) if placed else heights[name])
    centre = sum(placed) / len(placed) - sum(heights.values()) / len(heights)
    for name, height in zip(order, placed, strict=True):
        axes.annotate(
            name,
            ends[name],
            (9, height - centre - heights[name]),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colours[name],
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
