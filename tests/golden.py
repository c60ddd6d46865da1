"""Logits of the official models under weights that anyone can rebuild, ``data/official_logits.json``.

The file was made by the authors' own code (CPU, float32, evaluation mode). For each model it has the names and shapes
of the official state dict, the number of parameters, and the first 16 values, mean, standard deviation and argmax of
two rows of logits. Weights and images are integer arithmetic on a tensor's name, the same on every platform.
"""

import csv
import json
import os
import zlib
from functools import cache
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from frepro import load_official

DATA = Path(__file__).parent / "data"
FILE = DATA / "official_logits.json"
ONE_FIFTH = {"cls_token", "pos_embed", "w1", "w2", "b1", "b2"}


@cache
def records() -> dict[str, dict[str, Any]]:
    """What the file holds for each model."""
    return json.loads(FILE.read_text())


@cache
def official_sizes() -> dict[str, dict[str, float]]:
    """Return what is known of the size of each official model, ``data/official_sizes.csv``, at 224 pixels.

    - ``params``: parameters of the official code, counted; of the models of Vim-F's paper, which differ from its code
      in their patches alone, worked out. ``params_m`` and ``macs_g``: millions of parameters and billions of
      multiply-accumulates that fvcore counts of it.
    - ``printed_params_m`` and ``printed_macs_g``: the same as papers and READMEs print them. Where a different value is
      counted, it is in ``counted_params_m`` or ``counted_macs_g``; the book's pages say why, as far as that is known.
    """
    with (DATA / "official_sizes.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["model"]: {key: float(text) for key, text in row.items() if text and key not in ("model", "note")}
            for row in csv.DictReader(file)
        }


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 numbers in [-1, 1): each element's index, moved by the checksum of the name, through an integer hash."""
    h = np.arange(prod(shape), dtype=np.uint32)  # array arithmetic in uint32 wraps around
    h = h * np.uint32(2654435761) + np.uint32(zlib.crc32(name.encode()))
    h ^= h >> np.uint32(16)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    h *= np.uint32(3266489917)
    h ^= h >> np.uint32(16)
    return (h.astype(np.float64) / 2**31 - 1).astype(np.float32).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Value of the tensor with this official name."""
    u = uniform(name, shape)
    leaf = name.rpartition(".")[2]
    if leaf in ("A_log", "A_b_log"):
        value = np.log(np.arange(1, shape[1] + 1, dtype=np.float32)) + np.float32(0.1) * u
    elif name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        value = u - 4
    elif leaf == "complex_weights" or leaf.startswith("filter_"):
        value = u
    elif leaf in ONE_FIFTH:
        value = np.float32(0.2) * u
    elif leaf in ("sup_c", "stack"):
        value = 1 + np.float32(0.5) * u
    elif leaf == "weight" and len(shape) >= 2:
        value = u * np.float32(np.sqrt(3 / prod(shape[1:])))
    elif leaf == "bias":
        value = np.float32(0.1) * u
    else:
        value = 1 + np.float32(0.1) * u
    return torch.from_numpy(value)


def images() -> Tensor:
    """The two input images, (2, 3, 224, 224)."""
    return torch.from_numpy(uniform("input224", (2, 3, 224, 224)) * np.float32(np.sqrt(3)))


def state_dict(name: str) -> dict[str, Tensor]:
    """Official state dict of the model ``name``, without the masks of SPANet, which are fixed and not filled."""
    shapes = records()[name]["state_dict"]
    return {key: weight(key, tuple(shape)) for key, shape in shapes.items() if ".sps." not in key}


def assert_official(name: str, atol: float = 2e-4) -> None:
    """The model ``name`` takes the official weights as they are and gives the official logits with them.

    By the fast operations and, in a second pass, by the plain forms.
    """
    record = records()[name]
    model = load_official(name, state_dict(name))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == record["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    for environment in ({}, {"FREPRO_BACKEND": "torch"}):
        with torch.no_grad(), mock.patch.dict(os.environ, environment):
            logits = model(images())
        torch.testing.assert_close(logits[:, :16], torch.tensor(record["logits_0_to_15"]), rtol=0, atol=atol)
        torch.testing.assert_close(logits.mean(dim=1), torch.tensor(record["mean"]), rtol=0, atol=atol)
        torch.testing.assert_close(logits.std(dim=1), torch.tensor(record["std"]), rtol=0, atol=atol)
        assert logits.argmax(dim=1).tolist() == record["argmax"]
