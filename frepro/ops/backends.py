"""Selection of the implementation (backend) of an operation.

Each operation has a reference implementation in plain PyTorch, "torch", and may have faster, equivalent ones: "cpu" (C
kernels), "onednn" (the linear layer on a CPU), "matmul" (matrix products instead of a transform), "triton" (CUDA) and
"mamba_ssm" (CUDA, the scan only). In an ordinary eager call (``eager``) the fastest backend that supports the inputs
runs. The argument ``backend`` of an operation or the environment variable ``FREPRO_BACKEND`` forces one.
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
    """Return the name of the backend to run an operation with.

    Args:
        operation: Name of the operation, for messages.
        obstacles: For each fast backend of the operation, fastest first: why it does not support the inputs, or
            ``None`` if it does. "torch" is among them if it is not the slowest.
        asked: The backend that the caller forces; it takes precedence over the environment variable, which applies only
            to operations that have the backend.

    Raises:
        ValueError: The requested backend is unknown or does not support the inputs.
    """
    forced = asked or os.environ.get("FREPRO_BACKEND")
    if not forced or (not asked and forced in NAMES and forced not in ("torch", *obstacles)):
        return next((name for name, obstacle in obstacles.items() if obstacle is None), "torch")
    if forced not in ("torch", *obstacles):
        known = ", ".join({"torch": None, **obstacles})
        raise ValueError(f"unknown backend {forced!r} of {operation}: choose from {known}")
    if obstacles.get(forced):
        raise ValueError(f"backend {forced!r} cannot run {operation}: {obstacles[forced]}")
    return forced


def misfit(*expected: tuple[Tensor | None, tuple[int, ...]]) -> str | None:
    """Return a message about the first tensor that lacks its expected shape; ``None`` if all are as expected.

    Unlike torch's operators, the kernels do not check shapes.
    """
    for tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            return f"a tensor has the shape {tuple(tensor.shape)} and not {tuple(shape)}"
    return None


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Force one backend inside the context, as the environment variable does, for all operations that have it."""
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
    """Return, for each fast backend, why it cannot be used on this machine; ``None`` if it can."""
    return {"cpu": cpu.reason(), "triton": triton.reason(), "mamba_ssm": _missing("mamba_ssm")}


def _missing(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None if torch.cuda.is_available() else "no CUDA device"
