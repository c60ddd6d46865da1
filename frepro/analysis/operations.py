"""Interception of the operations of ``frepro.ops`` as models call them, whichever kernels implement them."""

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
    """Make models call ``stand_in(name, operation)`` instead of the operations with these names.

    This applies to models created in the context and, if given, to an existing ``network``.
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
