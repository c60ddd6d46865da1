"""Graphs of modules: what a module does is in its graph, and what it does not do is not."""

import pytest
import timm
import torch
from torch import nn

from frepro.analysis.structure import Node, dataflow, describe
from frepro.models.dfformer import DynamicFilter
from frepro.models.metaformer import MetaFormerBlock
from frepro.models.spanet import SPAM
from frepro.models.vim import BidirectionalMamba
from frepro.models.vimf import SpectralPatchEmbed
from frepro.ops import amplitude_spectrum


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(1, *shape, device="meta")


def titles(nodes: list[Node]) -> list[str]:
    return [node.title for node in nodes]


def named(nodes: list[Node], name: str) -> Node:
    (found,) = [node for node in nodes if node.name.partition("  ")[0] == name]
    return found


def spam(**kwargs) -> list[Node]:
    return dataflow(SPAM(30, size=(8, 8), device="meta", **kwargs), meta(30, 8, 8))


def test_every_edge_leads_from_input_to_output():
    nodes = spam()
    seen = {id(nodes[0])}
    for node in nodes[1:]:
        assert node.sources
        assert all(id(source) in seen for source in node.sources)
        seen.add(id(node))
    assert (nodes[0].kind, nodes[-1].kind) == ("input", "output")
    assert nodes[-1].shape == (30, 8, 8)


def test_spam_is_its_formula():
    nodes = spam()
    (product,) = [node for node in nodes if node.title == "×"]
    assert [source.name or source.title for source in product.sources] == ["conv.1", "+"]
    assert [node.name for node in nodes if node.title == "spectral_pool"] == [
        f"sps.{i}  radius 2, λ {balance}" for i, balance in enumerate((0.7, 0.8, 0.9))
    ]
    assert named(nodes, "proj_out").sources == [product]


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        ({"kernel_size": 5}, "conv 1 × 7\ndepthwise", "conv 1 × 5\ndepthwise"),
        ({"radius": 3}, "sps.0  radius 2, λ 0.7", "sps.0  radius 3, λ 0.7"),
        ({"balances": (0.6, 0.9)}, "split into\n10, 10, 10", "split into\n15, 15"),
        ({"spectral_pooling": False}, "sps.1  radius 2, λ 0.8", None),
    ],
)
def test_a_change_of_the_module_is_a_change_of_the_graph(change, old, new):
    before, after = ([node.title for node in n] + [node.name for node in n] for n in (spam(), spam(**change)))
    assert old in before
    assert old not in after
    assert new is None or (new in after and new not in before)


def test_gates_that_are_multiplied_have_no_plus():
    assert titles(spam()).count("+") == 2
    assert titles(spam(aggregation="multiply")).count("+") == 0


@pytest.mark.parametrize("dim", [16, 24])
def test_dimensions_of_the_dynamic_filter(dim):
    with torch.device("meta"):
        module = DynamicFilter(dim, size=(8, 6), num_filters=3)
    nodes = dataflow(module, meta(8, 6, dim))
    (operation,) = [node for node in nodes if node.kind == "filter"]
    assert operation.title == "dynamic_filter"
    assert operation.name == "complex_weights  8 × 4 × 3 × 2"
    assert [source.title for source in operation.sources] == ["StarReLU", "softmax"]
    assert named(nodes, "pwconv1").title == f"linear {dim} → {2 * dim}"
    assert named(nodes, "pwconv1").shape == (8, 6, 2 * dim)
    assert f"linear {dim // 4} → {2 * 3 * dim}" in named(nodes, "reweight").title


def test_a_row_of_equal_blocks_is_one_box():
    with torch.device("meta"):
        network = timm.create_model("cdfformer_s18", depths=(1, 2, 4, 1)).eval()
    blocks = [node for node in dataflow(network, meta(3, 64, 64), closed=(MetaFormerBlock,)) if "Block" in node.title]
    assert [node.count for node in blocks] == [1, 2, 4, 1]
    assert [node.title.split()[-1] for node in blocks] == ["SepConv", "SepConv", "DynamicFilter", "DynamicFilter"]
    assert blocks[2].name == "stages.2.0 … stages.2.3"


def test_a_row_that_something_else_looks_into_stays_apart():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y) + y

    Skip.__module__ = "frepro.models.skip"
    nodes = dataflow(Skip().to("meta"), meta(4))
    assert titles(nodes) == ["input", "linear 4 → 4", "linear 4 → 4", "+", "output"]
    assert [len(node.sources) for node in nodes] == [0, 1, 1, 2, 1]


def test_both_directions_of_mamba_have_parameters_of_their_own():
    nodes = dataflow(BidirectionalMamba(32, d_state=4, device="meta"), meta(10, 32))
    forward, backward = [node for node in nodes if node.title.startswith("selective_scan")]
    assert forward.name == "A_log  64 × 4\nD  64\ndt_proj.bias  64"
    assert backward.name == "A_b_log  64 × 4\nD_b  64\ndt_proj_b.bias  64"
    assert nodes[-3].sources == [forward, backward]
    added = dataflow(BidirectionalMamba(32, d_state=4, average_directions=False, device="meta"), meta(10, 32))
    assert (nodes[-3].title, added[-3].title) == ("lerp 0.5", "+")


def test_an_operation_that_a_module_was_given_is_seen():
    module = SpectralPatchEmbed(3, 32, stride=16, stem="conv", spectrum=amplitude_spectrum, device="meta")
    nodes = dataflow(module, meta(3, 64, 64))
    assert [node.title for node in nodes if node.kind == "filter"] == ["amplitude_spectrum"]
    assert [node.name for node in nodes if node.title == "×"] == ["sup_c[0]", "sup_c[1]"]
    assert module.spectrum is amplitude_spectrum  # as it was


def test_descriptions():
    assert describe(nn.Conv2d(4, 8, 3, 2, groups=2)) == "conv 3 × 3, stride 2\n4 → 8\n2 groups"
    assert describe(nn.Conv2d(4, 4, (1, 7), groups=4)) == "conv 1 × 7\ndepthwise"
    assert describe(nn.GELU()) == "GELU"
