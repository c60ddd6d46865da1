"""Images with what is in them: boxes, masks and labels over the picture, and the semantic map."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from seaborn import color_palette

from frepro.data.annotated import IGNORED, AnnotatedImage
from frepro.figures.style import PAGE_WIDTH, finished, subplots

OBJECTS = color_palette("husl", 6)  # neighbours in an image; the label beside each tells them apart as well


def scenes(images: Sequence[AnnotatedImage], classes: Sequence[str], semantic: Sequence[str] | None = None) -> Figure:
    """A column for each image: the picture, its objects, and its semantic map where there is one.

    Args:
        images: From the same data set.
        classes: Names of the objects' classes.
        semantic: Names of the classes of the semantic maps; none where there are no maps.
    """
    rows = 2 + (semantic is not None)
    side = PAGE_WIDTH / len(images)
    height = rows * side + (0.5 if semantic else 0)
    figure, grid = subplots(rows, len(images), pictures=True, squeeze=False, figsize=(PAGE_WIDTH, height))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, image in zip(grid.T, images, strict=True):
        column[0].imshow(image.image)
        draw_objects(column[1], image, classes)
        if semantic:
            colours = ListedColormap([(0.9, 0.9, 0.9), *color_palette("husl", len(semantic) - 1)], bad="black")
            known = np.ma.masked_equal(image.semantic.numpy(), IGNORED)
            column[2].imshow(known, cmap=colours, vmin=-0.5, vmax=len(semantic) - 0.5, interpolation="nearest")
    if semantic:
        handles = [Patch(color=colours(i), label=name) for i, name in enumerate(semantic)]
        handles.append(Patch(color="black", label="ignored"))
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return finished(figure)


def draw_objects(axes: Axes, image: AnnotatedImage, classes: Sequence[str]) -> None:
    """An image in grey with the boxes, masks and labels of its objects in colour."""
    axes.imshow(image.image.convert("L"), cmap="gray", vmin=0, vmax=255)
    for i, (box, label, mask) in enumerate(zip(image.boxes.tolist(), image.labels, image.masks, strict=True)):
        colour = OBJECTS[i % len(OBJECTS)]
        overlay = np.zeros((*mask.shape, 4))
        overlay[mask.numpy()] = (*colour, 0.6)
        axes.imshow(overlay, interpolation="nearest")
        x1, y1, x2, y2 = box
        # A pixel's middle has whole numbers in matplotlib, and its corner in boxes.
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.2))
        style = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
        at = "bottom" if y1 > 0.1 * len(mask) else "top"  # within the picture
        axes.text(x1, y1, classes[label], fontsize=7, color="black", va=at, bbox=style)
