"""Segmenters: losses, gradients and logits; ignored pixels; windows that together are the whole image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frepro.errors import FreproError
from frepro.tasks import segmenters as segmentation
from frepro.tasks.pyramid import Stages
from frepro.tasks.segmenters import inference
from tests.tasks.test_pyramid import TINY, images


def make(segmenter: str, backbone: str, num_classes: int = 5) -> segmentation.Segmenter:
    torch.manual_seed(0)
    return segmentation.create(segmenter, backbone, num_classes, **TINY[backbone])


@pytest.mark.parametrize("backbone", ["cdfformer_s18", "spanet_small", "spanetv2_s18_hybrid", "vimf_tiny_h"])
@pytest.mark.parametrize("segmenter", segmentation.SEGMENTERS)
def test_losses_gradients_and_logits(segmenter, backbone):
    network = segmentation.create(segmenter, backbone, 5, **TINY[backbone.removeprefix("c")])
    labels = torch.randint(5, (2, 64, 96))
    losses = network(images(), labels)
    assert set(losses) == ({"loss_seg", "loss_aux"} if segmenter == "upernet" else {"loss_seg"})
    sum(losses.values()).backward()
    without = [name for name, each in network.named_parameters() if each.requires_grad and each.grad is None]
    assert not without
    logits = inference(network.eval(), images())
    assert logits.shape == (2, 5, 64, 96)
    assert logits.isfinite().all()


def test_ignored_pixels_are_no_part_of_the_loss():
    logits = torch.randn(2, 5, 8, 8, requires_grad=True)
    labels = torch.randint(5, (2, 16, 16))
    labels[0] = 255
    loss = segmentation.cross_entropy(logits, labels)
    resized = F.interpolate(logits[1:], size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(loss, F.cross_entropy(resized, labels[1:]) / 2)
    loss.backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_a_batch_without_labels_has_no_loss():
    for segmenter in segmentation.SEGMENTERS:
        network = make(segmenter, "dfformer_s18")
        losses = network(images(), torch.full((2, 64, 96), 255))
        sum(losses.values()).backward()
        assert [loss.item() for loss in losses.values()] == [0.0] * len(losses)
        assert all(each.grad.isfinite().all() for each in network.parameters() if each.grad is not None)


def test_the_auxiliary_head_sees_the_map_at_stride_16():
    network = make("upernet", "resnet18")
    shapes = []
    network.auxiliary.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    losses = network(images(), torch.zeros(2, 64, 96, dtype=torch.long))
    assert shapes == [(2, 256, 4, 6)]
    shares = losses["loss_aux"] / losses["loss_seg"]
    assert 0.3 < shares < 0.5  # 0.4 of what is much the same before any training: log(5)


class Colours(nn.Module):
    """Logits that depend on a pixel's colour alone, and the sizes of what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(x.shape[2:]))
        return torch.cat([x, x.square()], dim=1)


@pytest.mark.parametrize("size", [(20, 31), (33, 16), (16, 16), (7, 40), (11, 9)])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 10), (16, 1)])
def test_windows_cover_the_image(size, window, stride):
    image = torch.randn(1, 3, *size)
    colours = Colours()
    logits = inference(colours, image, window=window, stride=stride)
    torch.testing.assert_close(logits, Colours()(image))
    assert set(colours.sizes) == {(min(size[0], window), min(size[1], window))}
    expected = [max(side - window + stride - 1, 0) // stride + 1 for side in size]  # as mmsegmentation has it
    assert len(colours.sizes) == expected[0] * expected[1]


def test_overlapping_windows_are_averaged():
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.full_like(x[:, :1], self.calls)

    logits = inference(Numbered(), torch.zeros(1, 3, 4, 10), window=4, stride=3)  # at 0, 3 and 6
    assert logits[0, 0, 0].tolist() == [1, 1, 1, 1.5, 2, 2, 2.5, 3, 3, 3]


def test_windows_of_512_every_341():
    colours = Colours()
    inference(colours, torch.zeros(1, 3, 512, 2048), window=512)
    assert colours.sizes == 6 * [(512, 512)]  # at 0, 341, 682, 1023, 1364 and 1536


def test_logits_at_the_labels_size():
    assert inference(Colours(), torch.zeros(1, 3, 8, 8), size=(5, 7)).shape == (1, 6, 5, 7)


def test_windows_with_gaps_are_refused():
    with pytest.raises(FreproError, match="windows of 8 pixels every 9 leave gaps: use a stride from 1 to 8"):
        inference(Colours(), torch.zeros(1, 3, 20, 20), window=8, stride=9)


@pytest.mark.parametrize("backbone", ["dfformer_s18", "vimf_tiny_h"])
@pytest.mark.parametrize("segmenter", segmentation.SEGMENTERS)
def test_channels_are_those_of_all_new_layers(segmenter, backbone):
    network = segmentation.create(segmenter, backbone, 5, pyramid=16, **TINY[backbone])
    sum(network(images(), torch.zeros(2, 64, 96, dtype=torch.long)).values()).backward()
    heads = [network.head] if network.auxiliary is None else [network.head, network.auxiliary]
    widths = {each.out_channels for head in heads for each in head.modules() if isinstance(each, nn.Conv2d)}
    assert widths == ({8, 5} if segmenter == "semantic_fpn" else {16, 8, 5})


@pytest.mark.parametrize("segmenter", segmentation.SEGMENTERS)
def test_a_backbones_channels_are_its_own(segmenter):
    """timm's ResNets have an argument of the name that a segmenter has for its pyramid's."""
    made = segmentation.create(segmenter, "resnet50", 3, pyramid=16, layers=[1, 1, 1, 1], channels=[8, 16, 24, 32])
    stages = next(module for module in made.modules() if isinstance(module, Stages))
    assert stages.channels == [32, 64, 96, 128]


def test_an_unknown_segmenter_is_named():
    with pytest.raises(FreproError, match="unknown segmenter 'fpn': choose from semantic_fpn, upernet"):
        segmentation.create("fpn", "dfformer_s18")
