"""Memory of a forward pass."""

import ctypes
import gc
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import timm
import torch
from timm.layers import set_fused_attn

from frepro import processes
from frepro.errors import FreproError
from frepro.models.create import sized
from frepro.store import provenance

MIB = 2**20


def make(model: str, img_size: int) -> torch.nn.Module:
    """Return a model for images of this size."""
    return timm.create_model(model, **sized(model, img_size))


def forward_memory(
    model: str, img_size: int, batch_size: int, device: str, fused_attn: bool = True
) -> dict[str, float]:
    """Return the memory in MiB of a model's weights, and the peak that its forward pass adds (inference, float32).

    On a GPU, this is what torch's allocator handed out. On a CPU, it is the resident memory of a process started for
    this measurement alone: the high-water mark during the pass minus that before it, after a first pass on a small
    image. (If the mark cannot be reset, as outside Linux, temporary memory from creating the model hides the same
    amount.)

    Args:
        fused_attn: Use torch's attention, which computes one tile at a time; otherwise the complete attention matrix is
            in memory. Applies to CPUs only.

    Returns:
        ``weights`` (parameters and buffers) and ``forward``.

    Raises:
        FreproError: There is not enough memory.
    """
    if device != "cpu":
        return _allocated(model, img_size, batch_size, device)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["frepro.models"])  # imported once instead of in each process
    with ProcessPoolExecutor(1, context, processes.end_with) as pool:
        try:
            return pool.submit(_resident, model, img_size, batch_size, fused_attn, torch.get_num_threads()).result()
        except BrokenProcessPool:
            reason = "its process was killed, possibly because memory ran out"
        except (MemoryError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
    raise FreproError(f"{model} at {img_size} pixels: {reason}")


def _weights(network: torch.nn.Module) -> float:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers())) / MIB


def _resident(model: str, img_size: int, batch_size: int, fused_attn: bool, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    set_fused_attn(fused_attn)
    with torch.inference_mode():
        network = make(model, img_size).eval()
        takes_one_size = sized(model, img_size) and model not in provenance.own_models()
        small = make(model, 64).eval() if takes_one_size else network
        small(torch.randn(1, 3, 64, 64))  # warm-up: allocates code, tables and threads
        del small
        images = torch.randn(batch_size, 3, img_size, img_size)
        _reset_high_water()
        before = _high_water()
        network(images)
        return {"weights": _weights(network), "forward": _high_water() - before}


def _high_water() -> float:
    """Return the peak resident memory of this process since the mark was reset, in MiB."""
    import resource  # not available on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def _reset_high_water() -> None:
    """Free unused memory and set the high-water mark to what is resident now, if the system supports it."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _allocated(model: str, img_size: int, batch_size: int, device: str) -> dict[str, float]:
    torch.cuda.empty_cache()
    try:
        with torch.inference_mode():
            network = make(model, img_size).to(device).eval()
            images = torch.randn(batch_size, 3, img_size, img_size, device=device)
            network(images)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            network(images)
            return {
                "weights": _weights(network),
                "forward": (torch.cuda.max_memory_allocated(device) - before) / MIB,
            }
    except torch.OutOfMemoryError as error:
        raise FreproError(f"{model} at {img_size} pixels: {str(error).splitlines()[0]}") from error
