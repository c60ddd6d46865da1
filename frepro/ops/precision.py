"""Spectra and scan states are computed in float32 or more, whatever the precision around them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def float32_or_more(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context with autocast off on the device of ``x``; the meta device, which has none, needs nothing.

    ``torch.amp.is_autocast_available`` would ask in general, but torch.compile cannot trace it in torch 2.11.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
