"""Context maps are what the SPAM mixers multiply the query with."""

import pytest
import timm
import torch

from frepro.analysis import attribution
from frepro.analysis.features import feature_maps
from frepro.models import spanet


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["spanet_small", "spanetv2_s18_hybrid"])
def test_context_modulates_the_query(name, images):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    found = attribution.contexts(model, images)
    down, mixed = feature_maps(model, images, ("downsample", "mixer"))[:2]
    block = model.stages[0][0]
    mixer = block.token_mixer
    with torch.no_grad():
        if isinstance(mixer, spanet.SPAM):
            expected = mixer.proj_out(mixer.conv(mixer.proj_in(block.norm1(down.value))) * found[mixer])
        else:
            query = mixer.query(block.norm1(down.value.permute(0, 2, 3, 1)))
            expected = mixer.proj_out(query * found[mixer].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(mixed.value, expected)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "stages"), [("spanet_small", [1, 2, 3, 4]), ("spanetv2_s18_hybrid", [1, 2])])
def test_maps_lie_over_the_image(name, stages, images):
    model = timm.create_model(name, num_classes=0)
    maps = attribution.context_maps(model, images)
    assert list(maps) == stages
    assert all(item.shape == (2, 64, 96) and float(item.min()) >= 0 for item in maps.values())
    assert model.training


def test_constant_context():
    """Gates that give -1, 0 and 3 whatever they see make a context of 2; a stage's map is its mean modulus."""
    model = timm.create_model("spanet_small", num_classes=0)
    with torch.no_grad():
        for block in model.stages[0]:
            for gate, value in zip(block.token_mixer.pws, (-1, 0, 3), strict=True):
                gate.weight.zero_()
                gate.bias.fill_(value)
        model.stages[0][0].token_mixer.pws[0].bias.fill_(-7)  # -4 in one block of four
    maps = attribution.context_maps(model, torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(maps[1], torch.full((1, 64, 64), (4 + 3 * 2) / 4))


def test_other_models_have_none(images):
    with pytest.raises(ValueError, match="no SPAM mixer"):
        attribution.context_maps(timm.create_model("dfformer_s18", num_classes=0), images)


def test_context_on_an_object():
    maps = {1: torch.ones(2, 8, 8), 2: torch.ones(2, 8, 8)}
    maps[1][:, :4] = 3
    masks = torch.zeros(2, 16, 16)
    masks[:, :8] = 1
    assert attribution.on_object(maps, masks) == pytest.approx({1: 3, 2: 1})
