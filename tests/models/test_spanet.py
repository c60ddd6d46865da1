"""SPANet: equal to the official model, its masks fixed, its ablations what they say."""

import pytest
import timm
import torch

import frepro  # noqa: F401  (registers the models)
from frepro.models.spanet import SPAM, SpectralPooling
from tests.golden import assert_official

TINY = {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64), "num_classes": 10}
ABLATIONS = ["k3", "k5", *(f"k3_{name}" for name in ("nospf", "hp", "r1111", "r4411", "noscale", "layerscale"))]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(name="spanet_small", **kwargs):
    return timm.create_model(name, **{**TINY, **kwargs})


def test_official_logits():
    assert_official("spanet_small")


def test_crop_is_the_official_one():
    for size in ("small", "medium", "mediumx", "base", "basex"):
        assert timm.get_pretrained_cfg(f"spanet_{size}").crop_pct == (0.95 if "base" in size else 0.9)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_differ_from_the_default(ablation):
    """Same weights where names and shapes agree, another function."""
    default, model = tiny().eval(), tiny(f"spanet_small_{ablation}").eval()
    own = model.state_dict()
    shared = {
        key: value
        for key, value in default.state_dict().items()
        if key in own and own[key].shape == value.shape and ".sps." not in key
    }
    model.load_state_dict(shared, strict=False)
    x = torch.randn(2, 3, 224, 224)
    assert not torch.allclose(model(x), default(x))


def test_hadamard_aggregation_multiplies_the_gates():
    added = SPAM(12, size=(8, 8))
    multiplied = SPAM(12, size=(8, 8), aggregation="multiply")
    multiplied.load_state_dict(added.state_dict())
    x = torch.randn(1, 12, 8, 8)
    gates = [
        project(pool(part)) for project, pool, part in zip(added.pws, added.sps, x.split(added.splits, 1), strict=True)
    ]
    torch.testing.assert_close(added.context(x), gates[0] + gates[1] + gates[2])
    torch.testing.assert_close(multiplied.context(x), gates[0] * gates[1] * gates[2])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"aggregation": "max"}, "aggregation must be one of"),
        ({"branch_scale": "both"}, "branch_scale must be"),
        ({"dims": (4, 4, 4, 4)}, "4 channels cannot be split among 3 gates"),
    ],
)
def test_impossible_options_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


def test_masks_stay_fixed():
    """No gradient even when a whole model is unfrozen, and the same masks after an optimizer step."""
    model = tiny().requires_grad_(True)
    before = {key: value.clone() for key, value in model.state_dict().items() if ".sps." in key}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert len(before) == 3 * 5
    assert all(after[key].equal(value) for key, value in before.items())
    assert all(pool.filter.grad is None for pool in model.modules() if isinstance(pool, SpectralPooling))


def test_a_mask_of_another_size_is_the_one_made_for_it():
    x = torch.randn(1, 4, 12, 9)
    other = SpectralPooling((56, 56), radius=2, balance=0.7)
    own = SpectralPooling((12, 9), radius=2, balance=0.7)
    assert other(x).equal(own(x))
    other.set_size((12, 9))
    assert other.filter.equal(own.filter)
    assert not other.filter.requires_grad
