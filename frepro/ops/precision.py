"""Precision of spectra and scan states: float32 or wider, whatever the surrounding precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def float32_or_more(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged if its dtype is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast on the device of ``x``; a null context on the meta device.

    The meta device has no autocast. ``torch.amp.is_autocast_available`` would be the general test, but torch.compile
    cannot trace it in torch 2.11.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
