"""What the official models answer: logits recorded from the authors' own code, at weights that anyone can rebuild.

``data/official_logits.json`` holds, for each model, the official tensor names and shapes, the number of parameters, and
for each of two images the first 16 logits with mean, standard deviation and index of the largest of all. The code was
run on a CPU in float32 with the weights and images made below, which need integer arithmetic alone.
"""

import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@cache
def _records() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "official_logits.json").read_text())


def _noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on ``name`` and position alone: a hash of 32 bits, scaled."""
    h = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    h ^= h >> np.uint32(16)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    h *= np.uint32(3266489917)
    h ^= h >> np.uint32(16)
    return (h / 2.0**31 - 1).astype(np.float32).reshape(shape)


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise, leaf = _noise(name, shape), name.rsplit(".", 1)[-1]
    if leaf in ("A_log", "A_b_log"):
        return np.log(np.arange(1, shape[1] + 1, dtype=np.float32)) + np.float32(0.1) * noise
    if name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        return noise - 4
    if leaf == "complex_weights" or leaf.startswith("filter_"):
        return noise
    if leaf in ("cls_token", "pos_embed", "w1", "w2", "b1", "b2"):
        return np.float32(0.2) * noise
    if leaf in ("sup_c", "stack"):
        return 1 + np.float32(0.5) * noise
    if leaf == "weight" and len(shape) >= 2:
        return noise * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    if leaf == "bias":
        return np.float32(0.1) * noise
    return 1 + np.float32(0.1) * noise


def weights(name: str) -> dict[str, Tensor]:
    """The state dict, under official names, that model ``name`` had; SPANet's fixed masks (``.sps.``) are left out."""
    shapes = _records()[name]["state_dict"]
    return {key: torch.from_numpy(_weight(key, tuple(shape))) for key, shape in shapes.items() if ".sps." not in key}


def images() -> Tensor:
    """The two images, (2, 3, 224, 224)."""
    return torch.from_numpy(_noise("input224", (2, 3, 224, 224)) * np.float32(math.sqrt(3)))


def expected(name: str) -> dict[str, Any]:
    """What was recorded: "params", and tensors "logits" (2, 16), "mean", "std" and "argmax" (2,) each."""
    record = _records()[name]
    values = {key: torch.tensor(record[key]) for key in ("mean", "std", "argmax")}
    return {"params": record["params"], "logits": torch.tensor(record["logits_0_to_15"]), **values}
