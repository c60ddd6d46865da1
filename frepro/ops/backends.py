"""Which implementation of an operation runs.

Each operation has a plain form in torch, its reference, and may have faster equals: "cpu" (C kernels), "onednn" (the
linear layer on a CPU), "matmul" (products for a transform), "triton" (CUDA) and "mamba_ssm" (CUDA, the scan alone).
In an ordinary eager call (``eager``) the fastest one that can take the inputs is picked. The argument ``backend`` of an
operation or the environment variable ``FREPRO_BACKEND`` forces one.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from frepro.ops import cpu, triton

NAMES = ("torch", "cpu", "onednn", "matmul", "triton", "mamba_ssm")


def choose(operation: str, obstacles: Mapping[str, str | None], asked: str | None = None) -> str:
    """The backend to run an operation with.

    Args:
        operation: Its name, for messages.
        obstacles: For each fast backend that the operation has, fastest first: why it cannot take the inputs, or none.
            "torch" stands among them where it is not the slowest.
        asked: What the caller forces. The environment variable forces only operations that have the backend.

    Raises:
        ValueError: An unknown backend is asked for, or one that cannot take the inputs.
    """
    forced = asked or os.environ.get("FREPRO_BACKEND")
    if not forced or (not asked and forced in NAMES and forced not in ("torch", *obstacles)):
        return next((name for name, obstacle in obstacles.items() if obstacle is None), "torch")
    if forced not in ("torch", *obstacles):
        raise ValueError(f"unknown backend {forced!r} of {operation}; there are {list({'torch': None, **obstacles})}")
    if obstacles.get(forced):
        raise ValueError(f"backend {forced!r} cannot run {operation}: {obstacles[forced]}")
    return forced


def misfit(*expected: tuple[Tensor | None, tuple[int, ...]]) -> str | None:
    """Which tensor has not the shape it should have; none where all have. Kernels trust shapes; torch looks at them."""
    for tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            return f"a tensor is {tuple(tensor.shape)} and not {tuple(shape)}"
    return None


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Force one backend for a while, as the environment variable does, on all operations that have it."""
    before = os.environ.get("FREPRO_BACKEND")
    os.environ["FREPRO_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["FREPRO_BACKEND"]
        else:
            os.environ["FREPRO_BACKEND"] = before


def reasons() -> dict[str, str | None]:
    """For each fast backend, why it cannot be used on this machine; none where it can."""
    return {"cpu": cpu.reason(), "triton": triton.reason(), "mamba_ssm": _missing("mamba_ssm")}


def _missing(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None if torch.cuda.is_available() else "no CUDA device"
