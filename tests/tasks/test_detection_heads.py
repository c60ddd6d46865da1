"""Anchors and heads of detectors: the conventions of mmdetection on torchvision's components."""

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from frepro.tasks.detection_heads import P6P7, Anchors


def test_anchors_lie_at_the_maps_strides():
    anchors = Anchors(strides=(8, 64), scales=(4.0,))
    padded = torch.zeros(1, 3, 800, 800)
    maps = [torch.zeros(1, 1, 100, 100), torch.zeros(1, 1, 13, 13)]
    (laid,) = anchors(ImageList(padded, [(800, 800)]), maps)
    centres = (laid[:, :2] + laid[:, 2:]) / 2
    coarse = centres[3 * 100 * 100 :].view(13, 13, 3, 2)
    assert coarse[2, 5].tolist() == 3 * [[320.0, 128.0]]
    sides = (laid[:, 2:] - laid[:, :2])[:3]
    torch.testing.assert_close(sides.prod(dim=1), torch.full((3,), 32.0**2))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1.0, 2.0]))
    # torchvision's are the same, but for rounding and strides.
    theirs = AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),))
    assert (theirs.cell_anchors[0] - anchors.cell_anchors[0]).abs().max() <= 0.5


def test_the_last_maps_of_a_pyramid_are_linear_in_the_backbones():
    """No ReLU lies between them, unlike in torchvision: a change of sign passes through both convolutions."""
    maps = P6P7(4, 4)
    for conv in (maps.p6, maps.p7):
        torch.nn.init.zeros_(conv.bias)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (*_, p6, p7), names = maps([x], [x], ["0"])
    (*_, p6_negative, p7_negative), _ = maps([-x], [-x], ["0"])
    torch.testing.assert_close((p6_negative, p7_negative), (-p6, -p7))
    assert names == ["0", "p6", "p7"]
