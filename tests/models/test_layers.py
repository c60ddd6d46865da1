import pytest
import torch
import torch.nn.functional as F
from timm.layers import GroupNorm1
from timm.models.metaformer import StarReLU
from torch import nn

from frepro.models.layers import Mlp, Sequential, call, conv1x1
from frepro.ops import pointwise


@pytest.fixture
def mlp(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(Mlp, "MOST_HIDDEN", 4 * 32 * 10)  # ten positions of 32 channels
    return Mlp(8, 32, act_layer=StarReLU)


def hidden_sizes(mlp, x, monkeypatch):
    """Return the number of positions of each hidden map, and the result. With a hook, there would be only one map."""
    sizes, layers = [], mlp._layers
    with monkeypatch.context() as patch:
        patch.setattr(mlp, "_layers", lambda part: sizes.append(part.shape[:-1].numel()) or layers(part))
        y = mlp(x)
    return sizes, y


@pytest.mark.parametrize("shape", [(3, 5, 7, 8), (101, 8), (1, 10, 8), (1, 11, 8), (0, 4, 8)])
def test_an_mlp_in_parts_is_the_mlp(mlp, shape, monkeypatch):
    x = torch.randn(shape)
    whole, expected = hidden_sizes(mlp, x, monkeypatch)
    with torch.inference_mode():
        parts, y = hidden_sizes(mlp, x, monkeypatch)
    assert whole == [x.shape[:-1].numel()]
    assert sum(parts) == sum(whole)
    assert max(parts) <= 10
    torch.testing.assert_close(y, expected)


def test_an_mlp_is_whole_where_gradients_are_recorded_or_channels_come_first(mlp):
    x = torch.randn(50, 8, requires_grad=True)
    mlp(x).square().sum().backward()
    assert x.grad.count_nonzero() == x.numel()
    first = Mlp(8, 32, layer=conv1x1)
    maps = torch.randn(2, 8, 5, 5)
    with torch.inference_mode():
        y = first(maps)
    torch.testing.assert_close(y, first(maps))


@pytest.mark.parametrize("name", ["fc1", "act", "fc2"])
def test_an_mlp_calls_a_layer_that_a_hook_waits_for_once(mlp, name):
    x, seen = torch.randn(101, 8), []
    with torch.inference_mode():
        expected = mlp(x)
        getattr(mlp, name).register_forward_hook(lambda module, inputs, output: seen.append(output))
        torch.testing.assert_close(mlp(x), expected)
    assert [len(output) for output in seen] == [101]


class Doubling(nn.Linear):
    """What a user puts in a layer's place."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_put_in_a_layers_place_take_effect(mlp):
    x = torch.randn(4, 8)
    with torch.inference_mode():
        hidden = mlp.act(mlp.fc1(x))
        mlp.fc2 = Doubling(32, 8, bias=False)
        torch.testing.assert_close(mlp(x), 2 * F.linear(hidden, mlp.fc2.weight))
        mlp.fc2.forward = lambda hidden: hidden  # as accelerate and others do
        torch.testing.assert_close(mlp(x), hidden)


HOOKS = {
    "forward": lambda layer, hook: layer.register_forward_hook(hook),
    "before": lambda layer, hook: layer.register_forward_pre_hook(hook),
    "of all modules": lambda layer, hook: nn.modules.module.register_module_forward_hook(hook),
    "of all modules, before": lambda layer, hook: nn.modules.module.register_module_forward_pre_hook(hook),
}


def test_a_layer_may_have_an_empty_submodule():
    layer, x = StarReLU(), torch.randn(2, 8)
    expected = layer(x)
    layer.register_module("quantizer", None)
    torch.testing.assert_close(call(layer, x), expected)


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.GELU(), StarReLU(), StarReLU().relu], ids=lambda x: str(x)[:9])
def test_a_hook_of_any_kind_is_called(kind, layer):
    owner = StarReLU()
    if isinstance(layer, nn.ReLU):
        owner.relu = layer
    seen = []
    with torch.no_grad(), HOOKS[kind](layer, lambda module, *given: seen.append(module)):
        call(owner if isinstance(layer, nn.ReLU) else layer, torch.randn(2, 3))
    assert layer in seen


@pytest.mark.parametrize("maker", [nn.Linear(3, 3), conv1x1(3, 3), GroupNorm1(3)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("activation", [nn.GELU(), StarReLU()], ids=lambda x: type(x).__name__)
def test_an_activation_writes_over_what_nobody_else_sees(maker, activation, monkeypatch):
    """A map that a hook has kept stays as it was."""
    made = []
    monkeypatch.setitem(maker.__dict__, "forward", lambda x: x)  # which is not the class's: it may have kept its output
    x = torch.randn(2, 3, 3, 3)
    kept = x.clone()
    with torch.no_grad():
        Sequential(maker, activation)(x)
        assert torch.equal(x, kept)
        monkeypatch.undo()
        with maker.register_forward_hook(lambda module, inputs, output: made.append((output, output.clone()))):
            y = Sequential(maker, activation)(x)
        assert torch.equal(*made[0])
        assert torch.equal(x, kept)
        torch.testing.assert_close(Sequential(maker, activation)(x), y)
        made_by = call(activation, z := x.clone(), made_by=maker)
    assert made_by.data_ptr() == z.data_ptr()


@pytest.mark.skipif(not pointwise.HAS_ONEDNN, reason="this torch has no oneDNN")
def test_linear_layers_of_torchs_class_go_by_onednn_where_it_is_the_faster_one(monkeypatch):
    monkeypatch.setattr(pointwise, "PREFERS_ONEDNN", True)
    assert "OneDNN" in call(nn.Linear(3, 3), torch.randn(2, 3)).grad_fn.name()
