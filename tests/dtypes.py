"""In what precision Fourier transforms run, whoever calls them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Transforms(TorchDispatchMode):
    """Inside a ``with`` block, collects the dtypes that Fourier transforms see in ``dtypes``."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_fft_" in function.name():
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))
