"""Predictions of trained detectors and segmenters on test images, with the ground truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor, nn

from frepro import recipes, tasks
from frepro.data.annotated import IGNORED, AnnotatedImage
from frepro.data.dense import DenseSamples
from frepro.errors import unknown
from frepro.experiment import Experiment, TrainedVariant
from frepro.figures.scenes import draw_legend, draw_map, draw_objects
from frepro.figures.style import PAGE_WIDTH, close_together, finished, sentence, subplots
from frepro.models.official import load_strictly, read, unwrap
from frepro.tasks.segmenters import resize
from frepro.training import evaluate

NAMED = 0.01  # minimum area of a region that is labelled, as a fraction of the map


def predictions(experiment: Experiment, network: str, count: int = 4, score: float = 0.5) -> Figure:
    """Show the ground truth and the predictions of each variant on test images, a column per image.

    Each trained variant is represented by its first seed. Larger regions of maps are labelled with their class, so that
    colour is not the only cue.

    Args:
        network: A name in ``experiment.networks``.
        count: Number of test images; the first ones with any content are shown.
        score: Minimum score of a detection to show. In an image with fewer such detections than objects, the best ones
            are shown, as many as there are objects.

    Raises:
        FreproError: The network is unknown.
    """
    if network not in experiment.networks:
        raise unknown("network of this table", network, experiment.networks)
    learners = [each for each in experiment.trained_variants if each.network == network and _is_known(experiment, each)]
    if not learners:
        return sentence(f"No {recipes.NETWORKS[network]} was trained.")
    samples = tasks.of(learners[0].runs[0]).samples("test")
    assert isinstance(samples, DenseSamples)
    chosen = _with_content(samples, count)
    images = [samples.images[samples.chosen[i]] for i in chosen]
    found = [_answers(learner, chosen) for learner in learners]
    detects = isinstance(found[0][0], dict)
    rows = ["true"] if detects else ["image", "true"]
    names = [*rows, *(learner.label for learner in learners)]
    height = PAGE_WIDTH / len(images) * len(names) + (0.1 if detects else 0.5)
    figure, grid = subplots(len(names), len(images), pictures=True, squeeze=False, figsize=(PAGE_WIDTH, height))
    close_together(figure)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name)

    if detects:
        _draw_detections(grid, images, samples.images.classes, found, score)
        kinds = "boxes and masks" if "masks" in found[0][0] else "boxes"
        figure.supxlabel(
            f"{kinds} with a score of at least {score:g}, and at least as many as objects: class, score", fontsize=8
        )
    else:
        names_of_classes = samples.images.semantic_classes
        assert names_of_classes is not None  # segmenters are trained on maps
        classes = [str(name).split(",")[0] for name in names_of_classes]  # "building, edifice"
        shown = _draw_maps(grid, images, classes, found)
        draw_legend(figure, classes, shown)
    return finished(figure)


def _is_known(experiment: Experiment, learner: TrainedVariant) -> bool:
    return bool(learner.records()) and (experiment.checkpoints is None or learner.checkpoint is not None)


def _with_content(samples: Any, count: int) -> list[int]:
    """Return the indices of the first samples with an object or a map of more than one class."""
    found: list[int] = []
    for i in range(len(samples)):
        image = samples.images[samples.chosen[i]]
        if len(image.boxes) or (image.semantic is not None and len(image.semantic.unique()) > 1):
            found.append(i)
        if len(found) == count:
            break
    return found


def _network(learner: TrainedVariant) -> nn.Module:
    """Return the network of a variant's first seed, or with the weights of its file."""
    run = learner.runs[0]
    if learner.checkpoint is None:
        return evaluate.network(run)
    network, file = tasks.of(run).network(drop_path=0.0), learner.checkpoint.file
    load_strictly(network, unwrap(read(file), named=str(file)), str(file))
    return network.eval()


@torch.no_grad()
def _answers(learner: TrainedVariant, chosen: Sequence[int]) -> list[Any]:
    """Return the prediction for each sample: detections, or a map (H, W) of classes."""
    task, network = tasks.of(learner.runs[0]), _network(learner)
    samples, found = task.samples("test"), []
    for i in chosen:
        sample = samples[0, i]
        assert sample is not None  # here a damaged image is an error
        image, target = sample
        (answer,) = task.predict(network, [image])
        found.append(answer if isinstance(answer, dict) else resize(answer.float(), target.shape).argmax(dim=1)[0])
    return found


def _draw_detections(
    grid: np.ndarray,
    images: Sequence[AnnotatedImage],
    classes: Sequence[str],
    found: Sequence[list[dict[str, Tensor]]],
    least: float,
) -> None:
    has_masks = "masks" in found[0][0]
    for column, image, *of_learners in zip(grid.T, images, *found, strict=True):
        texts = [str(classes[label]) for label in image.labels]
        masks = None if image.masks is None or not has_masks else image.masks.numpy()
        draw_objects(column[0], image.image, image.boxes.numpy(), texts, masks)
        for axes, objects in zip(column[1:], of_learners, strict=True):
            order = objects["scores"].argsort(descending=True)
            shown = order[: max(int((objects["scores"] >= least).sum()), len(image.labels))]
            kept = {key: values[shown] for key, values in objects.items()}
            pairs = zip(kept["labels"].tolist(), kept["scores"].tolist(), strict=True)
            texts = [f"{classes[label - 1]} {score:.2f}" for label, score in pairs]
            masks = (kept["masks"][:, 0] >= 0.5).numpy() if has_masks else None
            draw_objects(axes, image.image, kept["boxes"].numpy(), texts, masks)
            if not texts:
                _write(axes, image.image.width / 2, image.image.height / 2, "nothing")


def _draw_maps(
    grid: np.ndarray, images: Sequence[AnnotatedImage], classes: Sequence[str], found: Sequence[list[Tensor]]
) -> list[int]:
    """Draw the maps, and return the indices of the classes in them."""
    shown: set[int] = set()
    for column, image, *of_learners in zip(grid.T, images, *found, strict=True):
        column[0].imshow(image.image)
        for axes, semantic in zip(column[1:], [image.semantic, *of_learners], strict=True):
            assert semantic is not None
            draw_map(axes, semantic.numpy(), classes)
            _name_regions(axes, semantic.numpy(), classes)
            shown |= set(semantic.unique().tolist()) - {IGNORED}
    return sorted(shown)


def _name_regions(axes: Axes, semantic: np.ndarray, classes: Sequence[str]) -> None:
    """Label each sufficiently large region with its class, except for the first class, the background of scenes.

    A map with a single class has one label that says so.
    """
    if len(found := np.setdiff1d(semantic, [IGNORED])) == 1:
        height, width = semantic.shape
        _write(axes, width / 2, height / 2, f"only {classes[found[0]]}")
        return
    for label in np.setdiff1d(semantic, [0, IGNORED]):
        regions, _ = ndimage.label(semantic == label, np.ones((3, 3)))
        sizes = np.bincount(regions.flat)[1:]
        for i in np.flatnonzero(sizes >= NAMED * semantic.size) + 1:
            rows, columns = np.nonzero(regions == i)
            # The pixel of the region nearest to its centre: the centre of a ring is outside the ring.
            nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
            _write(axes, columns[nearest], rows[nearest], classes[label])


def _write(axes: Axes, x: float, y: float, text: str) -> None:
    style = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    axes.text(x, y, text, fontsize=7, color="black", ha="center", va="center", bbox=style)
