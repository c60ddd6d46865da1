"""Detectors and segmenters that train in a second: the published recipes, on tiny backbones and scenes."""

import dataclasses
from typing import Any

from frepro import recipes
from frepro.data import Source, locate
from frepro.training.runs import Run, Start

BACKBONE = {"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 32]}
DETECTOR = {
    "pyramid": 16,
    "width": 32,
    "convs": 1,
    "rois": 8,
    "proposals": 20,
    "anchors": 32,
    "detections": 5,
    "samples": 1,
    "smallest_anchor": 12,
}
SEGMENTER = {"pyramid": 16}

# The recipe of each network, and a backbone.
WHOLES = {
    "retinanet": ("spanet-retinanet", "spanet_small"),
    "mask_rcnn": ("spanet-mask_rcnn", "spanet_small"),
    "cascade_mask_rcnn": ("spanetv2-cascade_mask_rcnn", "spanetv2_s18_pure"),
    "semantic_fpn": ("dfformer-semantic_fpn", "dfformer_s18"),
    "upernet": ("spanetv2-upernet", "spanetv2_s18_pure"),
}

SHARED = {
    "img_size": 64,
    "batch_size": 4,
    "warmup_updates": 1,
    "by_model": {},
    "samples": (8, 4),
    "model_args": BACKBONE,
}
OF_TASK = {
    # Four updates, the last two with a tenth of the rate.
    "detection": {"epochs": 2, "milestones": (1,), "min_size": (64,), "max_size": 96, "detector_args": DETECTOR},
    # Three, which end amid the second epoch.
    "segmentation": {"updates": 3, "crop_size": 64, "score_every": 1, "segmenter_args": SEGMENTER},
}


def whole(
    network: str = "mask_rcnn", source: Source | None = None, seed: int = 0, start: Start | None = None, **changes: Any
) -> Run:
    """A run of a network, with changes to its recipe."""
    name, model = WHOLES[network]
    recipe = recipes.load(name, "paper")
    windows = {"window": 48, "stride": 32} if network == "upernet" else {}
    recipe = dataclasses.replace(recipe, **SHARED | OF_TASK[recipe.task] | windows | changes)
    return Run(model, recipe, "smoke", source or locate(None, recipe.task), seed, start=start)
