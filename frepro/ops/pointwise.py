"""Operations on each position separately: the linear layer, StarReLU and GELU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu, eager

REVISION = {"pointwise operations": 1}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Apply ``torch.nn.functional.linear``, through oneDNN on AMD processors with AVX-512.

    torch's own implementation calls MKL, which runs its AVX2 code on every AMD processor: at half the speed of oneDNN's
    AVX-512 code, and at about the same speed as oneDNN's AVX2 code. On Intel processors both are equally fast. torch
    itself uses oneDNN for convolutions and in compiled code. (Compilers and autocast select their own implementation.)

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,).
        backend: "torch" or "onednn". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        (..., out).

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    obstacles = {"onednn": _onednn_obstacle(x, weight, bias)}
    if not PREFERS_ONEDNN:
        obstacles = {"torch": None, **obstacles}
    if backends.choose("linear", obstacles, backend) == "onednn":
        # For a weight that is not contiguous, oneDNN falls back to a product that is hundreds of times slower.
        return _product(x, weight.contiguous(), bias)
    return F.linear(x, weight, bias)


def _onednn_obstacle(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Return why oneDNN cannot or need not take these inputs; ``None`` if it can."""
    if not (x.device.type == weight.device.type == "cpu"):
        return f"tensors are on {x.device} and {weight.device}"
    if not (x.dtype == weight.dtype == torch.float32):
        return f"tensors are {x.dtype} and {weight.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast selects its own implementation"
    if unusual := eager.obstacle(x, weight, bias):
        return unusual
    if x.ndim < 2 or not x.numel():
        return "the input is not a batch"
    if misfit := backends.misfit((weight, (len(weight), x.shape[-1])), (bias, (len(weight),))):
        return misfit
    if bias is not None and bias.dtype != torch.float32:
        return f"the bias is {bias.dtype}"
    return None if HAS_ONEDNN else "this build of torch has no oneDNN"


# A rule and not a measurement at start-up: results must not depend on what a noisy machine measured once.
PREFERS_ONEDNN = "AuthenticAMD" in cpu.description() and torch.backends.cpu.get_cpu_capability() == "AVX512"
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# With more rows than this, MKL computes the weight's gradient, a product over all rows, faster than oneDNN.
MOST_ROWS = 1024


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        multiply = F.linear if eager.obstacle_to_gradient(gradient, x, weight) else _product
        dx = dweight = dbias = None
        # In the last product below, rows takes the place of the weight, which must be contiguous; x may be a slice.
        rows, of_rows = (t.reshape(-1, t.shape[-1]).contiguous() for t in (x, gradient))
        if ctx.needs_input_grad[0]:
            dx = multiply(gradient, weight.t(), None)
        if ctx.needs_input_grad[1]:
            is_long = len(rows) > MOST_ROWS
            dweight = of_rows.t() @ rows if is_long else multiply(of_rows.t(), rows.t(), None)
        if ctx.needs_input_grad[2]:
            dbias = of_rows.sum(0)
        return dx, dweight, dbias


def gelu(x: Tensor, *, inplace: bool = False, backend: str | None = None) -> Tensor:
    """Apply GELU, x Phi(x) with the cumulative normal distribution Phi, not its approximation by tanh.

    The CPU kernel computes the gradient only.

    Args:
        x: Any shape.
        inplace: Overwrite ``x`` if no gradient is recorded. A second map as large as a hidden layer's would be memory
            that the system allocates and frees for each image.
        backend: "torch" or "cpu". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    # For half precision, the conversion costs more than the kernel saves.
    obstacle = f"tensors are {x.dtype}" if x.dtype != torch.float32 else eager.obstacle(x) or cpu.obstacle(x)
    is_wanted = x.requires_grad and torch.is_grad_enabled()
    if backends.choose("gelu", {"cpu": obstacle}, backend) == "cpu" and is_wanted:
        from frepro.ops.cpu.spectral import gelu as kernel

        return kernel(x)
    return torch.ops.aten.gelu_(x) if inplace and eager.may_overwrite(x) else F.gelu(x)


def star_relu(x: Tensor, scale: Tensor, bias: Tensor, *, inplace: bool = False, backend: str | None = None) -> Tensor:
    """Apply StarReLU, scale relu(x)^2 + bias ("MetaFormer Baselines for Vision", Yu et al., eq. 8).

    Args:
        x: Any shape.
        scale, bias: One number each, (1,).
        inplace: As in ``gelu``.
        backend: "torch" or "cpu". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    # For half precision, the conversion costs more than the kernel saves.
    obstacle = f"tensors are {x.dtype}" if x.dtype != torch.float32 else cpu.obstacle(x, scale, bias)
    if backends.choose("star_relu", {"cpu": obstacle}, backend) == "cpu":
        from frepro.ops.cpu import spectral

        if inplace and eager.may_overwrite(x) and x.is_contiguous():
            spectral.star_relu_(x, scale, bias)
            return x
        return spectral.star_relu(x, scale, bias)
    return scale * F.relu(x).square() + bias
