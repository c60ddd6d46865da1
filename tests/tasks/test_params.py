"""Parameters and FLOPs of detectors and segmenters on the papers' backbones, as the papers print them.

What is printed is read from ``frepro/papers``; where it is not what is counted, ``OTHERWISE`` holds what is, and why.
Detectors and segmenters are made as the official code makes them, on the meta device.
"""

import timm
import torch

from frepro import papers
from frepro.analysis.cost import attention_written_out, count_network
from frepro.tasks import detection, segmentation

import pytest

# Each column of parameters: paper, table, rows, column and what has these parameters.
COLUMNS = [
    ("spanet", 3, None, "retinanet_params", detection.create, "retinanet", {}),
    ("spanet", 3, None, "params", detection.create, "mask_rcnn", {}),
    ("spanet", 4, None, "params", segmentation.create, "semantic_fpn", {}),
    ("dfformer", 3, None, "params", segmentation.create, "semantic_fpn", {"img_size": 512}),
    ("spanetv2", 4, "Semantic FPN", "params", segmentation.create, "semantic_fpn", {}),
    ("spanetv2", 4, "UperNet", "params", segmentation.create, "upernet", {}),
    ("vim-f", 4, None, "params", detection.create, "mask_rcnn", {}),
]
OWN = ("dfformer", "cdfformer", "spanet", "spanetv2", "vim", "vimf")


def rows():
    for paper, number, group, column, create, name, arguments in COLUMNS:
        table = papers.load(paper).tables[number]
        for row in table.rows:
            if group not in (None, table.group(row)) or row.model is None:
                continue
            if row.model.startswith("resnet") or row.model.split("_")[0] in OWN:
                own = arguments if not row.model.startswith("resnet") else {}
                decimals = table.column(column).decimals
                printed = table.value(row, column)
                yield pytest.param(create, name, row.model, own, printed, decimals, id=f"{paper}-{number}-{name}-{row.model}")


@pytest.mark.parametrize(("create", "name", "backbone", "arguments", "printed", "decimals"), rows())
def test_dump(create, name, backbone, arguments, printed, decimals):
    with torch.device("meta"):
        network = create(name, backbone, **arguments)
    total = sum(p.numel() for p in network.parameters())
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    print("DUMP", name, backbone, total / 1e6, frozen / 1e6, printed)


def macs(segmenter, backbone, height, width, **arguments):
    with attention_written_out(), torch.device("meta"):
        network = segmentation.create(segmenter, backbone, **arguments).eval()
        image = torch.empty(1, 3, height, width)
    return count_network(network, lambda: network(image))["macs"] / 1e9


def test_dump_macs():
    for b in ("resnet50", "resnet101", "spanet_small", "spanet_medium", "spanetv2_s18_pure", "spanetv2_s18_hybrid", "spanetv2_s36_pure", "spanetv2_s36_hybrid"):
        print("DUMP fpn", b, macs("semantic_fpn", b, 512, 512))
    for b in ("spanetv2_s18_pure", "spanetv2_s18_hybrid", "spanetv2_s36_pure", "spanetv2_s36_hybrid"):
        print("DUMP uper", b, macs("upernet", b, 512, 2048))


def rcnn_macs(network, height, width):
    def run():
        with torch.device("meta"):
            maps = network.backbone(torch.empty(1, 3, height, width))
            network.rpn.head(list(maps.values()))
            for stage in network.roi_heads.stages:
                stage.box_predictor(stage.box_head(torch.empty(1000, 256, 7, 7)))
                stage.mask_predictor(stage.mask_head(torch.empty(100, 256, 14, 14)))

    return count_network(network, run)


def test_dump_rcnn():
    for d, b in (("mask_rcnn", "resnet50"), ("mask_rcnn", "vim_tiny"), ("mask_rcnn", "vimf_tiny_h"), ("mask_rcnn", "vim_small"), ("mask_rcnn", "spanetv2_s18_pure"), ("mask_rcnn", "spanetv2_s18_hybrid"), ("cascade_mask_rcnn", "spanetv2_s18_pure"), ("cascade_mask_rcnn", "spanetv2_s18_hybrid"), ("cascade_mask_rcnn", "spanetv2_s36_pure"), ("cascade_mask_rcnn", "swin_tiny_patch4_window7_224")):
        with attention_written_out(), torch.device("meta"):
            try:
                network = detection.create(d, b).eval()
            except Exception as e:
                print("DUMP", d, b, repr(e)); continue
        p = sum(x.numel() for x in network.parameters())
        try:
            print("DUMP", d, b, p / 1e6, rcnn_macs(network, 800, 1280))
        except Exception as e:
            print("DUMP", d, b, p / 1e6, repr(e))
