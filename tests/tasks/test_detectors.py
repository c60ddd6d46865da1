"""Detectors of torchvision's parts: losses, gradients and detections; a cascade of one stage is torchvision's."""

import pytest
import torch
from torchvision.models.detection import MaskRCNN

from frepro.errors import FreproError
from frepro.tasks import detectors as detection
from tests.tasks.test_pyramid import TINY

SIZE = 64
SMALL = {
    "pyramid": 16,
    "width": 32,
    "convs": 1,
    "smallest_anchor": 12,
    "anchors": 24,
    "proposals": 20,
    "rois": 16,
    "samples": 1,
    "detections": 5,
}


def images(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, SIZE, SIZE, generator=generator) for _ in range(count)]


def target(*boxes: tuple[int, int, int, int]) -> dict[str, torch.Tensor]:
    """True objects, of classes 1, 2, ... in turn, that fill their boxes."""
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.arange(1, len(boxes) + 1),
        "masks": masks,
    }


def make(detector: str, backbone: str, num_classes: int = 3) -> torch.nn.Module:
    """A detector that looks at few boxes, for speed."""
    torch.manual_seed(0)
    return detection.create(
        detector, backbone, num_classes, min_size=SIZE, max_size=SIZE, proposals=50, rois=16, **TINY[backbone]
    )


@pytest.mark.parametrize("backbone", ["dfformer_s18", "vimf_tiny_h"])
@pytest.mark.parametrize("detector", detection.DETECTORS)
def test_losses_gradients_and_detections(detector, backbone):
    network = make(detector, backbone)
    targets = [target((4, 4, 40, 36), (30, 30, 60, 62)), target((10, 20, 50, 60))]
    losses = network(images(), targets)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values()), losses
    sum(losses.values()).backward()
    without = [name for name, each in network.named_parameters() if each.requires_grad and each.grad is None]
    assert not without
    with torch.no_grad():
        found = network.eval()(images())
    for each in found:
        assert each["boxes"].shape == (len(each["scores"]), 4)
        assert set(each["labels"].tolist()) <= {1, 2, 3}
        if detector != "retinanet":
            assert each["masks"].shape == (len(each["scores"]), 1, SIZE, SIZE)


@pytest.mark.parametrize("detector", detection.DETECTORS)
@pytest.mark.parametrize("boxes", [[], [(4, 4, 40, 36)]], ids=["nowhere", "in one image"])
def test_images_without_objects(detector, boxes):
    network = make(detector, "dfformer_s18")
    losses = network(images(), [target(*boxes), target()])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values()), losses
    assert all(each.grad.isfinite().all() for each in network.parameters() if each.grad is not None)


def test_images_of_one_colour_give_detectors_nothing_to_fail_at():
    for detector in detection.DETECTORS:
        network = make(detector, "dfformer_s18").eval()
        with torch.no_grad():
            (found,) = network([torch.zeros(3, SIZE, SIZE)])
        assert found["boxes"].isfinite().all()


def test_an_image_that_would_scale_to_nothing_is_named():
    network = make("mask_rcnn", "dfformer_s18").eval()
    with pytest.raises(FreproError, match="image of 2000 x 1 pixels is too narrow: its short side would have no pixel"):
        network([torch.zeros(3, 1, 2000)])


@pytest.mark.parametrize("detector", detection.DETECTORS)
def test_boxes_stay_float32_under_autocast(detector):
    network = make(detector, "dfformer_s18")
    targets = [target((4, 4, 40, 36), (30, 30, 60, 62)), target((10, 20, 50, 60))]
    seen = []
    if detector != "retinanet":
        network.rpn.register_forward_hook(lambda module, inputs, output: seen.extend(output[0]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images(), targets)
        with torch.no_grad():
            for each in network.eval()(images()):
                seen += [each["boxes"], each["scores"]]
    assert {each.dtype for each in [*losses.values(), *seen]} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())


@pytest.fixture
def pair():
    """Mask R-CNN by torchvision's class, and ours of the same parts with torchvision's box loss."""
    ours = make("mask_rcnn", "dfformer_s18")
    (stage,) = ours.roi_heads.stages
    theirs = MaskRCNN(ours.backbone, 4, min_size=SIZE, max_size=SIZE)
    theirs.rpn, theirs.roi_heads = ours.rpn, stage
    ours.roi_heads.box_loss = "smooth_l1"
    return ours, theirs


def test_one_stage_has_the_losses_of_torchvisions_mask_rcnn(pair):
    targets = [target((4, 4, 40, 36), (30, 30, 60, 62)), target()]
    expected, found = [], []
    for network, losses in zip(pair, (found, expected), strict=True):
        torch.manual_seed(1)  # of the sampling
        losses.append(network.train()(images(), targets))
    for name, value in expected[0].items():
        torch.testing.assert_close(found[0][name], value, msg=name)


def test_one_stage_has_the_detections_of_torchvisions_mask_rcnn(pair):
    ours, theirs = (network.eval() for network in pair)
    with torch.no_grad():
        for found, expected in zip(ours(images()), theirs(images()), strict=True):
            assert len(expected["scores"]) > 0
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, msg=key)


