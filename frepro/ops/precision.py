"""Spectra and scan states are computed in float32 or more, whatever the precision around them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def float32_or_more(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Autocast off on the device of ``x``; a device that has none, as "meta", needs nothing."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
