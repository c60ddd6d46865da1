"""Frequency responses of token mixers with random weights."""

from collections.abc import Sequence
from typing import Literal

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from frepro.analysis.graph import Simulation
from frepro.figures.style import MARKERS, ORDERED, PAGE_WIDTH, finished, subplots


def frequency_responses(simulations: Sequence[Simulation]) -> Figure:
    """Plot frequency responses of random token mixers with cut-offs (SPANetV2 Figure 1).

    Left: gain on the graph of the grid (root mean square over the draws), and the mean cut-off. Right: the frequencies
    of each mixer's own graph, on which the response is 1 - lambda, and the mean of the highest frequency.
    """
    figure, (left, right) = subplots(1, 2, figsize=(PAGE_WIDTH, 3.6), width_ratios=(1.25, 1))
    colours = [ORDERED(i / max(len(simulations) - 2, 1)) for i in range(len(simulations) - 1)] + ["black"]
    handles = []
    for row, (found, colour) in enumerate(zip(simulations, colours, strict=True)):
        style: Literal["--", "-"] = "--" if row == len(simulations) - 1 else "-"
        frequency = found.grid[0].frequency
        gain = torch.stack([response.gain for response in found.grid]).square().mean(0).sqrt()
        left.plot(frequency.numpy(), gain.numpy(), style, color=colour, linewidth=1.6)
        cutoff = sum(response.cutoff for response in found.grid) / len(found.grid)
        left.plot(cutoff, 0.5**0.5, MARKERS[row], color=colour, markersize=8, markeredgecolor="white", zorder=5)
        handles.append(
            Line2D([], [], color=colour, linestyle=style, marker=MARKERS[row], label=f"{found.name}: {cutoff:.3f}")
        )
        eigenvalues = torch.stack(found.connectivity)
        right.plot(eigenvalues[0].numpy(), [row] * eigenvalues.shape[1], "|", color=colour, markersize=10, alpha=0.35)
        highest = float(eigenvalues[:, -1].mean())
        right.plot(highest, row, MARKERS[row], color=colour, markersize=8, markeredgecolor="white", zorder=5)
        right.annotate(f"{highest:.2f}", (highest, row), (8, 0), textcoords="offset points", va="center", fontsize=8)
    left.axhline(0.5**0.5, color="0.5", linewidth=0.8, linestyle=":")
    left.set_xscale("function", functions=(lambda x: x.clip(0) ** 0.5, lambda x: x**2))
    left.set_xticks([0, 0.05, 0.2, 0.5, 1, 1.5, 2], ["0", "0.05", "0.2", "0.5", "1", "1.5", "2"])
    left.set_xlim(0, 2.03)
    left.set_ylim(0, 1.03)
    left.set_xlabel("graph frequency λ of the grid (square-root scale)")
    left.set_ylabel("gain (root mean square)")
    figure.suptitle("random weights, as in the paper", fontsize=9, color="0.25")
    left.legend(handles=handles, title="mixer: cut-off λ (gain 1/√2)", fontsize=8, title_fontsize=8)
    right.axvline(1, color="0.3", linewidth=1)
    right.set_xlim(-0.03, 2.03)
    right.set_ylim(len(simulations) - 0.5, -0.5)
    right.set_yticks(range(len(simulations)), [found.name.removeprefix("convolution ") for found in simulations])
    right.grid(axis="y", visible=False)
    right.set_xlabel("graph frequency λ of the mixer's own graph\n(response 1 − λ, zero at the line)")
    return finished(figure)
