"""Accuracy versus cost."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from frepro import recipes
from frepro.analysis.tradeoff import Point
from frepro.figures.style import COLOURS, MARKERS, PAGE_WIDTH, finished, subplots


def accuracy_against_cost(points: Sequence[Point], own: str) -> Figure:
    """Plot published top-1 versus published FLOPs and parameters, a line per family, with crosses at frepro's counts.

    Args:
        points: From ``analysis.tradeoff``.
        own: The paper's own family, which is drawn in front.
    """
    figure, panels = subplots(1, 2, sharey=True, figsize=(PAGE_WIDTH, 4.6))
    families = [own, *(name for name in dict.fromkeys(point.family for point in points) if name != own)]
    handles = []
    for i, family in enumerate(families):
        members = [point for point in points if point.family == family]
        style: dict[str, Any] = {
            "color": "black" if family == own else COLOURS[(i - 1) % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        front: dict[str, Any] = {"linewidth": 1, "markersize": 6}
        if family == own:
            front = {"linewidth": 2.2, "markersize": 9, "markerfacecolor": "white", "zorder": 5}
        for axes, key in zip(panels, ("flops", "params"), strict=True):
            axes.plot([getattr(p, key) for p in members], [p.top1 for p in members], **style, **front)
            ours = [(getattr(p, f"our_{key}"), p.top1) for p in members if p.model is not None]
            for x, y in ours:
                axes.plot(x, y, "x", color="0.25", markersize=6, markeredgewidth=1.4, zorder=6)
        handles.append(Line2D([], [], **style, **front, label=family))
    handles.append(Line2D([], [], linestyle="", marker="x", color="0.25", markeredgewidth=1.4, label="our count"))
    panels[0].set_xlabel("multiply-accumulates at 224 pixels (G)")
    panels[1].set_xlabel("parameters (M)")
    panels[0].set_ylabel(f"published ImageNet-1K {recipes.Classification.main_metric().heading}")
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False)
    return finished(figure)
