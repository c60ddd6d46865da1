"""The CPU kernels equal the plain forms on each instruction set: results and gradients in float32 against float64."""

import pytest
import torch
from torch import Tensor

from frepro.ops import causal_conv, dynamic_filter, gelu, global_filter, selective_scan, star_relu
from tests.compiler import needs_compiler

pytestmark = [needs_compiler, pytest.mark.usefixtures("instruction_set")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def assert_equal_to_reference(op, inputs: list[Tensor], **options) -> None:
    """Within 1e-5 of the largest number, gradients of all inputs within 1e-4."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    fast = [x.detach().requires_grad_() for x in inputs]  # keeps its strides
    expected = op(*exact, backend="torch", **options)
    result = op(*fast, backend="cpu", **options)
    assert result.dtype == torch.float32
    gradient = torch.randn(expected.shape)
    expected.backward(gradient.double())
    result.backward(gradient)
    assert_within(result, expected, 1e-5)
    for x, reference in zip(fast, exact, strict=True):
        assert x.grad.shape == reference.grad.shape
        assert_within(x.grad, reference.grad, 1e-4)


def assert_within(x: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (x.detach().double() - expected.detach()).abs().max()
    assert error <= tolerance * max(expected.detach().abs().max(), 1e-12), error


def scan_inputs(batch, dim, length, state) -> list[Tensor]:
    u, delta, z = (torch.randn(batch, dim, length) for _ in range(3))
    A = -4 * torch.rand(dim, state)
    B, C = (torch.randn(batch, state, length) for _ in range(2))
    return [u, delta, A, B, C, torch.randn(dim), z, torch.randn(dim)]


def time_first(x: Tensor) -> Tensor:
    """The same sequence with its channels contiguous, as the models have it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.ndim == 3 else x


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(2, 40, 197, 16), (1, 16, 1, 16), (3, 7, 2, 5), (2, 33, 65, 1), (1, 16, 785, 16)])
def test_scan(shape, reverse):
    inputs = scan_inputs(*shape)
    assert_equal_to_reference(selective_scan, inputs, delta_softplus=True, reverse=reverse)
    assert_equal_to_reference(selective_scan, [time_first(x) for x in inputs], delta_softplus=True, reverse=reverse)
    u, delta, *rest = inputs[:5]
    assert_equal_to_reference(selective_scan, [u, delta.abs(), *rest], reverse=reverse)


def test_scan_of_steps_and_rates_of_any_size():
    """Steps from 1e-6 to 50 and rates from 1e-4 to 1e3: states that fade at once, or hardly in the whole sequence."""
    u, _, _, B, C, *_ = scan_inputs(2, 32, 300, 16)
    delta = torch.logspace(-14, 4, 300, base=torch.e).expand(2, 32, 300)
    A = -torch.logspace(-4, 3, 16).expand(32, 16)
    assert_equal_to_reference(selective_scan, [u, delta.contiguous(), A.contiguous(), B, C])
    assert_equal_to_reference(selective_scan, [u, delta.log(), A.contiguous(), B, C], delta_softplus=True)


def test_scan_whose_states_grow():
    u, delta, A, *rest = scan_inputs(2, 33, 20, 16)
    A[:, 3] *= -0.1
    assert_equal_to_reference(selective_scan, [u, delta, A, *rest], delta_softplus=True)
    assert_equal_to_reference(selective_scan, [u, -0.1 * delta.abs(), A, *rest[:2]])


@pytest.mark.parametrize("delta_softplus", [False, True])
def test_states_that_grow_beyond_all_bounds_do_not_come_back_as_small_ones(delta_softplus):
    one = torch.ones(1, 16, 12)
    y = selective_scan(one, 87.5 * one, torch.ones(16, 16), one, one, delta_softplus=delta_softplus, backend="cpu")
    assert (y[..., 1:] > 1e30).all()


def test_a_number_that_is_none_stays_one():
    for i in (0, 1, 3):
        inputs = scan_inputs(1, 16, 9, 16)
        inputs[i][..., 4] = torch.nan
        assert selective_scan(*inputs, delta_softplus=True, backend="cpu")[..., 4:].isnan().all()


