"""Weights, gradients and optimizer state sharded across processes: FSDP by torch's ``fully_shard``.

This is for networks that do not fit on one GPU. The weights of a block are gathered only while it computes. Up to
rounding, the results are those of a single process, as with copies of the network (DDP).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from frepro.errors import FreproError

__all__ = ["full_tensor", "is_sharded", "placed", "shard", "unsharded"]

BLOCKS = ("Block", "Bottleneck")  # suffixes of the classes, ours and timm's, whose weights are gathered together


def shard(network: nn.Module, device: torch.device, precision: str) -> None:
    """Shard every weight across the processes. All processes must call it, before the optimizer is created.

    Raises:
        FreproError: There is only one process, or the precision is float16, whose loss scaling does not support shards.
    """
    if precision == "fp16":
        raise FreproError("--fsdp does not support precision fp16: leave out --fsdp, or use a recipe with bf16")
    if not dist.is_initialized():
        raise FreproError("--fsdp shards weights across processes: start several with torchrun, or leave out --fsdp")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in list(_blocks(network)):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child).__name__.endswith(BLOCKS):
            yield child
        else:
            yield from _blocks(child)


def is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, for which all processes must call this; return any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor if ``like`` is sharded and has its shape, else the whole tensor."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


@contextmanager
def unsharded(network: nn.Module) -> Iterator[None]:
    """Keep all weights gathered in this context, so that processes may run different numbers of forward passes."""
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not network, recurse=False)
