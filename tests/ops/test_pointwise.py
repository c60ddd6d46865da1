"""The linear layer and activations: gradients by differences, oneDNN's layer equal to torch's, memory used again."""

import pytest
import torch
import torch.nn.functional as F

from frepro.ops import causal_conv, gelu, linear, pointwise, star_relu


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def exact(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradients():
    assert torch.autograd.gradcheck(linear, (exact(2, 3, 4), exact(5, 4), exact(5)))
    assert torch.autograd.gradcheck(star_relu, (exact(3, 4), exact(1), exact(1)))
    for reverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda *x, reverse=reverse: causal_conv(*x, reverse=reverse), (exact(2, 3, 6), exact(3, 4), exact(3))
        )


@pytest.mark.parametrize("rows", [(1,), (2, 7), (9000,)])  # the last has another way to the weight's gradient
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_equals_torchs(rows, has_bias):
    inputs = [torch.randn(*rows, 12), torch.randn(20, 12), *([torch.randn(20)] if has_bias else [])]
    fast, reference = ([x.clone().to(t).requires_grad_() for x in inputs] for t in (torch.float32, torch.float64))
    y, expected = linear(*fast, backend="onednn"), F.linear(*reference)
    gradient = torch.randn(expected.shape)
    y.backward(gradient)
    expected.backward(gradient.double())
    for x, exact_x in [(y, expected), *((a.grad, b.grad) for a, b in zip(fast, reference, strict=True))]:
        assert (x - exact_x).abs().max() <= 1e-5 * exact_x.abs().max()


@pytest.mark.skipif(not pointwise.HAS_ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.parametrize("is_preferred", [False, True])
def test_onednn_multiplies_only_on_processors_where_it_is_faster(monkeypatch, is_preferred):
    monkeypatch.setattr(pointwise, "PREFERS_ONEDNN", is_preferred)
    x, weight = torch.randn(2, 7, 12), torch.randn(20, 12, requires_grad=True)
    assert ("OneDNN" in linear(x, weight).grad_fn.name()) is is_preferred
    assert "OneDNN" in linear(x, weight, backend="onednn").grad_fn.name()


@pytest.mark.parametrize("name", ["gelu", "star_relu"])
def test_overwrites_its_input_only_where_no_gradient_is_recorded(name):
    settings = (torch.tensor([0.9]), torch.tensor([-0.4])) if name == "star_relu" else ()
    activation = {"gelu": gelu, "star_relu": star_relu}[name]
    x = torch.randn(3, 50)
    kept, expected = x.clone(), activation(x, *settings)
    assert torch.equal(activation(kept, *settings, inplace=True), expected)
    assert torch.equal(kept, x)
    with torch.no_grad():
        assert torch.equal(activation(kept, *settings), expected)
        assert torch.equal(kept, x)
        y = activation(kept, *settings, inplace=True)
        assert torch.equal(y, expected)
        assert y.data_ptr() == kept.data_ptr()
        torch.testing.assert_close(activation(x.T, *settings, inplace=True), expected.T)  # whose memory is left open