@pytest.mark.parametrize("threads", [1, 3])
def test_scan_by_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal_to_reference(selective_scan, scan_inputs(1, 70, 40, 16), delta_softplus=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(2, 40, 50), (1, 5, 1), (2, 16, 3)])
def test_causal_conv(shape, reverse):
    batch, dim, length = shape
    inputs = [torch.randn(shape), torch.randn(dim, 4), torch.randn(dim)]
    assert_equal_to_reference(causal_conv, inputs, reverse=reverse)
    wide = torch.randn(batch, length, 2 * dim).transpose(1, 2)[:, :dim]  # half of a projection
    assert_equal_to_reference(causal_conv, [wide, *inputs[1:]], reverse=reverse)


def test_causal_conv_looks_one_way():
    x = torch.randn(1, 8, 20)
    weight, bias = torch.randn(8, 4), torch.randn(8)
    changed = x.clone()
    changed[..., 10] += 1
    for backend in ("torch", "cpu"):
        moved = causal_conv(changed, weight, bias, backend=backend) != causal_conv(x, weight, bias, backend=backend)
        assert moved.any(dim=(0, 1)).nonzero().flatten().tolist() == [10, 11, 12, 13]
        mirrored = causal_conv(x.flip(2), weight, bias, reverse=True, backend=backend).flip(2)
        torch.testing.assert_close(mirrored, causal_conv(x, weight, bias, backend=backend))


SIZES = [(56, 56), (14, 14), (7, 7), (8, 12), (9, 15), (1, 1), (2, 1), (64, 3), (5, 10), (25, 22), (11, 96)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [3, 16, 33, 70])
def test_filters(size, channels):
    height, width = size
    x = torch.randn(2, height, width, channels)
    half = width // 2 + 1
    assert_equal_to_reference(global_filter, [x, torch.randn(height, half, channels, 2)])
    basis = torch.randn(height, half, 4, 2)
    assert_equal_to_reference(dynamic_filter, [x, torch.rand(2, 4, channels), basis])


def test_filters_of_maps_that_do_not_lie_channels_last():
    x = torch.randn(2, 20, 6, 7).permute(0, 2, 3, 1)
    assert_equal_to_reference(global_filter, [x, torch.randn(6, 4, 20, 2)])


def test_star_relu():
    assert_equal_to_reference(star_relu, [torch.randn(3, 1001), torch.tensor([0.7]), torch.tensor([-0.2])])
    assert_equal_to_reference(star_relu, [torch.randn(4, 6).t(), torch.tensor([-1.0]), torch.tensor([2.0])])


def test_gelu():
    for x in (torch.randn(3, 1001), 40 * torch.randn(4, 6).t(), torch.randn(2, 5, 3, 4)[:, ::2], torch.zeros(1)):
        assert_equal_to_reference(gelu, [x])
    x = torch.randn(2, 6, 3, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = gelu(x, backend="cpu")
    y.backward(torch.ones(2, 6, 3, 4))  # whose channels lie elsewhere
    assert y.stride() == x.stride()
    torch.testing.assert_close(x.grad, torch.func.grad(lambda x: gelu(x, backend="torch").sum())(x.detach()))
    second = torch.func.grad(torch.func.grad(lambda x: gelu(x)))(torch.tensor(0.3))
    (first,) = torch.autograd.grad(gelu(z := torch.tensor([0.3], requires_grad=True)), z, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first, z)[0][0], second)
    assert gelu(torch.tensor([torch.nan, 1.0]), backend="cpu").isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_computed_in_float32(dtype):
    """The result is that of float32 rounded, inside autocast and outside."""
    u, delta, A, B, C, D, z, bias = scan_inputs(2, 20, 30, 16)
    u, delta, B, C, z = (x.to(dtype) for x in (u, delta, B, C, z))
    x, weight = torch.randn(2, 7, 6, 20).to(dtype), torch.randn(7, 4, 20, 2)
    with torch.autocast("cpu", torch.bfloat16):
        scanned = selective_scan(u, delta, A, B, C, D, z, bias, True, backend="cpu")
        filtered = global_filter(x, weight, backend="cpu")
    wide = selective_scan(u.float(), delta.float(), A, B.float(), C.float(), D, z.float(), bias, True, backend="cpu")
    assert scanned.equal(wide.to(dtype))
    assert filtered.equal(global_filter(x.float(), weight, backend="cpu").to(dtype))


