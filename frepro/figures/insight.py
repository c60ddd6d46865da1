"""Figures of the internals of models: spectra, filters, similarities, biases, context maps.

Each function plots results of ``frepro.analysis``.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from frepro.analysis import filters, fourier
from frepro.analysis.fourier import Spectrum
from frepro.analysis.similarity import Similarity
from frepro.figures.style import COLOURS, MARKERS, ORDERED, PAGE_WIDTH, close_together, finished, subplots

PI_TICKS = {0: "0", 0.25: "π/4", 0.5: "π/2", 0.75: "3π/4", 1: "π"}


def relative_log_amplitude(models: Mapping[str, Sequence[Spectrum]]) -> Figure:
    """Plot log amplitude relative to zero frequency, a panel per model, a curve per layer (DFFormer Figure 1).

    Args:
        models: Label -> spectra in order of depth (``fourier.spectra``).
    """
    figure, panels = _panels(len(models), ratio=0.95, sharey=True)
    for axes, (label, layers) in zip(panels, models.items(), strict=True):
        for i, layer in enumerate(layers):
            frequency, difference = fourier.relative_log_amplitude(layer.log_amplitude)
            colour = ORDERED(i / max(len(layers) - 1, 1))
            axes.plot(frequency.numpy(), difference.numpy(), "o-", color=colour, linewidth=1.4, markersize=2.5)
        axes.set_title(label)
        axes.set_xticks(list(PI_TICKS), list(PI_TICKS.values()))
        axes.set_xlim(-0.02, 1.02)
        axes.axhline(0, color="0.4", linewidth=0.8)
    figure.supxlabel("frequency (rad / sample of the layer's map)", fontsize=9)
    figure.supylabel("Δ log amplitude", fontsize=9)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), ORDERED), ax=panels, ticks=[0, 1], pad=0.01, aspect=30)
    ends = {(layers[0].depth, layers[-1].depth) for layers in models.values()}
    bar.ax.set_yticklabels([f"block {depth}" for depth in ends.pop()] if len(ends) == 1 else ["first", "last"])
    return finished(figure)


def spectrum_maps(models: Mapping[str, Spectrum | Tensor]) -> Figure:
    """Plot Fourier spectrum maps with a common scale, each with zero frequency in the centre (SPANet Figure 1).

    Each map is relative to its value at zero frequency, so that models of different scales are comparable.

    Args:
        models: Label -> a spectrum, or its log amplitudes (H, W).
    """
    amplitudes = {label: item.log_amplitude if isinstance(item, Spectrum) else item for label, item in models.items()}
    maps = {label: item - item[item.shape[0] // 2, item.shape[1] // 2] for label, item in amplitudes.items()}
    values = torch.cat([item.flatten() for item in maps.values()]).double()
    low, high = (float(values.quantile(q)) for q in (0.01, 0.99))
    figure, panels = _panels(len(maps), ratio=1, columns=5, pictures=True)
    figure.set_figheight(figure.get_figheight() + 0.15)  # for the labels below
    for axes, (label, item) in zip(panels, maps.items(), strict=True):
        (bottom, top), (left, right) = (_edges(side) for side in item.shape)
        image = axes.imshow(
            item.numpy(), extent=(left, right, bottom, top), origin="lower", cmap="viridis", vmin=low, vmax=high
        )
        axes.set_title(label)
        axes.set_xticks([-0.5, 0, 0.5], ["−π/2", "0", "π/2"])
        place = axes.get_subplotspec()
        is_first = place is not None and place.is_first_col()
        axes.set_yticks([-0.5, 0, 0.5], ["−π/2", "0", "π/2"] if is_first else [])
    figure.supxlabel("horizontal frequency (rad / sample of the layer's map)", fontsize=9)
    figure.supylabel("vertical frequency", fontsize=9)
    figure.colorbar(image, ax=panels, label="Δ log amplitude", pad=0.01, aspect=20, extend="both")
    return finished(figure)


def filter_gallery(amplitudes: Mapping[str, Tensor], count: int = 8) -> Figure:
    """Plot filters in the frequency domain, a column per layer, a row per filter (DFFormer Figures 2 and 9).

    Zero frequency is in the centre of each image, and the class of the filter (``filters.kind``) at the lower left.
    Each image has its own colour scale, from its lowest (dark) to its highest amplitude (yellow).

    Args:
        amplitudes: Name -> (K, H, W), as returned by ``filters.amplitudes``.
        count: Number of filters to show of each layer, starting with the first.
    """
    rows = min(count, max(len(item) for item in amplitudes.values()))
    columns = len(amplitudes)
    width = min(PAGE_WIDTH, 1.4 * columns + 0.6)
    height = (width - 0.5) / columns * rows + 1.1
    figure, grid = subplots(rows, columns, pictures=True, squeeze=False, figsize=(width, height))
    close_together(figure)
    sizes = [tuple(item.shape[1:]) for item in amplitudes.values()]
    for column, item in enumerate(amplitudes.values()):
        for row in range(rows):
            axes = grid[row, column]
            axes.set(xticks=[], yticks=[], frame_on=False)
            if row < len(item):
                axes.imshow(item[row].cpu().numpy(), cmap="viridis")
                if min(item.shape[1:]) >= filters.SMALLEST:
                    kind = filters.kind(item[row])
                    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1}
                    axes.text(0.04, 0.05, kind, transform=axes.transAxes, fontsize=8, bbox=box)
        grid[0, column].set_title(f" \n{column + 1}", fontsize=8, pad=3)  # room for the size above
        if column == 0 or sizes[column] != sizes[column - 1]:
            size = f"{sizes[column][0]} × {sizes[column][1]}"
            text = grid[0, column].annotate(size, (0, 1), (0, 15), "axes fraction", "offset points", fontsize=8)
            text.set_in_layout(False)  # otherwise it would widen its column
    for row in range(rows):
        grid[row, 0].set_ylabel(str(row + 1), rotation=0, ha="right", va="center", fontsize=8)
    figure.supxlabel(
        "layer (column) and size of its map;\neach filter from its lowest (dark) to its highest amplitude (yellow)",
        fontsize=9,
    )
    figure.supylabel("filter", fontsize=9)
    return finished(figure)


def similarity(pairs: Mapping[tuple[str, str], Similarity]) -> Figure:
    """Plot CKA between all layers of two models as heat maps, a panel per pair, with stages (DFFormer Figure 7).

    Args:
        pairs: (label of the first model, label of the second) -> their similarity (``similarity.compare``).
    """
    figure, panels = _panels(len(pairs), ratio=0.85, pictures=True)
    for axes, ((first, second), found) in zip(panels, pairs.items(), strict=True):
        image = axes.imshow(found.values.numpy(), origin="lower", cmap="magma", vmin=0, vmax=1)
        for axis, layers, line in (
            (axes.yaxis, found.first, axes.axhline),
            (axes.xaxis, found.second, axes.axvline),
        ):
            borders = [i for i, (a, b) in enumerate(pairwise(layers), start=1) if a.stage != b.stage]
            for border in borders:
                line(border - 0.5, color="white", linewidth=1)
            middles = [(a + b - 1) / 2 for a, b in pairwise([0, *borders, len(layers)])]
            axis.set_ticks(middles, [str(layers[round(middle)].stage) for middle in middles])
        axes.set_ylabel(f"{first}: stage")
        axes.set_xlabel(f"{second}: stage")
    figure.colorbar(image, ax=panels, label="linear CKA", pad=0.01, aspect=25)
    return finished(figure)


def shape_bias(models: Mapping[str, Mapping[str, float]]) -> Figure:
    """Plot shape bias per category, a marker per model, and the mean over categories of each (SPANetV2 Figure 4).

    Args:
        models: Label -> category -> shape bias in [0, 1] (``bias.shape_bias_by_category``). A model with no value has
            no marker; the legend says that it follows neither cue.
    """
    categories = list(next(iter(models.values())))
    figure, axes = subplots(1, 1, figsize=(PAGE_WIDTH, 1.3 + 0.36 * len(categories)))
    for i, (label, values) in enumerate(models.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        points = [values[category] for category in categories]
        known = [value for value in points if value == value]
        if not known:
            axes.plot([], [], marker, color=colour, label=f"{label} (left out: over 50 % follow neither cue)")
            continue
        mean = sum(known) / len(known)
        axes.axvline(mean, color=colour, linewidth=1.5, linestyle="--")
        offset = 0.6 * ((i + 0.5) / len(models) - 0.5)  # models of equal bias are below each other
        rows = [row + offset for row in range(len(categories))]
        axes.plot(points, rows, marker, color=colour, markersize=6, label=f"{label} (mean {mean:.2f})")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_yticks(range(len(categories)), categories)
    axes.set_xlabel("fraction of shape decisions (0: all texture, 1: all shape)")
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(models) // 2))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return finished(figure)


def pictures(images: Tensor, titles: Sequence[str]) -> Figure:
    """Show images side by side, each with a title.

    Args:
        images: (N, 3, H, W), values in [0, 1].
    """
    figure, panels = _panels(len(images), ratio=1.15, columns=6, pictures=True)
    for axes, image, title in zip(panels, images, titles, strict=True):
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return finished(figure)


def context_maps(pictures: Tensor, maps: Mapping[Any, Tensor]) -> Figure:
    """Show images with context maps overlaid, each with its own scale (SPANet Figure 4).

    Args:
        pictures: (B, 3, H, W), values in [0, 1].
        maps: Stage, or another label -> (B, H, W), as returned by ``attribution.context_maps``.
    """
    rows, columns = len(pictures), 1 + len(maps)
    side = (PAGE_WIDTH - 0.9) / columns
    figure, grid = subplots(rows, columns, pictures=True, squeeze=False, figsize=(PAGE_WIDTH, rows * side + 0.4))
    for row, picture in enumerate(pictures):
        grid[row, 0].imshow(picture.permute(1, 2, 0).numpy())
        for axes, item in zip(grid[row, 1:], maps.values(), strict=True):
            axes.imshow(picture.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
            low, high = float(item[row].min()), float(item[row].max())
            high = max(high, 1.001 * low)  # otherwise a constant map would show rounding errors
            image = axes.imshow(item[row].cpu().numpy(), cmap="viridis", alpha=0.6, vmin=low, vmax=high)
    for axes, label in zip(grid[0], ["image", *maps], strict=True):
        axes.set_title(f"stage {label}" if isinstance(label, int) else label)
    for axes in grid.flat:
        axes.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), image.cmap), ax=list(grid.flat), ticks=[0, 1], shrink=0.6, aspect=25, pad=0.01
    )
    bar.ax.set_yticklabels(["lowest", "highest"])
    bar.set_label("mean |context|")
    return finished(figure)


def _panels(count: int, ratio: float, columns: int = 3, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Create panels in rows of at most ``columns``, with a height of about ``ratio`` times the width."""
    rows = -(-count // columns)
    columns = -(-count // rows)  # rows of equal length
    width = PAGE_WIDTH if columns > 1 else PAGE_WIDTH / 2
    height = rows * (width / columns * ratio + 0.2) + 0.3
    figure, grid = subplots(rows, columns, squeeze=False, figsize=(width, height), **kwargs)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return figure, list(grid.flat[:count])


def _edges(size: int) -> tuple[float, float]:
    """Return the outer edges of the first and last bins, in units of pi."""
    frequency = fourier.frequencies(size)
    return float(frequency[0]) - 1 / size, float(frequency[-1]) + 1 / size
