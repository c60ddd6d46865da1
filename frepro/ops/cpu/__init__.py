"""CPU kernels in C, compiled for this machine at first use and kept in the user's cache.

They are compiled for the instruction set of this processor, or for the one in the environment variable
``FREPRO_MARCH``, a value of the compiler's option ``-march`` such as ``x86-64-v3`` (AVX2).

Without a compiler everything still works, by the plain torch forms; ``reason()`` says what is in the way, and
``frepro doctor`` prints it. Threads are those of torch: where both use the same OpenMP library they share its pool.
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
# Products and sums may fuse. Nothing else may be reordered: the exponential rounds by adding and taking away a number.
FLAGS = (
    *("-std=c11", "-O3", "-shared", "-fPIC"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)
# What a compiler may lack is left out, last first.
OPTIONAL_FLAGS = ("-march=native", "-fopenmp")


def _flags() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Flags, and those that a compiler may lack. An instruction set that was asked for is not left out."""
    march = os.environ.get("FREPRO_MARCH")
    return ((*FLAGS, f"-march={march}"), OPTIONAL_FLAGS[1:]) if march else (FLAGS, OPTIONAL_FLAGS)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        OSError: There is no compiler, it fails, the processor lacks the instruction set that was asked for, or the
            cache is not to be trusted; the message says which.
    """
    kernels = _built()
    kernels.instruction_set.restype = ctypes.c_char_p
    if kernels.instruction_set() is None:
        asked = os.environ.get("FREPRO_MARCH")
        raise OSError(f"this processor lacks the instruction set of FREPRO_MARCH={asked}: unset it or take another")
    return kernels


def _built() -> ctypes.CDLL:
    """From the cache, or else compiled into it."""
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
    """The processor that compiled code depends on: a home directory may be shared by machines of several kinds."""
    kept = ("flags", "Features", "model name", "vendor_id")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(kept)}))
    except OSError:
        return platform.processor() + platform.machine()


def instruction_set() -> str | None:
    """What the kernels were compiled for, such as "AVX2"; none where they cannot be used."""
    return None if reason() else library().instruction_set().decode()


@torch.compiler.assume_constant_result  # or torch.compile traces into the search for a compiler
def reason() -> str | None:
    """Why the kernels cannot be used on this machine; none where they can."""
    return _reason()


@functools.cache
def _reason() -> str | None:
    try:
        library()
    except OSError as error:
        return str(error)
    return None


def obstacle(*tensors: Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors; none where they can. Half precisions are computed in float32."""
    for tensor in tensors:
        if tensor is not None and tensor.device.type not in ("cpu", "meta"):
            return f"tensors are on {tensor.device}"
        if tensor is not None and tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"tensors are {tensor.dtype}"
    return eager.obstacle(*tensors, registered=True) or reason()


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def call(kernel: str, *arguments: object) -> None:
    """Call a kernel with torch's number of threads.

    Raises:
        torch.OutOfMemoryError: The kernel found no memory for its work.
    """
    if getattr(library(), kernel)(*arguments, ctypes.c_int32(torch.get_num_threads())):
        raise torch.OutOfMemoryError(f"the CPU kernel {kernel} found no memory")
