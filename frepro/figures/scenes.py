"""Images with annotations: boxes, masks and labels on the image, and the semantic map.

Ground truth and predictions (``figures.predictions``) are drawn in the same way.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL.Image import Image
from seaborn import color_palette

from frepro.data.annotated import IGNORED, AnnotatedImage
from frepro.figures.style import COLOURS, PAGE_WIDTH, close_together, finished, subplots

OBJECTS = [COLOURS[i] for i in (1, 0, 2, 4, 8, 9)]  # labels also distinguish the objects


def scenes(images: Sequence[AnnotatedImage], classes: Sequence[str], semantic: Sequence[str] | None = None) -> Figure:
    """Show images, their objects and their semantic maps, if there are any, a column per image.

    Args:
        images: Images from the same data set.
        classes: Names of the object classes.
        semantic: Names of the classes in semantic maps; ``None`` without maps.
    """
    rows = 2 + (semantic is not None)
    side = PAGE_WIDTH / len(images)
    height = rows * side + (0.5 if semantic else 0)
    figure, grid = subplots(rows, len(images), pictures=True, squeeze=False, figsize=(PAGE_WIDTH, height))
    close_together(figure)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, image in zip(grid.T, images, strict=True):
        assert image.masks is not None  # scenes have them
        column[0].imshow(image.image)
        texts = [classes[label] for label in image.labels]
        draw_objects(column[1], image.image, image.boxes.numpy(), texts, image.masks.numpy())
        if semantic:
            assert image.semantic is not None
            draw_map(column[2], image.semantic.numpy(), semantic)
    if semantic:
        draw_legend(figure, semantic)
    return finished(figure)


def draw_objects(
    axes: Axes, picture: Image, boxes: np.ndarray, texts: Sequence[str], masks: np.ndarray | None = None
) -> None:
    """Draw a greyscale image with boxes (N, 4), a text for each box, and optional masks (N, H, W) in colour."""
    axes.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255)
    for i, ((x1, y1, x2, y2), text) in enumerate(zip(boxes.tolist(), texts, strict=True)):
        colour = OBJECTS[i % len(OBJECTS)]
        if masks is not None:
            overlay = np.zeros((*masks[i].shape, 4))
            overlay[masks[i]] = (*colour, 0.6)
            axes.imshow(overlay, interpolation="nearest")
        # Integer coordinates are pixel centres in matplotlib, but pixel corners in boxes.
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.2))
        style = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
        at = "bottom" if y1 > 0.1 * picture.height else "top"  # inside the image
        axes.text(x1, y1, text, fontsize=7, color="black", va=at, bbox=style)


def draw_map(axes: Axes, semantic: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a map (H, W) of classes, the first class in light grey and ignored pixels (255) in black."""
    known = np.ma.masked_equal(semantic, IGNORED)
    axes.imshow(known, cmap=colours_of(classes), vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest")


def draw_legend(figure: Figure, classes: Sequence[str], shown: Sequence[int] | None = None) -> None:
    """Draw a legend of the class colours below the maps, for all classes or those with the given indices."""
    colours = colours_of(classes)
    numbers = range(len(classes)) if shown is None else shown
    handles = [Patch(color=colours(i), label=classes[i]) for i in numbers]
    handles.append(Patch(color="black", label="ignored"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)


def colours_of(classes: Sequence[str]) -> ListedColormap:
    palette = "colorblind" if len(classes) <= 1 + len(COLOURS) else "husl"
    return ListedColormap([(0.9, 0.9, 0.9), *color_palette(palette, len(classes) - 1)], bad="black")
