"""CUDA kernels in Triton, compiled for the device at first use and kept in Triton's cache.

Triton comes with torch where torch runs on CUDA. Without it everything still works, by the plain torch forms;
``reason()`` says what is in the way, and ``frepro doctor`` prints it. With TRITON_INTERPRET=1 in the environment the
kernels take CPU tensors too and run one operation at a time in Python: slowly, for tests and debugging.
"""

import functools
import importlib.util
import os

import torch
from torch import Tensor

from frepro.ops import eager


def is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def reason() -> str | None:
    """Why the kernels cannot be used on this machine; none where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if is_interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        from frepro.ops.triton.probe import nothing

        nothing[(1,)]()
    except Exception as error:  # of many kinds: no compiler for the launcher, no assembler, a device too old or new
        return f"a kernel that does nothing fails ({(str(error).strip().splitlines() or [repr(error)])[0]})"
    return None


def obstacle(*tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors; none where they can. Half precisions are computed in float32."""
    for tensor in tensors:
        if tensor is not None and tensor.device.type == "cpu" and not is_interpreted():
            return "tensors are on cpu, where it runs with TRITON_INTERPRET=1 alone"
        if tensor is not None and tensor.device.type not in ("cpu", "cuda"):
            return f"tensors are on {tensor.device}"
        if tensor is not None and tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"tensors are {tensor.dtype}"
    return eager.obstacle(*tensors, registered=True) or reason()
