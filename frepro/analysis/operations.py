"""Look at the operations of ``frepro.ops`` as models call them, whichever kernels stand behind them."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from frepro import ops


@contextmanager
def replaced(
    names: Iterable[str], stand_in: Callable[[str, Callable], Callable], network: nn.Module | None = None
) -> Iterator[None]:
    """Models call ``stand_in(name, operation)`` where they would call the operation of that name.

    This holds for models made inside and, given as ``network``, for one that was made before.
    """
    holders: list[Any] = [module for path, module in sys.modules.items() if path.startswith("frepro.models.")]
    holders += network.modules() if network is not None else []
    operations = {getattr(ops, name): name for name in names}
    found = [
        (holder, attribute, value)
        for holder in holders
        for attribute, value in list(vars(holder).items())
        if callable(value) and value.__hash__ is not None and value in operations
    ]
    try:
        for holder, attribute, operation in found:
            setattr(holder, attribute, stand_in(operations[operation], operation))
        yield
    finally:
        for holder, attribute, operation in found:
            setattr(holder, attribute, operation)
