"""Drawings of the blocks of each model family, generated from the modules so that they always agree with the code.

Families declare them (``Backbone.drawings``); ``draw`` lays out a graph of ``analysis.structure`` from top to bottom
and draws it. ``scanning`` is the one drawing that is no graph.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from scipy.optimize import linprog

from frepro.analysis.structure import Node, dataflow, shape_text
from frepro.models.backbone import families
from frepro.ops import amplitude_spectrum

TITLE, SMALL, LINE = 10, 8.5, 12.5  # font sizes and line height, points
GAP, BETWEEN, MARGIN = 18, 14, 6  # points: between rows, between boxes in a row, around the drawing
FILLS = {"filter": "#f7c59f", "module": "#dbe9f6", "function": "#ececec", "sign": "#ffffff"}
GREY, EDGE = "#444444", "#666666"

# The formula of each operation; see frepro/ops.
FORMULAS = {
    "amplitude_spectrum": "|F(x)|",
    "dynamic_filter": "F⁻¹( (Σₙ sₙ Kₙ) · F(x) )",
    "global_filter": "F⁻¹( K · F(x) )",
    "causal_conv": "SiLU( w ∗ x + b )",
    "selective_scan": "hₜ = exp(Δₜ A) hₜ₋₁ + Δₜ Bₜ xₜ\nyₜ = (Cₜ hₜ + D xₜ) SiLU(zₜ)",
    "spectral_pool": "F⁻¹( M · F(x) )",
    "spectral_rescale": "F⁻¹( g · F(x) )",
}


@dataclass(eq=False)
class Box:
    """Position and size of a node, or of a point that an edge passes through (``node`` is ``None``), in points."""

    node: Node | None
    row: int
    width: float = 6
    height: float = 0
    x: float = 0
    y: float = 0
    above: list["Box"] = field(default_factory=list)
    below: list["Box"] = field(default_factory=list)

    @property
    def is_circle(self) -> bool:
        return self.node is not None and self.node.kind == "sign" and not self.node.name


def lines(node: Node) -> list[tuple[str, bool]]:
    """Return the text lines in the box of a node, each with whether it is part of the title.

    The shape is included only if it differs from that of the input.
    """
    title = f"{node.count} × {node.title}" if node.count > 1 else node.title
    formula = FORMULAS.get(node.title.split("\n")[0], "") if node.kind in ("filter", "module") else ""
    shape = "" if node.same_shape else shape_text(node.shape)
    if shape and node.kind not in ("input", "output"):
        shape = f"→ {shape}"
    return [(line, True) for line in title.split("\n")] + [
        (line, False) for text in (formula, node.name, shape) if text for line in text.split("\n")
    ]


def labels(nodes: list[Node]) -> list[str]:
    """Return all texts in a drawing."""
    return [text for node in nodes for text, _ in lines(node)]


def draw(nodes: list[Node]) -> Figure:
    """Draw a graph: filters and scans in orange, modules in blue, functions in grey."""
    boxes, routes = _place(nodes)
    left = min(box.x - box.width / 2 for row in boxes for box in row) - MARGIN
    right = max(box.x + box.width / 2 for row in boxes for box in row) + MARGIN
    top = max(box.y + box.height / 2 for row in boxes for box in row) + MARGIN
    bottom = min(box.y - box.height / 2 for row in boxes for box in row) - MARGIN
    figure = plt.figure(figsize=((right - left) / 72, (top - bottom) / 72), dpi=144, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    for points in routes:
        axes.add_patch(
            FancyArrowPatch(
                path=_curve(points), arrowstyle="-|>", mutation_scale=9, color=EDGE, linewidth=1.1, shrinkA=0, shrinkB=0
            )
        )
    for row in boxes:
        for box in row:
            if box.node is not None:
                _draw_box(axes, box, box.node)
    plt.close(figure)
    return figure


def _draw_box(axes: Axes, box: Box, node: Node) -> None:
    style: dict[str, Any] = {"linewidth": 1.1, "edgecolor": EDGE, "zorder": 3}
    if box.is_circle:
        axes.add_patch(Circle((box.x, box.y), box.width / 2, facecolor="white", **style))
    elif node.kind in FILLS:
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        shape = FancyBboxPatch(corner, box.width, box.height, "round,pad=0,rounding_size=4", **style)
        shape.set_facecolor(FILLS[node.kind])
        axes.add_patch(shape)
    texts = lines(node)
    for i, (text, is_title) in enumerate(texts):
        y = box.y + ((len(texts) - 1) / 2 - i) * LINE
        font: dict[str, Any] = {"fontsize": SMALL, "color": GREY}
        if is_title:
            font = {"fontsize": TITLE, "fontweight": "bold"}
        axes.text(box.x, y, text, ha="center", va="center", zorder=4, **font)


def _curve(points: list[tuple[float, float]]) -> Path:
    """Return a curve through the points that is vertical at each of them."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return Path(vertices, codes)


