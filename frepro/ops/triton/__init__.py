"""CUDA kernels in Triton, compiled for the device at first use and kept in Triton's cache.

Triton is installed with torch's CUDA builds. Without it, the reference implementations in PyTorch run instead;
``reason()`` returns why the kernels are unavailable, and ``frepro doctor`` prints it. With TRITON_INTERPRET=1 in the
environment, the kernels also take CPU tensors and run one operation at a time in Python: slowly, for tests and
debugging.
"""

import functools
import importlib.util
import os

import torch
from torch import Tensor

from frepro.ops import eager


def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def reason() -> str | None:
    """Return why the kernels cannot be used on this machine; ``None`` if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if is_interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        from frepro.ops.triton.probe import nothing

        nothing[(1,)]()
    except Exception as error:  # causes vary: no compiler for the launcher, no assembler, a device too old or too new
        return f"even an empty kernel fails ({(str(error).strip().splitlines() or [repr(error)])[0]})"
    return None


def obstacle(*tensors: Tensor | None) -> str | None:
    """Return why the kernels do not support these tensors; ``None`` if they do.

    Half precision is supported: it is computed in float32.
    """
    for tensor in tensors:
        if tensor is not None and tensor.device.type == "cpu" and not is_interpreted():
            return "tensors are on cpu, where it runs only with TRITON_INTERPRET=1"
        if tensor is not None and tensor.device.type not in ("cpu", "cuda"):
            return f"tensors are on {tensor.device}"
        if tensor is not None and tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"tensors are {tensor.dtype}"
    return eager.obstacle(*tensors, registered=True) or reason()
