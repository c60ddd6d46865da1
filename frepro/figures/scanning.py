"""The scan of Vim-F in space and in the spectrum."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from frepro.analysis.translation import Translation
from frepro.figures.style import PAGE_WIDTH, finished, subplots


def scanning(found: Translation, pictures: Tensor) -> Figure:
    """Show an image and the spectrum of its patches before and after a shift, with the scan order (Vim-F Figure 2).

    Third column: the root mean square over channels of the change due to the shift, with the scale of the second
    column.

    Args:
        pictures: (2, 3, H, W), the images to show, with values in [0, 1].
    """
    figure, grid = subplots(2, 3, pictures=True, figsize=(PAGE_WIDTH, 5.5))
    height, width = found.patches.shape[1:3]
    patch = pictures.shape[-2] / height
    for axes, picture, letter in zip(grid[:, 0], pictures, "ab", strict=True):
        axes.imshow(picture.permute(1, 2, 0).numpy())
        _scan(axes, height, width, patch, "white")
        axes.set_title(
            f"({letter}) image" if letter == "a" else f"(b) shifted by {found.shift[0]}, {found.shift[1]} px"
        )
        axes.set_ylabel("row of patches")
    spectra = found.spectra.square().mean(-1).sqrt()
    low, high = float(spectra.min()), float(spectra.max())
    for axes, spectrum, letter in zip(grid[:, 1], spectra, "ab", strict=True):
        image = axes.imshow(spectrum.numpy(), cmap="viridis", norm="log", vmin=low, vmax=high)
        _scan(axes, height, width, 1, "white")
        axes.set_title(f"amplitude spectrum of ({letter})")
        axes.set_ylabel("vertical frequency (0 first)")
    patches, spectrum, _ = found.changes().values()
    moved = (found.patches[1] - found.patches[0]).square().mean(-1).sqrt()
    changed = (found.spectra[1] - found.spectra[0]).square().mean(-1).sqrt()
    for axes, change, share, of in zip(
        grid[:, 2], (moved, changed), (patches, spectrum), ("patches", "spectrum"), strict=True
    ):
        axes.imshow(change.clamp(min=low).numpy(), cmap="viridis", norm="log", vmin=low, vmax=high)
        percent = np.format_float_positional(100 * share, precision=2, fractional=False, trim="-")
        axes.set_title(f"change of the {of}: {percent} %")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    grid[1, 0].set_xlabel("column of patches")
    grid[1, 1].set_xlabel("horizontal frequency (0 first)")
    figure.colorbar(image, ax=list(grid.flat), label="root mean square over channels", pad=0.01, aspect=30)
    return finished(figure)


def _scan(axes: Axes, height: int, width: int, step: float, colour: str) -> None:
    """Draw the order in which tokens are scanned: row by row, from the circle to the arrowhead."""
    columns, rows = (axis.ravel() * step + (step - 1) / 2 for axis in np.meshgrid(range(width), range(height)))
    axes.plot(columns, rows, color=colour, linewidth=0.6, alpha=0.8)
    axes.plot(columns[0], rows[0], "o", color=colour, markersize=5)
    axes.plot(columns[-1], rows[-1], ">", color=colour, markersize=6)
