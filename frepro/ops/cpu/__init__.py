"""CPU kernels in C, compiled for this machine at first use and kept in the user's cache.

They are compiled for the instruction set of this processor, or for the one in the environment variable
``FREPRO_MARCH``, a value of the compiler's option ``-march`` such as ``x86-64-v3`` (AVX2).

Without a compiler, the reference implementations in PyTorch run instead; ``reason()`` returns why the kernels are
unavailable, and ``frepro doctor`` prints it. Kernels use torch's number of threads. They share torch's thread pool if
both use the same OpenMP library.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from frepro.ops import eager
from frepro.ops.cpu import cache

SOURCE = Path(__file__).parent / "kernels.c"
# Products and sums may be fused. Nothing else may be reordered: the exponential rounds by adding and then subtracting a
# large number.
FLAGS = (
    *("-std=c11", "-O3", "-shared", "-fPIC"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)
# Flags that a compiler may not support; they are dropped one by one, the last one first.
OPTIONAL_FLAGS = ("-march=native", "-fopenmp")


def _flags() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the required and the optional flags. An instruction set from the environment is required."""
    march = os.environ.get("FREPRO_MARCH")
    return ((*FLAGS, f"-march={march}"), OPTIONAL_FLAGS[1:]) if march else (FLAGS, OPTIONAL_FLAGS)


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        OSError: There is no compiler, it fails, the processor lacks the requested instruction set, or the cache cannot
            be trusted; the message says which.
    """
    kernels = _built()
    kernels.instruction_set.restype = ctypes.c_char_p
    if kernels.instruction_set() is None:
        asked = os.environ.get("FREPRO_MARCH")
        raise OSError(f"this processor lacks the instruction set of FREPRO_MARCH={asked}: unset it or choose another")
    return kernels


def _built() -> ctypes.CDLL:
    """Return the library from the cache, compiling it into the cache first if necessary."""
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        raise OSError("no C compiler (cc, gcc or clang) on the path")
    flags, optional = _flags()
    parts = (SOURCE.read_text(), *flags, *optional, compiler, description())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    build = functools.partial(_compile, compiler, flags, optional)
    return cache.load(f"kernels-{key}.so", build, f"the CPU kernels with {compiler}")


def _compile(compiler: str, flags: tuple[str, ...], optional: tuple[str, ...], target: Path) -> None:
    for count in range(len(optional), -1, -1):
        command = [*shlex.split(compiler), *flags, *optional[:count], "-o", str(target), str(SOURCE), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OSError(f"{compiler} did not run: {error}") from error
        if done.returncode == 0:
            return
    raise OSError(f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}")


def description() -> str:
    """Return a description of the processor, on which compiled code depends.

    Machines with different processors may share a home directory.
    """
    kept = ("flags", "Features", "model name", "vendor_id")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(kept)}))
    except OSError:
        return platform.processor() + platform.machine()


def instruction_set() -> str | None:
    """Return the instruction set of the compiled kernels, such as "AVX2"; ``None`` if they cannot be used."""
    return None if reason() else library().instruction_set().decode()


@torch.compiler.assume_constant_result  # otherwise torch.compile traces into the search for a compiler
def reason() -> str | None:
    """Return why the kernels cannot be used on this machine; ``None`` if they can."""
    return _reason()


@functools.cache
def _reason() -> str | None:
    try:
        library()
    except OSError as error:
        return str(error)
    return None


def obstacle(*tensors: Tensor | None) -> str | None:
    """Return why the kernels do not support these tensors; ``None`` if they do.

    Half precision is supported: it is computed in float32.
    """
    for tensor in tensors:
        if tensor is not None and tensor.device.type not in ("cpu", "meta"):
            return f"tensors are on {tensor.device}"
        if tensor is not None and tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"tensors are {tensor.dtype}"
    return eager.obstacle(*tensors, registered=True) or reason()


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's data; the null pointer for ``None``."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def call(kernel: str, *arguments: object) -> None:
    """Call a kernel with torch's number of threads.

    Raises:
        torch.OutOfMemoryError: The kernel could not allocate its working memory.
    """
    if getattr(library(), kernel)(*arguments, ctypes.c_int32(torch.get_num_threads())):
        raise torch.OutOfMemoryError(f"the CPU kernel {kernel} could not allocate its working memory")
