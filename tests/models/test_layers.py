import pytest
import torch

from frepro.models.layers import Conv1x1, Mlp, StarReLU


@pytest.fixture
def mlp(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(Mlp, "MOST_HIDDEN", 4 * 32 * 10)  # ten positions of 32 channels
    return Mlp(8, 32, act_layer=lambda: StarReLU(inplace=True))


def hidden_sizes(mlp, x):
    """Positions that the hidden map holds, each time that there is one."""
    sizes = []
    with mlp.fc1.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[:-1].numel())):
        y = mlp(x)
    return sizes, y


@pytest.mark.parametrize("shape", [(3, 5, 7, 8), (101, 8), (1, 10, 8), (1, 11, 8), (0, 4, 8)])
def test_an_mlp_in_parts_is_the_mlp(mlp, shape):
    x = torch.randn(shape)
    whole, expected = hidden_sizes(mlp, x)
    with torch.inference_mode():
        parts, y = hidden_sizes(mlp, x)
    assert whole == [x.shape[:-1].numel()]
    assert sum(parts) == sum(whole)
    assert max(parts) <= 10
    torch.testing.assert_close(y, expected)


def test_an_mlp_is_whole_where_gradients_are_recorded_or_channels_come_first(mlp):
    x = torch.randn(50, 8, requires_grad=True)
    mlp(x).square().sum().backward()
    assert x.grad.count_nonzero() == x.numel()
    first = Mlp(8, 32, layer=Conv1x1)
    maps = torch.randn(2, 8, 5, 5)
    with torch.inference_mode():
        y = first(maps)
    torch.testing.assert_close(y, first(maps))
