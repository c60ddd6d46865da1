"""SPANet: equal to the official model, its spectral pooling what the paper says, and a good timm citizen."""

import pytest
import timm
import torch

import frepro  # noqa: F401  (registers the models)
from frepro.models.spanet import SPAM, SpectralPooling
from frepro.ops import spectral_pool, spectral_pooling_mask, spectral_rescale
from tests.golden import assert_official

TINY = {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64), "num_classes": 10}
ABLATIONS = ["k3", "k5", *(f"k3_{name}" for name in ("nospf", "hp", "r1111", "r4411", "noscale", "layerscale"))]
# Counted on the official code; the fixed masks are part of it.
OFFICIAL_PARAMS = {
    "spanet_small": 28_659_780,
    "spanet_medium": 41_768_978,
    "spanet_mediumx": 54_878_176,
    "spanet_base": 75_938_194,
    "spanet_basex": 99_827_680,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(name="spanet_small", **kwargs):
    return timm.create_model(name, **{**TINY, **kwargs})


def shifted_pooling(x, mask):
    """Eq. 17 to the letter: full transform, centred, masked and back."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    return torch.fft.ifft2(torch.fft.ifftshift(mask * spectrum, dim=(-2, -1))).real


# The operation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(56, 56), (14, 14), (7, 7), (8, 12), (5, 3), (6, 9), (2, 2), (1, 1)])
@pytest.mark.parametrize("radius", [1, 2, 4])
def test_pooling_is_eq_17(size, radius):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    mask = spectral_pooling_mask(*size, radius, 0.8).double()
    torch.testing.assert_close(spectral_pool(x, mask), shifted_pooling(x, mask))


@pytest.mark.parametrize("balance", [0.0, 0.5, 0.7, 0.9])
def test_pooling_is_a_sum_of_projections(balance):
    """(1 - lambda) x + (2 lambda - 1) P x + (ring - 1 + lambda) R x."""
    ring = 1 / 3
    x = torch.randn(2, 3, 14, 10)
    distance = torch.hypot((torch.arange(14) - 7.0)[:, None], torch.arange(10) - 5.0)
    inside, on_ring = (shifted_pooling(x, m.float()) for m in (distance < 2, distance == 2))
    expected = (1 - balance) * x + (2 * balance - 1) * inside + (ring - 1 + balance) * on_ring
    torch.testing.assert_close(spectral_pool(x, spectral_pooling_mask(14, 10, 2, balance, ring)), expected)


def test_pooling_scales_the_mean_by_lambda():
    """Zero frequency is inside any disc."""
    x = torch.randn(2, 3, 9, 12)
    pooled = spectral_pool(x, spectral_pooling_mask(9, 12, 1, 0.7))
    torch.testing.assert_close(pooled.mean(dim=(2, 3)), 0.7 * x.mean(dim=(2, 3)))


def test_pooling_with_lambda_one_half_is_a_pure_scaling():
    x = torch.randn(2, 3, 14, 10)
    torch.testing.assert_close(spectral_pool(x, spectral_pooling_mask(14, 10, 2, 0.5, ring=None)), x / 2)


def test_pooling_commutes_with_cyclic_shifts():
    x = torch.randn(1, 2, 14, 9)
    mask = spectral_pooling_mask(14, 9, 2, 0.8)
    shifted = x.roll((3, 5), dims=(2, 3))
    torch.testing.assert_close(spectral_pool(shifted, mask), spectral_pool(x, mask).roll((3, 5), dims=(2, 3)))


@pytest.mark.parametrize(("size", "radius"), [((56, 56), 2), ((28, 28), 2), ((14, 14), 1), ((7, 7), 1)])
def test_mask_values_of_the_official_code(size, radius):
    mask = spectral_pooling_mask(*size, radius, 0.8)
    low = torch.tensor(0.8)
    values, counts = mask.unique(return_counts=True)
    assert values.tolist() == torch.stack([1 - low, torch.tensor(1 / 3), low]).tolist()  # to the bit
    assert counts.tolist()[1:] == [4, {1: 1, 2: 9}[radius]]


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (7, 25), (1, 6)])
def test_mask_is_centred_on_any_map(size):
    """Symmetric around zero frequency, and the disc is round: it has the same extent along rows and columns."""
    mask = spectral_pooling_mask(*size, 2, 0.9)
    centre = mask.new_zeros(size)
    centre[size[0] // 2, size[1] // 2] = 1
    assert spectral_pooling_mask(*size, 0.5, 1.0, ring=None).equal(centre)
    unshifted = torch.fft.ifftshift(mask)
    mirrored = unshifted.roll((-1, -1), dims=(0, 1)).flip(0, 1)
    assert mirrored.equal(unshifted)
    assert mask.T.equal(spectral_pooling_mask(size[1], size[0], 2, 0.9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_operations_keep_the_dtype(dtype):
    x = torch.randn(1, 2, 7, 6).to(dtype)
    mask = spectral_pooling_mask(7, 6, 1, 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = spectral_pool(x, mask)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), spectral_pool(x.float(), mask), rtol=1e-2, atol=1e-3)


def test_gradients_of_the_operations():
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spectral_rescale, (x, gain))
    assert torch.autograd.gradcheck(spectral_pool, (x, spectral_pooling_mask(5, 4, 1, 0.7).double()))


# The model -----------------------------------------------------------------------------------------------------------


def test_official_logits():
    assert_official("spanet_small")


@pytest.mark.parametrize(("name", "params"), OFFICIAL_PARAMS.items())
def test_official_number_of_parameters(name, params):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == params


def test_crop_is_the_official_one():
    crops = {name: timm.get_pretrained_cfg(name).crop_pct for name in OFFICIAL_PARAMS}
    assert crops == {name: 0.95 if "base" in name else 0.9 for name in OFFICIAL_PARAMS}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_differ_from_the_default(ablation):
    """Same weights where names and shapes agree, another function; no parameter without a gradient."""
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
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert ".sps." in name or parameter.grad.isfinite().all(), name


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
        ({"aggregation": "max"}, "aggregation is one of"),
        ({"branch_scale": "both"}, "branch_scale is"),
        ({"dims": (4, 4, 4, 4)}, "4 channels cannot be split among 3 gates"),
        ({"global_pool": "max"}, "global_pool is"),
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


@pytest.mark.parametrize("size", [(224, 224), (256, 192), (96, 160), (97, 131), (32, 32), (7, 3)])
def test_any_input_size(size):
    model = tiny().eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()
        model.set_input_size(size)
        torch.testing.assert_close(model(x), logits, rtol=0, atol=0)
        torch.testing.assert_close(tiny(img_size=size)(x).shape, logits.shape)


def test_images_do_not_see_their_companions():
    model = tiny().eval()
    x = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=0, atol=1e-5)


def test_every_trainable_parameter_gets_a_gradient():
    model = tiny(drop_path_rate=0.1, drop_rate=0.1).train()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".sps." not in name)
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


def test_grad_checkpointing_equals_plain():
    model = tiny().train()
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_features():
    x = torch.randn(1, 3, 96, 64)
    model = tiny().eval()
    final, maps = model.forward_intermediates(x)
    assert final.equal(model.forward_features(x))
    assert model.forward_head(final).equal(model(x))
    for info, feature in zip(model.feature_info, maps, strict=True):
        assert feature.shape == (1, info["num_chs"], 96 // info["reduction"], 64 // info["reduction"])

    backbone = tiny(features_only=True, out_indices=(0, 2)).eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)  # it has fewer modules
    for feature, expected in zip(backbone(x), (maps[0], maps[2]), strict=True):
        assert feature.equal(expected)
    assert backbone.feature_info.channels() == [16, 48]
    assert backbone.feature_info.reduction() == [4, 16]
    backbone.model.set_input_size((96, 64))
    assert backbone(x)[1].equal(maps[2])


def test_classifier():
    x = torch.randn(1, 1, 64, 64)
    model = tiny(num_classes=0, in_chans=1).eval()
    assert model(x).shape == (1, 64)
    assert model.forward_head(model.forward_features(x), pre_logits=True).equal(model(x))
    model.reset_classifier(5)
    assert model(x).shape == (1, 5)
    assert model.get_classifier() is model.head
    model.reset_classifier(0, "")
    assert model(x).shape == (1, 2, 2, 64)


def test_layouts_and_precisions():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), logits, rtol=0, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), logits, rtol=0, atol=0.05)
    halves = tiny(dtype=torch.bfloat16)
    assert {p.dtype for p in halves.parameters()} == {torch.bfloat16}
    assert halves(x.bfloat16()).dtype == torch.bfloat16


def test_export_and_compile():
    model = tiny(depths=(1, 1, 1, 1)).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = model(x)
        batch = torch.export.Dim("batch", min=1, max=8)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
        torch.testing.assert_close(exported(x[:1]), logits[:1], rtol=0, atol=1e-5)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), logits, rtol=0, atol=1e-5)
