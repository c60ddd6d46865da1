"""What is an ordinary eager call, and that operations are right in those that are not."""

from contextlib import ExitStack, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from frepro.ops import causal_conv, depthwise_conv, eager, gelu, global_filter, linear, pointwise, star_relu
from tests.compiler import needs_compiler


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(pointwise, "PREFERS_ONEDNN", True)


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Looking(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Own(nn.Parameter):
    """A parameter with a meaning of its own, as those of quantisers are."""


TRANSFORMS = {
    "traced": lambda f: torch.jit.trace(f, torch.ones(3), check_trace=False),
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2, 3)),
    "grad": lambda f: torch.func.grad(f)(torch.ones(3)),
    "jvp": lambda f: torch.func.jvp(f, (torch.ones(3),), (torch.ones(3),)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_a_transform_no_call_is_ordinary(name):
    heard = []

    def function(x: Tensor) -> Tensor:
        heard.extend([eager.obstacle(x), eager.obstacle(x, registered=True)])
        return (x * x).sum()

    TRANSFORMS[name](function)
    assert None not in heard


def test_compiled_calls_take_operators_registered_with_torch_and_exported_ones_none():
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 1 if eager.obstacle(x) else x
            return x + 10 if eager.obstacle(x, registered=True) else x

    zero = torch.zeros(3)
    assert torch.compile(Asking(), backend="eager", fullgraph=True)(zero).tolist() == [1, 1, 1]
    for strict in (False, True):
        exported = torch.export.export(Asking(), (zero,), strict=strict).module()
        assert exported(zero).tolist() == [11, 11, 11]
    assert Asking()(zero).tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", [Passing, Looking, lambda: FlopCounterMode(display=False), FakeTensorMode])
def test_under_a_mode_only_operators_registered_with_torch_go_on(mode):
    with mode():
        tensor = torch.ones(3)
        assert eager.obstacle(tensor) is not None
        assert eager.obstacle(tensor, registered=True) is None
    assert eager.obstacle(torch.ones(3)) is None


@pytest.mark.parametrize("mode", [lambda: torch.device("cpu"), torch.no_grad, torch.inference_mode, nullcontext])
def test_what_changes_no_operator_is_ordinary(mode):
    with mode():
        assert eager.obstacle(torch.ones(3), nn.Parameter(torch.ones(3)), None) is None


def test_tensors_with_a_meaning_of_their_own_and_with_tangents_are_left_to_torch():
    for registered in (False, True):
        assert "Own" in eager.obstacle(torch.ones(3), Own(torch.ones(3)), registered=registered)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones(3), torch.ones(3))
            assert "forward-mode" in eager.obstacle(dual, registered=registered)


def operations() -> dict:
    """Each operation that has a fast path on a CPU, of its first input, and the same in torch alone."""
    weight, bias, one = torch.randn(5, 5), torch.randn(5), torch.ones(1)
    wide, kernel, spectrum = torch.randn(5, 1, 5, 5, requires_grad=True), torch.randn(5, 4), torch.randn(6, 4, 5, 2)
    tokens, maps, channels_last = torch.randn(3, 5), torch.randn(2, 5, 6, 6), torch.randn(2, 6, 6, 5)
    return {
        "linear": (tokens, lambda x, backend=None: linear(x, weight, bias, backend=backend)),
        "gelu": (tokens, lambda x, backend=None: gelu(x, backend=backend)),
        "star_relu": (tokens, lambda x, backend=None: star_relu(x, one, one, backend=backend)),
        "depthwise_conv": (maps, lambda x, backend=None: depthwise_conv(x, wide, backend=backend)),
        "causal_conv": (torch.randn(2, 5, 7), lambda x, backend=None: causal_conv(x, kernel, bias, backend=backend)),
        "global_filter": (channels_last, lambda x, backend=None: global_filter(x, spectrum, backend=backend)),
    }


@needs_compiler
@pytest.mark.parametrize("name", operations())
def test_operations_keep_the_meaning_that_a_transform_gives_them(name):
    x, operation = operations()[name]

    def plain(x: Tensor) -> Tensor:
        return operation(x, backend="torch")

    def both(transform) -> None:
        torch.testing.assert_close(transform(operation), transform(plain), rtol=1e-4, atol=1e-5)

    both(lambda f: torch.func.vmap(f)(torch.stack([x, 2 * x])))
    both(lambda f: torch.func.jvp(f, (x,), (x.flip(0),)))
    both(lambda f: torch.func.grad(lambda x: f(x).square().sum())(x))
    both(lambda f: torch.autograd.functional.jacobian(f, x, vectorize=True))
    both(lambda f: torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x))
    with ExitStack() as stack:
        for mode in (Passing, Looking):
            stack.enter_context(mode())
        both(lambda f: f(x))


def test_a_linear_layer_asks_a_weight_of_another_class():
    """As quantised weights answer for themselves, and oneDNN would read their memory."""
    asked = []

    class Answering(nn.Parameter):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            asked.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    linear(torch.ones(2, 5), Answering(torch.ones(3, 5)))
    assert F.linear in asked


@needs_compiler
def test_gradients_by_fake_tensors_and_under_modes():
    x, weight = torch.randn(2, 5, 6, 6), torch.randn(5, 1, 5, 5, requires_grad=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = depthwise_conv(mode.from_tensor(x), mode.from_tensor(weight))
        y.sum().backward()
    y = depthwise_conv(x, weight)  # an ordinary call, whose gradient is not
    with Passing():
        y.sum().backward()
    expected = torch.autograd.grad(depthwise_conv(x, weight, backend="torch").sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-4)