def _width(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(family="DejaVu Sans", weight=weight)
    return max(TextPath((0, 0), line, size=size, prop=font).get_extents().width for line in text.split("\n"))


def _place(nodes: list[Node]) -> tuple[list[list[Box]], list[list[tuple[float, float]]]]:
    """Return rows of boxes, and the points of each edge.

    A box is below all its inputs. The order in a row has the fewest crossings found by moving boxes to the mean of
    their neighbours, and the horizontal positions minimize the horizontal length of all edges.
    """
    boxes: dict[int, Box] = {}
    for node in nodes:
        row = 1 + max((boxes[id(source)].row for source in node.sources), default=-1)
        box = boxes[id(node)] = Box(node, row)
        if box.is_circle:
            box.width = box.height = 20
        else:
            texts = lines(node)
            box.width = 18 + max(_width(t, TITLE if bold else SMALL, "bold" if bold else "normal") for t, bold in texts)
            box.height = LINE * len(texts) + (10 if node.kind in FILLS else 0)
    rows: list[list[Box]] = [[] for _ in range(1 + max(box.row for box in boxes.values()))]
    for box in boxes.values():
        rows[box.row].append(box)
    chains = []
    for node in nodes:
        for source in node.sources:
            first, last = boxes[id(source)], boxes[id(node)]
            chain = [first, *(Box(None, row) for row in range(first.row + 1, last.row)), last]
            for box in chain[1:-1]:
                rows[box.row].append(box)
            for upper, lower in pairwise(chain):
                upper.below.append(lower)
                lower.above.append(upper)
            chains.append(chain)
    _order(rows)
    _spread(rows)
    y = 0.0
    for placed in rows:
        height = max(box.height for box in placed)
        for box in placed:
            box.y = y - height / 2
            if box.node is None:
                box.height = height  # so that the edge passes the boxes of this row vertically
        y -= height + GAP
    return rows, [_route(chain) for chain in chains]


def _route(chain: list[Box]) -> list[tuple[float, float]]:
    def end(box: Box, other: Box) -> float:
        room = 0 if box.is_circle else max(box.width / 2 - 12, 0)
        return float(np.clip(other.x, box.x - room, box.x + room))

    first, *bends, last = chain
    start = (end(first, chain[1]), first.y - first.height / 2)
    ways = [(box.x, box.y + side * box.height / 2) for box in bends for side in (1, -1)]
    return [start, *ways, (end(last, chain[-2]), last.y + last.height / 2)]


def _order(rows: list[list[Box]]) -> None:
    def crossings() -> int:
        count = 0
        for upper, lower in pairwise(rows):
            places = {id(box): i for i, box in enumerate(lower)}
            ends = [places[id(below)] for box in upper for below in sorted(box.below, key=lambda b: places[id(b)])]
            count += sum(a > b for i, a in enumerate(ends) for b in ends[i + 1 :])
        return count

    best, fewest = [list(row) for row in rows], crossings()
    for sweep in range(12):
        down = sweep % 2 == 0
        for before, row in pairwise(rows if down else rows[::-1]):
            places = {id(box): i for i, box in enumerate(before)}
            means = {
                id(box): np.mean([places[id(b)] for b in near]) if (near := box.above if down else box.below) else 0
                for box in row
            }
            row.sort(key=lambda box: means[id(box)])
        if crossings() < fewest:
            best, fewest = [list(row) for row in rows], crossings()
    for row, ordered in zip(rows, best, strict=True):
        row[:] = ordered


def _spread(rows: list[list[Box]]) -> None:
    """Set positions that minimize the sum of |x - x'| over all edges, with straight long edges and without overlap."""
    index = {id(box): i for i, box in enumerate(box for row in rows for box in row)}
    spans = [(box, below) for row in rows for box in row for below in box.below]
    costs = np.zeros(len(index) + len(spans))
    limits: list[np.ndarray] = []
    bounds: list[float] = []
    for k, (box, below) in enumerate(spans, start=len(index)):
        is_chain = len(box.below) == len(below.above) == 1
        costs[k] = 1 + 2 * is_chain + 3 * (box.node is None or below.node is None)
        for sign in (1, -1):  # the k-th variable is at least |x - x'|
            limit = np.zeros(len(costs))
            limit[[index[id(box)], index[id(below)], k]] = sign, -sign, -1
            limits.append(limit)
            bounds.append(0)
    for row in rows:
        for left, right in pairwise(row):
            limit = np.zeros(len(costs))
            limit[[index[id(left)], index[id(right)]]] = 1, -1
            limits.append(limit)
            bounds.append(-(left.width + right.width) / 2 - BETWEEN)
    places = linprog(costs, A_ub=np.array(limits), b_ub=bounds, bounds=(0, None), method="highs-ipm").x
    for row in rows:
        for box in row:
            box.x = float(places[index[id(box)]])


def scanning() -> Figure:
    """Draw Vim-F's scan in space and in the spectrum: a digit at two positions in the patch grid, with its spectra."""
    from sklearn.datasets import load_digits

    height, width = _meta("vimf_tiny").grid_size
    digit = torch.tensor(load_digits().images[0], dtype=torch.float32)
    image = torch.zeros(1, height, width, 1)
    image[0, : digit.shape[0], : digit.shape[1], 0] = digit
    moved = image.roll((height - digit.shape[0], width - digit.shape[1]), dims=(1, 2))
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))  # tokens in the order of flatten
    figure, axes = plt.subplots(2, 2, figsize=(6, 6.4), dpi=144, layout="constrained")
    for column, (letter, x) in enumerate((("a", image), ("b", moved))):
        pictures = (
            (f"patches ({letter})", x, "Blues"),
            (f"amplitude spectrum of ({letter})", amplitude_spectrum(x), "Oranges"),
        )
        for axis, (title, picture, colours) in zip(axes[:, column], pictures, strict=True):
            axis.imshow(picture[0, :, :, 0].sqrt().numpy(), cmap=colours)
            axis.plot(columns.ravel(), rows.ravel(), color="black", linewidth=0.5, alpha=0.6)
            axis.plot(0, 0, "o", color="black", markersize=5)
            axis.plot(width - 1, height - 1, ">", color="black", markersize=6)
            axis.set_title(title, fontsize=TITLE)
            axis.tick_params(labelsize=SMALL)
    for axis, (x_name, y_name) in zip(axes.ravel(), [("column", "row")] * 2 + [("v", "u")] * 2, strict=True):
        axis.set_xlabel(x_name, fontsize=SMALL)
        axis.set_ylabel(y_name, fontsize=SMALL)
    plt.close(figure)
    return figure


