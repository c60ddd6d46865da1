"""Tests for ordinary eager calls, made before every fast path.

A fast path may overwrite its input, call a compiled kernel, or skip a module's ``forward``. That is wrong if something
intercepts the call: a tracer or exporter that records torch's own operators, a function transform, forward-mode
derivatives, or a mode or tensor subclass that redefines operators. In these cases the reference implementation runs,
which is made of torch's own operators and works with all of them.
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
    """Return why a call is not an ordinary eager one; ``None`` if it is.

    Args:
        tensors: Inputs of the fast path, parameters included.
        registered: The fast path is one operator registered with torch, with its shapes, gradient and FLOPs.
            ``torch.compile``, dispatch modes such as ``FlopCounterMode``, and fake tensors support such an operator.
    """
    if torch.compiler.is_compiling():
        if is_exporting():
            return "an exported graph holds only torch's own operators"
        if not registered:
            return "compilers select their own implementation"
    elif torch._C._is_tracing():
        return "a traced graph holds only torch's own operators"
    elif not registered and _has_modes():
        return "a torch mode intercepts each operator"
    if forward_ad._current_level >= 0:  # torch would silently treat the derivative as zero
        return "it has no forward-mode derivative"
    if torch._C._are_functorch_transforms_active():
        return "it does not support function transforms such as vmap"
    for tensor in tensors:
        kind = type(tensor)
        if not (kind is Tensor or kind is Parameter or tensor is None or (registered and kind is FakeTensor)):
            return f"a tensor is an instance of {kind.__name__}"
    return None


def is_graphed() -> bool:
    """Return whether torch.compile, torch.export, torch.jit.trace or torch.fx is recording the call in a graph."""
    return torch.compiler.is_compiling() or torch._C._is_tracing() or is_fx_symbolic_tracing()


def is_traced() -> bool:
    """Return whether torch.jit.trace is recording. (torch 2.11 cannot compile the question itself.)"""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def is_exporting() -> bool:
    """Return whether ``torch.export`` is recording. (In torch 2.11, ``is_exporting()`` is true of compile, too.)"""
    return torch.compiler.is_compiling() and torch.compiler._is_exporting_flag


def are_open(*sizes: int) -> bool:
    """Return whether a graph is recorded in which one of the sizes is dynamic; computing with it would fix it."""
    return torch.compiler.is_compiling() and not all(has_static_value(size) for size in sizes)


def is_same_size(size: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two sizes are equal; ``False`` if one is dynamic in an exported graph, which asking would fix."""
    if is_exporting():
        return all(statically_known_true(a == b) for a, b in zip(size, other, strict=True))
    return tuple(size) == tuple(other)


def _has_modes() -> bool:
    """Return whether a torch-function or dispatch mode is active, other than a default device for new tensors."""
    if torch._C._len_torch_dispatch_stack():
        return True
    if not (depth := torch._C._len_torch_function_stack()):
        return False
    return any(type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in range(depth))


def may_overwrite(x: Tensor) -> bool:
    """Return whether an operation may overwrite ``x``, which its caller no longer needs.

    It may if no gradient is recorded and the call is an ordinary eager one.
    """
    return not torch.is_grad_enabled() and obstacle(x) is None


def obstacle_to_gradient(dy: Tensor, *tensors: Tensor | None, registered: bool = False) -> str | None:
    """Return ``obstacle`` for a backward pass: an ordinary call may have a backward pass that is not ordinary.

    Args:
        dy: Gradient of the call's result.
        tensors: The other inputs of the backward pass.
        registered: As in ``obstacle``.
    """
    if torch._C._functorch.is_legacy_batchedtensor(dy):  # made by torch.autograd.grad(is_grads_batched=True)
        return "its gradients are batched by vmap"
    return obstacle(dy, *tensors, registered=registered)


def plain_gradients(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor
) -> tuple[Tensor | None, ...] | None:
    """Return the gradients of a kernel's inputs computed through its reference implementation.

    This is for backward passes that the kernel's own backward does not support, such as differentiable ones.

    Args:
        plain: The reference implementation, which takes all ``inputs``.
        inputs: The kernel's inputs as they were saved for the backward pass.
        dy: Gradient of the kernel's result.

    Returns:
        One gradient for each input, ``None`` for inputs that need none; or ``None`` in place of the tuple if the
        kernel's own backward can run.
    """
    if type(dy) is not Tensor:  # a compiler traces forward and backward with gradients enabled that nobody needs
        return None
    is_recorded = torch.is_grad_enabled()
    if not is_recorded and obstacle_to_gradient(dy, registered=True) is None:
        return None
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(plain(*inputs), wanted, dy, create_graph=is_recorded))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)
