"""The selective scan equals its recurrence, written out number by number, and has the recurrence's properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frepro.ops import selective_scan


def make(length=7, batch=2, channels=4, n=3, *, b_shape="batch", c_shape="batch", dtype=torch.float64):
    """Arguments u, delta, A, B, C of a scan whose states fade."""
    torch.manual_seed(length)

    def coefficients(kind):
        shapes = {"fixed": (channels, n), "batch": (batch, n, length), "groups": (batch, 2, n, length)}
        return torch.randn(shapes[kind], dtype=dtype)

    u = torch.randn(batch, channels, length, dtype=dtype)
    delta = torch.rand(batch, channels, length, dtype=dtype)
    A = -torch.rand(channels, n, dtype=dtype) - 0.1
    return u, delta, A, coefficients(b_shape), coefficients(c_shape)


def by_hand(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, backwards=False):
    """The formula for one number at a time, in NumPy, from the last to the first if told; output and last state."""
    u, delta, A, B, C = (x.numpy() for x in (u, delta, A, B, C))
    batch, channels, length = u.shape

    def at(x, b, d, t):
        if x.ndim == 2:
            return x[d]
        return x[b, :, t] if x.ndim == 3 else x[b, d * x.shape[1] // channels, :, t]

    y, last = np.zeros_like(u), np.zeros((batch, *A.shape))
    for b in range(batch):
        for d in range(channels):
            h = np.zeros(A.shape[1])
            for t in reversed(range(length)) if backwards else range(length):
                step = delta[b, d, t] + (0 if delta_bias is None else delta_bias[d].item())
                step = np.log1p(np.exp(step)) if delta_softplus else step
                h = np.exp(step * A[d]) * h + step * u[b, d, t] * at(B, b, d, t)
                y[b, d, t] = h @ at(C, b, d, t) + (0 if D is None else D[d].item() * u[b, d, t])
                if z is not None:
                    y[b, d, t] *= z[b, d, t].item() / (1 + np.exp(-z[b, d, t].item()))
            last[b, d] = h
    return torch.from_numpy(y), torch.from_numpy(last)


@pytest.mark.parametrize("length", [1, 2, 197, 785])
def test_equals_the_recurrence(length):
    args = make(length)
    y, last = selective_scan(*args, return_last_state=True)
    torch.testing.assert_close((y, last), by_hand(*args))


@pytest.mark.parametrize("length", [1, 2, 197, 785])
def test_a_flipped_sequence_is_the_other_direction(length):
    u, delta, A, B, C = make(length)
    y, last = selective_scan(u.flip(2), delta.flip(2), A, B.flip(2), C.flip(2), return_last_state=True)
    torch.testing.assert_close((y.flip(2), last), by_hand(u, delta, A, B, C, backwards=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_that_fade_at_once_or_hardly(dtype):
    """Decays by e^-3000 and by e^-0.00001 in one step stand side by side; no quotient of them is finite."""
    u, delta, A, B, C = make(300, n=4)
    A = -torch.logspace(-4, 3, 16, dtype=torch.float64).view(4, 4)
    args = [x.to(dtype, copy=True).requires_grad_() for x in (u, 3 * delta, A, B, C)]
    y = selective_scan(*args)
    torch.testing.assert_close(y.detach().double(), by_hand(u, 3 * delta, A, B, C)[0], rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in args)


def test_memory_layout_changes_nothing():
    u, delta, A, B, C = make(9)
    scattered = [x.mT.contiguous().mT for x in (u, delta, A, B, C)]
    torch.testing.assert_close(selective_scan(*scattered), selective_scan(u, delta, A, B, C))


@pytest.mark.parametrize("b_shape", ["fixed", "batch", "groups"])
@pytest.mark.parametrize("c_shape", ["fixed", "batch", "groups"])
def test_shapes_of_coefficients(b_shape, c_shape):
    args = make(b_shape=b_shape, c_shape=c_shape)
    torch.testing.assert_close(selective_scan(*args), by_hand(*args)[0])


@pytest.mark.parametrize("options", [("D",), ("z",), ("delta_bias",), ("delta_softplus",), ()])
def test_options(options):
    """Each option by itself, and all of them together."""
    args = make()
    torch.manual_seed(0)
    values = {"D": torch.randn(4), "z": torch.randn(2, 4, 7), "delta_bias": torch.rand(4), "delta_softplus": True}
    chosen = {name: values[name].double() if name != "delta_softplus" else True for name in options or values}
    torch.testing.assert_close(selective_scan(*args, **chosen), by_hand(*args, **chosen)[0])


@pytest.mark.parametrize("length", [1, 2, 197, 785])
def test_gradients_at_any_length(length):
    """Along a random direction of all arguments; of every number by itself below."""
    inputs = tuple(x.requires_grad_() for x in make(length))
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, return_last_state=True), inputs, fast_mode=True, atol=1e-4
    )


@pytest.mark.parametrize(("b_shape", "c_shape"), [("groups", "batch"), ("batch", "fixed"), ("fixed", "groups")])
def test_gradients(b_shape, c_shape):
    u, delta, A, B, C = make(length=4, b_shape=b_shape, c_shape=c_shape)
    D, z, delta_bias = torch.randn(4), torch.randn(2, 4, 4), torch.randn(4)
    inputs = tuple(x.double().requires_grad_() for x in (u, delta, A, B, C, D, z, delta_bias))
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, delta_softplus=True, return_last_state=True), inputs)


def test_linear_in_u():
    u, *rest = make()
    v = torch.randn_like(u)
    torch.testing.assert_close(
        selective_scan(2 * u - 3 * v, *rest), 2 * selective_scan(u, *rest) - 3 * selective_scan(v, *rest)
    )


def test_causal():
    """What changes at time t changes nothing before t, and something from t on."""
    args = make(length=9)
    y = selective_scan(*args)
    for i in (0, 1, 3, 4):
        changed = list(args)
        changed[i] = args[i].clone()
        changed[i][..., 5] += 1
        z = selective_scan(*changed)
        assert torch.equal(z[..., :5], y[..., :5])
        assert not torch.equal(z[..., 5], y[..., 5])


def test_constant_coefficients_are_a_convolution():
    """With nothing depending on time, the scan is a convolution with sum_n C_n exp(delta A_n)^t delta B_n."""
    u, delta, A, B, C = make(length=12, b_shape="fixed", c_shape="fixed")
    step = delta[0, 0, 0]
    kernel = (C * B * step)[..., None] * torch.exp(step * A[..., None] * torch.arange(12))
    convolved = F.conv1d(F.pad(u, (11, 0)), kernel.sum(1).flip(1)[:, None], groups=4)
    torch.testing.assert_close(selective_scan(u, torch.full_like(u, step), A, B, C), convolved)


def test_half_precision_keeps_the_state_in_float32():
    args = [x.to(torch.bfloat16) for x in make(length=300, dtype=torch.float32)]
    exact, state = selective_scan(*(x.float() for x in args), return_last_state=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = selective_scan(*args, return_last_state=True)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, exact.to(torch.bfloat16))
    assert torch.equal(last, state)


def test_backend_is_chosen_at_run_time(monkeypatch):
    args = make()
    with pytest.raises(ValueError, match="unknown backend 'none' of selective_scan"):
        selective_scan(*args, backend="none")
    monkeypatch.setenv("FREPRO_BACKEND", "other")
    with pytest.raises(ValueError, match="unknown backend 'other' of selective_scan"):
        selective_scan(*args)
    assert selective_scan(*args, backend="torch").shape == (2, 4, 7)  # the argument goes before the environment


def test_mamba_ssm_asks_for_cuda():
    with pytest.raises(ValueError, match="'mamba_ssm' cannot run selective_scan: tensors are on cpu") as error:
        selective_scan(*make(), backend="mamba_ssm")
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    args = make(length=197, dtype=torch.float32)
    inputs = [[x.detach().to(device).requires_grad_() for x in args] for device in ("cpu", "cuda")]
    for x in inputs:
        selective_scan(*x).square().sum().backward()
    for cpu, cuda in zip(*inputs, strict=True):
        torch.testing.assert_close(cuda.grad.cpu(), cpu.grad, rtol=1e-4, atol=1e-4)
