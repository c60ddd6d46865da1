"""Whether a call is an ordinary eager one: the question that every fast path asks before it runs.

A fast path may write over its input, call a compiled kernel, or leave a module's ``forward`` out. None of that is right
where something stands between the call and its numbers: a tracer or exporter that records torch's own operators, a
transform of functions, forward-mode derivatives, a mode or a tensor subclass that gives operators a meaning of its own.
There the plain form in torch runs, which all of these understand.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.fx.experimental.symbolic_shapes import has_static_value, statically_known_true
from torch.nn import Parameter
from torch.utils._device import DeviceContext


def obstacle(*tensors: Tensor | None, registered: bool = False) -> str | None:
    """Why a call is no ordinary eager one; none where it is.

    Args:
        tensors: What the fast path would take, parameters included.
        registered: The fast path is one operator registered with torch, with its shapes, gradient and cost:
            ``torch.compile``, dispatch modes such as ``FlopCounterMode``, and fake tensors take it as it is.
    """
    if torch.compiler.is_compiling():
        if is_exporting():
            return "an exported graph holds torch's own operators alone"
        if not registered:
            return "compilers choose for themselves"
    elif torch._C._is_tracing():
        return "a traced graph holds torch's own operators alone"
    elif not registered and _has_modes():
        return "a mode of torch looks at each operator"
    if forward_ad._current_level >= 0:  # torch would take the derivative for zero and not say so
        return "it has no forward-mode derivative"
    if torch._C._are_functorch_transforms_active():
        return "it has no rule for transforms of functions, as vmap"
    for tensor in tensors:
        kind = type(tensor)
        if not (kind is Tensor or kind is Parameter or tensor is None or (registered and kind is FakeTensor)):
            return f"a tensor is of the class {kind.__name__}"
    return None


def is_graphed() -> bool:
    """Whether a graph is being made of the call, by ``torch.compile``, export, ``torch.jit.trace`` or ``torch.fx``."""
    return torch.compiler.is_compiling() or torch._C._is_tracing() or is_fx_symbolic_tracing()


def is_exporting() -> bool:
    """Whether ``torch.export`` makes a graph of the call; ``torch.compiler``'s is true of compile too in torch 2.11."""
    return torch.compiler.is_compiling() and torch.compiler._is_exporting_flag


def are_open(*sizes: int) -> bool:
    """Whether a graph is being made that leaves one of the sizes open: to count with it would fix it."""
    return torch.compiler.is_compiling() and not all(has_static_value(size) for size in sizes)


def is_same_size(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are equal; no where an exported graph leaves one open, which asking would fix."""
    if is_exporting():
        return all(statically_known_true(a == b) for a, b in zip(size, other, strict=True))
    return tuple(size) == tuple(other)


def _has_modes() -> bool:
    """Whether a mode for torch functions or operators is active; a default device for new tensors is none."""
    if torch._C._len_torch_dispatch_stack():
        return True
    if not (depth := torch._C._len_torch_function_stack()):
        return False
    return any(type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in range(depth))


def may_overwrite(x: Tensor) -> bool:
    """Whether an operation may write over ``x``, which its caller gives away: no gradient needs it, nobody records."""
    return not torch.is_grad_enabled() and obstacle(x) is None


def obstacle_to_gradient(dy: Tensor, *tensors: Tensor | None, registered: bool = False) -> str | None:
    """``obstacle`` of a way back: a call that was ordinary may have a gradient that is not.

    Args:
        dy: Gradient of what the call gave.
        tensors: What else the way back takes.
        registered: As in ``obstacle``.
    """
    if torch._C._functorch.is_legacy_batchedtensor(dy):  # by torch.autograd.grad(is_grads_batched=True)
        return "it is one of many gradients, by vmap"
    return obstacle(dy, *tensors, registered=registered)


def plain_gradients(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> tuple[Tensor | None, ...] | None:
    """Gradients of a kernel's inputs by its plain form, where the kernel's own way back would not do; else none.

    Args:
        plain: The plain form, of all ``inputs``.
        inputs: What the kernel took, as it was saved for the way back.
        dy: Gradient of what the kernel gave.
    """
    if type(dy) is not Tensor:  # a compiler draws up both ways, with gradients recorded that nobody wants
        return None
    is_recorded = torch.is_grad_enabled()
    if not is_recorded and obstacle_to_gradient(dy, registered=True) is None:
        return None
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(plain(*inputs), wanted, dy, create_graph=is_recorded))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)