# The drawings


def _meta(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name).eval()


def _input(*shape: int) -> torch.Tensor:
    return torch.empty(1, *shape, device="meta")


def whole(name: str, *blocks: type) -> list[Node]:
    """Return the graph of a model, in which each of the ``blocks`` is one box."""
    network = _meta(name)
    return dataflow(network, _input(3, *network.img_size), closed=blocks)


def part(name: str, path: str, *closed: type) -> list[Node]:
    """Return the graph of a submodule with its input in the model; each module of a class in ``closed`` is one box."""
    network = _meta(name)
    module, seen = network.get_submodule(path), []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.no_grad():
        network(_input(3, *network.img_size))
    handle.remove()
    return dataflow(module, *(torch.empty_like(x) for x in seen[0]), closed=closed)


def graph(drawing: tuple[str, str, tuple[str, ...]]) -> list[Node]:
    """Return the graph of a drawing as a family declares it (``Backbone.drawings``)."""
    name, path, closed = drawing
    types = {type(module) for module in _meta(name).modules() if type(module).__name__ in closed}
    return part(name, path, *types) if path else whole(name, *types)


def declared() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return the drawings that all families declare, by name."""
    return {name: drawing for family in families() for name, drawing in family.drawings.items()}


def pictures() -> dict[str, Callable[[], Figure]]:
    """All pictures of ``results/models`` by name."""
    drawn = {name: partial(_draw_declared, drawing) for name, drawing in declared().items()}
    return {**drawn, "vimf_scan": scanning}


def _draw_declared(drawing: tuple[str, str, tuple[str, ...]]) -> Figure:
    return draw(graph(drawing))


def save(folder: pathlib.Path, log: Callable[[str], None]) -> None:
    """Write every drawing to a folder as <name>.svg."""
    # Keep text as text, so that readers can search it and tests can compare it. Omit the date, so that files stay
    # equal.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frepro"}):
        for name, picture in pictures().items():
            log(f"drawing {name}")
            picture().savefig(folder / f"{name}.svg", metadata={"Date": None})