def operator_samples():
    u, delta, A, B, C, D, z, bias = scan_inputs(2, 8, 5, 4)
    sequence = [x.transpose(1, 2) for x in (u, delta, B, C, z)]
    x, coefficients = torch.randn(2, 4, 6, 5), torch.rand(2, 3, 5)
    return {
        "selective_scan": (sequence[0], sequence[1], A, sequence[2], sequence[3], D, sequence[4], bias, True, True),
        "causal_conv": (sequence[0], torch.randn(8, 4), bias, False),
        "spectral_filter": (x, torch.randn(4, 4, 3, 2), coefficients),
        "spectral_filter, real": (x, torch.randn(4, 4, 5), None),
        "gelu": (x,),
        "star_relu": (x, torch.ones(1), torch.zeros(1)),
    }


@pytest.mark.parametrize("name", operator_samples())
def test_operators_keep_torchs_contract(name):
    """Schema, fake kernel, autograd registration and tracing, by torch's own check of custom operators."""
    import frepro.ops.cpu.scan
    import frepro.ops.cpu.spectral  # noqa: F401

    sample = operator_samples()[name]
    sample = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in sample]
    torch.library.opcheck(getattr(torch.ops.frepro, name.split(",")[0]).default, tuple(sample))


@pytest.mark.parametrize("name", ["spectral_filter", "spectral_filter, real", "star_relu"])
def test_operators_that_overwrite_keep_torchs_contract(name):
    import frepro.ops.cpu.spectral  # noqa: F401

    torch.library.opcheck(getattr(torch.ops.frepro, name.split(",")[0] + "_").default, operator_samples()[name])


@pytest.mark.parametrize("batch", [1, 2])
def test_shapes_that_only_broadcast_or_do_not_fit_are_left_to_torch(batch):
    """Kernels trust shapes; what torch would stretch or refuse never reaches them."""
    u, delta, A, B, C, D, *_ = scan_inputs(2, 16, 9, 4)
    x, basis = torch.randn(2, 8, 8, 16), torch.randn(8, 5, 4, 2)
    pairs = [
        (selective_scan, (u, delta, A, B[:batch], C, D[:1] if batch == 1 else D)),
        (global_filter, (x, torch.randn(8, 5, 16 if batch == 2 else 1, 2))),
        (dynamic_filter, (x, torch.rand(batch, 4, 16), basis)),
    ]
    for op, inputs in pairs:
        torch.testing.assert_close(op(*inputs), op(*inputs, backend="torch"), rtol=1e-4, atol=1e-4)
        if batch == 1:
            with pytest.raises(ValueError, match=r"a tensor has the shape .* and not"):
                op(*inputs, backend="cpu")
    with pytest.raises(RuntimeError):
        selective_scan(u, delta[..., :5], A, B, C)
    with pytest.raises(RuntimeError):
        global_filter(x, torch.randn(8, 8, 16, 2))
    with pytest.raises(RuntimeError):
        causal_conv(u, torch.randn(8, 4), torch.randn(8))


def test_a_wide_causal_conv_is_left_to_torch():
    inputs = [torch.randn(1, 4, 200), torch.randn(4, 128), torch.randn(4)]
    torch.testing.assert_close(causal_conv(*inputs), causal_conv(*inputs, backend="torch"))


def test_star_relu_passes_on_what_is_no_number():
    x = torch.tensor([torch.nan, 1.0, -1.0], requires_grad=True)
    y = star_relu(x, torch.ones(1), torch.zeros(1), backend="cpu")
    y.sum().backward()
    assert y.isnan().tolist() == x.grad.isnan().tolist() == [True, False, False]


def test_forward_mode_derivatives_are_those_of_the_plain_form():
    x, one = torch.randn(3, 40), torch.ones(1)
    _, tangent = torch.func.jvp(lambda t: star_relu(t, one, one), (x,), (x,))
    torch.testing.assert_close(tangent, 2 * x.relu() * x)


def test_an_empty_batch():
    inputs = [x.requires_grad_() for x in scan_inputs(0, 16, 5, 4)[:5]]
    y = selective_scan(*inputs)
    y.sum().backward()
    assert y.shape == (0, 16, 5)
    assert not inputs[2].grad.any()
