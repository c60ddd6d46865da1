"""Weights, gradients and optimizer state in parts, one for each process: FSDP by torch's ``fully_shard``.

For networks that leave no room on one GPU. The weights of a block are whole only while it computes. What is computed is
what one process computes, up to rounding, as with copies of the network (DDP).
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

BLOCKS = ("Block", "Bottleneck")  # ends of the names of classes, ours and timm's, that are whole one after the other


def shard(network: nn.Module, device: torch.device, precision: str) -> None:
    """Leave each process its part of every weight, before there is an optimizer; all processes call it.

    Raises:
        FreproError: There is one process, or float16, whose loss scaling does not know of parts.
    """
    if precision == "fp16":
        raise FreproError("--fsdp does not go with precision fp16: leave it out, or use a recipe with bf16")
    if not dist.is_initialized():
        raise FreproError("--fsdp shares weights between processes: start several with torchrun, or leave it out")
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
    """The tensor put together from its parts, which takes all processes; one that is in no parts as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where ``like`` is in parts and of the same shape; else all of it."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


@contextmanager
def unsharded(network: nn.Module) -> Iterator[None]:
    """Inside, all weights are whole, so that processes may make different numbers of forward passes."""
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
