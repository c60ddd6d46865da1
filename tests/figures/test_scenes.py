"""A figure of scenes shows the boxes and masks of the scenes that it was given."""

import numpy as np

from frepro import figures
from frepro.data.scenes import CLASSES, SEMANTIC_CLASSES, Scenes


def test_scenes():
    dataset = Scenes("train", 64, length=3)
    images = list(dataset)
    figure = figures.scenes(images, CLASSES, SEMANTIC_CLASSES)
    grid = np.array(figure.axes).reshape(3, 3)
    for image, picture, objects, semantic in zip(images, *grid, strict=True):
        assert np.array_equal(picture.images[0].get_array(), np.asarray(image.image))
        assert [text.get_text() for text in objects.texts] == [CLASSES[label] for label in image.labels]
        corners = [[*patch.get_xy(), patch.get_width(), patch.get_height()] for patch in objects.patches]
        boxes = image.boxes.numpy()
        assert np.array_equal(np.array(corners), np.c_[boxes[:, :2] - 0.5, boxes[:, 2:] - boxes[:, :2]])
        overlays = np.stack([overlay.get_array()[..., 3] > 0 for overlay in objects.images[1:]])
        assert np.array_equal(overlays, image.masks.numpy())
        assert np.array_equal(np.ma.getmaskarray(semantic.images[0].get_array()), image.semantic.numpy() == 255)
    assert len(figures.scenes(images, CLASSES).axes) == 6