def test_a_stage_is_given_the_boxes_of_the_one_before():
    """Stages that move every box by one width to the right, from where they are given it."""
    network = make("cascade_mask_rcnn", "dfformer_s18").eval()
    heads = network.roi_heads
    for stage, precision in zip(heads.stages, (10, 20, 30), strict=True):
        assert stage.box_coder.weights == (precision, precision, precision / 2, precision / 2)
        with torch.no_grad():
            stage.box_predictor.bbox_pred.weight.zero_()
            stage.box_predictor.bbox_pred.bias.view(-1, 4).copy_(torch.tensor([precision, 0.0, 0.0, 0.0]))
            stage.box_predictor.cls_score.weight.zero_()
            stage.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    maps = network.backbone(torch.stack(images(1)))
    with torch.no_grad():
        (found,), losses = heads(maps, [torch.tensor([[2.0, 8.0, 12.0, 20.0]])], [(SIZE, SIZE)])
    assert losses == {}
    assert found["labels"].tolist()[0] == 2
    torch.testing.assert_close(found["boxes"][0], torch.tensor([32.0, 8.0, 42.0, 20.0]))
    torch.testing.assert_close(found["scores"][0], torch.tensor([0.0, 0.0, 5.0, 0.0]).softmax(0)[2])


def test_losses_of_the_stages_are_weighted():
    network = make("cascade_mask_rcnn", "dfformer_s18")
    targets = [target((4, 4, 40, 36)), target((10, 20, 50, 60))]
    by_weights = {}
    for weights in ([1.0, 0.5, 0.25], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]):
        network.roi_heads.loss_weights = weights
        torch.manual_seed(1)
        by_weights[tuple(weights)] = network(images(), targets)
    together, *stages = by_weights.values()
    for name in ("loss_classifier", "loss_box_reg", "loss_mask"):
        expected = stages[0][name] + 0.5 * stages[1][name] + 0.25 * stages[2][name]
        torch.testing.assert_close(together[name], expected)


def test_retinanet_takes_and_gives_labels_from_one():
    network = make("retinanet", "dfformer_s18", num_classes=1)
    torch.nn.init.constant_(network.head.classification_head.cls_logits.bias, 3.0)
    with torch.no_grad():
        found = network.eval()(images())
    assert {label for each in found for label in each["labels"].tolist()} == {1}
    with pytest.raises(IndexError):  # a class that there is not
        network.train()(images(1), [target((4, 4, 40, 36), (30, 30, 60, 62))])


@pytest.mark.parametrize("detector", detection.DETECTORS)
def test_small_detectors_train(detector):
    network = detection.create(detector, "dfformer_s18", 3, min_size=SIZE, **SMALL, **TINY["dfformer_s18"])
    losses = network(images(), [target((4, 4, 40, 36), (30, 30, 60, 62)), target((10, 20, 50, 60))])
    sum(losses.values()).backward()
    assert not [name for name, each in network.named_parameters() if each.requires_grad and each.grad is None]
    with torch.no_grad():
        assert all(len(each["boxes"]) <= SMALL["detections"] for each in network.eval()(images()))


def test_every_size_of_the_r_cnns_does_what_it_says():
    network = detection.create("cascade_mask_rcnn", "dfformer_s18", 3, min_size=SIZE, **SMALL, **TINY["dfformer_s18"])
    given, laid, shapes = [], [], []
    network.rpn.register_forward_hook(lambda module, inputs, output: given.extend(output[0]))
    network.rpn.anchor_generator.register_forward_hook(lambda module, inputs, output: laid.extend(output))
    for stage in network.roi_heads.stages:
        assert stage.box_roi_pool.sampling_ratio == stage.mask_roi_pool.sampling_ratio == SMALL["samples"]
        stage.box_head.register_forward_hook(
            lambda module, inputs, output: shapes.append((*inputs[0].shape, output.shape[1]))
        )
    network(images(1), [target((4, 4, 40, 36), (30, 30, 60, 62))])
    assert len(given[0]) <= SMALL["proposals"]
    assert network.rpn.fg_bg_sampler.batch_size_per_image == SMALL["anchors"]
    areas = {round(area) for area in (laid[0][:, 2:] - laid[0][:, :2]).prod(dim=1).tolist()}
    assert areas == {round((SMALL["smallest_anchor"] * 2**i) ** 2) for i in range(5)}
    assert [shape[1:] for shape in shapes] == 3 * [(SMALL["pyramid"], 7, 7, SMALL["width"])]
    assert max(shape[0] for shape in shapes) <= SMALL["rois"]


def test_retinanets_smallest_anchor():
    anchors = detection.create("retinanet", "dfformer_s18", smallest_anchor=12, **TINY["dfformer_s18"]).anchor_generator
    areas = torch.cat([(each[:, 2:] - each[:, :2]).prod(dim=1) for each in anchors.cell_anchors])
    torch.testing.assert_close(areas.min().sqrt(), torch.tensor(12.0))
    torch.testing.assert_close(areas.max().sqrt(), torch.tensor(12 * 16 * 2 ** (2 / 3)))


def test_what_is_published_is_what_is_given_by_default():
    network = detection.create("mask_rcnn", "dfformer_s18", **TINY["dfformer_s18"])
    (stage,) = network.roi_heads.stages
    assert network.rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert network.rpn._post_nms_top_n == {"training": 1000, "testing": 1000}
    assert (network.rpn.fg_bg_sampler.batch_size_per_image, stage.fg_bg_sampler.batch_size_per_image) == (256, 512)
    assert (stage.box_roi_pool.sampling_ratio, stage.detections_per_img) == (2, 100)
    assert (stage.box_head.fc6.in_features, stage.box_head.fc7.out_features) == (256 * 49, 1024)
    assert [tuple(each.shape) for each in network.rpn.anchor_generator.cell_anchors] == 5 * [(3, 4)]
    torch.testing.assert_close(network.rpn.anchor_generator.cell_anchors[0][1], torch.tensor([-16.0, -16, 16, 16]))


def test_an_unknown_detector_is_named():
    with pytest.raises(FreproError, match=r"unknown detector 'mask-rcnn': did you mean .*mask_rcnn"):
        detection.create("mask-rcnn", "dfformer_s18")
