"""Common style of all figures: page width, fonts, colours."""

from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

PAGE_WIDTH = 8.4  # inches
COLOURS = sns.color_palette("colorblind")
MARKERS = "oDs^vPX*"

# For ordered quantities such as depth: perceptually uniform, without the brightest yellow, which is invisible on white.
ORDERED = LinearSegmentedColormap.from_list("ordered", plt.get_cmap("viridis")([i / 255 for i in range(240)]))


def subplots(rows: int, columns: int, *, pictures: bool = False, **kwargs: Any) -> tuple[Figure, Any]:
    """Call ``plt.subplots`` with the common style: axes with grid lines, or compact axes for images (``pictures``)."""
    sns.set_theme(
        style="white" if pictures else "whitegrid",
        context="notebook",
        font_scale=0.8,
        rc={"grid.linewidth": 0.6, "axes.linewidth": 0.8},
    )
    return plt.subplots(rows, columns, dpi=150, layout="compressed" if pictures else "constrained", **kwargs)


def close_together(figure: Figure) -> None:
    """Leave no more than a thin line between the images of a figure of ``subplots``."""
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)


def finished(figure: Figure) -> Figure:
    plt.close(figure)  # the caller shows it; pyplot would show it a second time
    return figure


def noted(figure: Figure, note: str) -> Figure:
    """Write a note above the panels, in lines of the figure's width, so that the picture says it wherever it is shown.

    Such a note states the weights of the networks (``Trained.note``), above all if they are random.
    """
    lines = fill(note[:1].upper() + note[1:], round(13 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.16 * (lines.count("\n") + 1) + 0.1)
    figure.suptitle(lines, fontsize=9, color="0.25")
    return figure


def sentence(text: str) -> Figure:
    """Return a figure with a line of text, for a figure without data."""
    figure, axes = subplots(1, 1, pictures=True, figsize=(PAGE_WIDTH, 0.5))
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center")
    return finished(figure)
