"""Pyramids have maps of one width at the strides that detectors and segmenters expect, on whichever backbone."""

import pytest
import torch
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from frepro.errors import FreproError
from frepro.tasks.pyramid import FeaturePyramid, SimpleFeaturePyramid, Stages, feature_pyramid

FOUR_STAGES = {
    "dfformer_s18": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)},
    "spanet_small": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)},
    "spanetv2_s18_hybrid": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)},
    "resnet18": {},
}
PLAIN = {
    "vimf_tiny_h": {"embed_dim": 16, "depth": 2, "d_state": 4},
    "vim_tiny": {"embed_dim": 16, "depth": 2, "d_state": 4},
    "vimf_tiny_h_stride8": {"embed_dim": 16, "depth": 2, "d_state": 4},
}
TINY = FOUR_STAGES | PLAIN


def images(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("count", [3, 4])
def test_maps_halve_down_to_stride_32_and_one_more(backbone, count):
    pyramid = feature_pyramid(backbone, count, 8, lambda *_: LastLevelMaxPool(), **TINY[backbone])
    assert isinstance(pyramid, SimpleFeaturePyramid if backbone in PLAIN else FeaturePyramid)
    maps = pyramid(images())
    strides = [32 // 2**i for i in reversed(range(count))] + [64]
    assert [tuple(each.shape) for each in maps.values()] == [(2, 8, 64 // s, -(-96 // s)) for s in strides]
    assert list(maps) == [*(str(i) for i in range(count)), "pool"]


@pytest.mark.parametrize("backbone", TINY)
def test_every_parameter_gets_a_gradient(backbone):
    pyramid = feature_pyramid(backbone, 4, 8, **TINY[backbone])
    sum(each.square().sum() for each in pyramid(images()).values()).backward()
    without = [name for name, each in pyramid.named_parameters() if each.requires_grad and each.grad is None]
    assert not without


def test_maps_have_the_norm_of_the_official_dense_backbones():
    x = images()
    for backbone, has_bias in {"dfformer_s18": True, "spanet_small": True, "spanetv2_s18_hybrid": False}.items():
        stages = Stages(backbone, **TINY[backbone])
        over = (1, 2, 3) if backbone.startswith("spanet_") else 1
        for each in stages(x).values():
            torch.testing.assert_close(each.mean(over), torch.zeros_like(each.mean(over)), atol=1e-4, rtol=0)
            torch.testing.assert_close(each.var(over, correction=0).mean(), torch.tensor(1.0), atol=0.05, rtol=0)
        assert [norm.bias is not None for norm in stages.norms] == 4 * [has_bias]
    assert all(isinstance(norm, nn.Identity) for norm in Stages("resnet18").norms)


def test_a_plain_backbone_gives_its_last_map_without_the_last_norm():
    torch.manual_seed(0)
    stages = Stages("vim_tiny", **TINY["vim_tiny"]).eval()
    (last,) = stages(images()).values()
    assert last.shape == (2, 16, 4, 6)
    assert isinstance(stages.body.norm_f, nn.Identity)


def test_the_backbone_has_no_classifier():
    for backbone, arguments in TINY.items():
        names = [name for name, _ in Stages(backbone, **arguments).named_parameters()]
        assert not [name for name in names if "head" in name or name.startswith("body.fc")], backbone


def test_an_unknown_backbone_is_named():
    with pytest.raises(FreproError, match=r"unknown model 'dformer_s18': did you mean .*dfformer_s18"):
        Stages("dformer_s18")
