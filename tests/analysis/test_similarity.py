"""CKA: 1 for a model and itself, unmoved by rotation and scale, unbiased over minibatches."""

from itertools import combinations

import pytest
import timm
import torch

from frepro.analysis import similarity
from frepro.analysis.features import Layer
from frepro.analysis.similarity import centred_gram, minibatch_cka


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic(x, y):
    n = len(x)
    return (centred_gram(x) * centred_gram(y)).sum() / (n * (n - 3))


def hsic_as_printed(x, y):
    """Eq. 3 of Nguyen et al."""
    n = len(x)
    K, L = (features.flatten(1) @ features.flatten(1).T for features in (x, y))
    K, L = K - K.diag().diag(), L - L.diag().diag()
    one = torch.ones(n, dtype=K.dtype)
    product = torch.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (product - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def test_hsic_is_that_of_the_paper():
    x, y = random(9, 4, 3) + 5, random(9, 7, seed=1)
    torch.testing.assert_close(hsic(x, y), hsic_as_printed(x, y))


def test_mean_over_all_minibatches_is_the_full_batch():
    """Unbiased: exactly so, when each minibatch of four that there is takes part."""
    x, y = random(7, 3), random(7, 5, seed=1)
    parts = [hsic(x[list(chosen)], y[list(chosen)]) for chosen in combinations(range(7), 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), hsic(x, y))


def test_features_and_themselves_rotated_shifted_and_scaled():
    x = random(12, 6)
    rotation, _ = torch.linalg.qr(random(6, 6, seed=2))
    y = 3 * x @ rotation + 7
    assert minibatch_cka([([x], [x])]).item() == pytest.approx(1)
    assert minibatch_cka([([x], [y])]).item() == pytest.approx(1)
    other = random(12, 4, seed=3) + x[:, :4]
    torch.testing.assert_close(minibatch_cka([([x], [other])]), minibatch_cka([([y], [other])]))
    assert 0.1 < minibatch_cka([([x], [other])]).item() < 0.95


def test_independent_features_are_near_0():
    batches = [([random(16, 20, seed=2 * i)], [random(16, 20, seed=2 * i + 1)]) for i in range(60)]
    assert abs(minibatch_cka(batches).item()) < 0.05


def test_minibatches_come_close_to_the_full_batch():
    shared = random(512, 5)
    x, y = (torch.cat([shared, 0.7 * random(512, 5, seed=seed)], dim=1) for seed in (1, 2))
    whole = minibatch_cka([([x], [y])]).item()
    parts = minibatch_cka(([a], [b]) for a, b in zip(x.split(16), y.split(16), strict=True)).item()
    assert 0.3 < whole < 0.9
    assert parts == pytest.approx(whole, abs=0.05)


def test_errors():
    with pytest.raises(ValueError, match="four images or more"):
        minibatch_cka([([random(3, 2)], [random(3, 2)])])
    with pytest.raises(ValueError, match="no batch"):
        minibatch_cka([])


def test_models():
    torch.manual_seed(0)
    dfformer, convformer = (timm.create_model(name, num_classes=0) for name in ("dfformer_s18", "convformer_s18"))
    images = torch.randn(8, 3, 32, 32)
    own = similarity.compare(dfformer, dfformer, images.split(4))
    assert own.values.shape == (40, 40)
    torch.testing.assert_close(own.values.diag(), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(own.values, own.values.T)
    assert own.by_stage() == pytest.approx({1: 1, 2: 1, 3: 1, 4: 1})
    both = similarity.compare(dfformer, convformer, images, kinds=("downsample", "block"))
    assert both.values.shape == (22, 22)
    assert [layer.kind for layer in both.second][:3] == ["downsample", "block", "block"]


def test_each_model_may_take_the_images_in_its_own_way():
    torch.manual_seed(0)
    first, second = (timm.create_model("dfformer_s18", num_classes=0, depths=(1, 1, 1, 1)) for _ in range(2))
    images = torch.randn(8, 3, 32, 32)
    plain = similarity.compare(first, second, images.split(4))
    same = similarity.compare(first, second, images.split(4), images.split(4))
    torch.testing.assert_close(same.values, plain.values)
    other = similarity.compare(first, second, images.split(4), torch.randn(8, 3, 64, 64).split(4))
    assert not torch.allclose(other.values, plain.values)
    with pytest.raises(ValueError, match="zip"):
        similarity.compare(first, second, images.split(4), images[:4].split(4))


def test_places_by_stage():
    layers = [Layer("x", "block", stage, depth) for depth, stage in enumerate((1, 1, 3))]
    values = torch.tensor([[0.2, 9, 9], [9, 0.6, 9], [9, 9, 0.9]], dtype=torch.float64)
    assert similarity.Similarity(values, layers, layers).by_stage() == pytest.approx({1: 0.4, 3: 0.9})
    with pytest.raises(ValueError, match="same positions"):
        similarity.Similarity(values[:, :2], layers, layers[:2]).by_stage()
