"""Cost: parameters and FLOPs of the official code and as printed, to the decimal; FFTs and scans by formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from frepro import ops, papers
from frepro.analysis import cost, sizes
from frepro.models import dfformer, vim
from frepro.recipes import Benchmark
from frepro.store import provenance
from frepro.training.runs import Throughput
from tests.golden import official_sizes


@pytest.fixture(scope="module")
def counted() -> dict[str, sizes.Size]:
    """Every model of frepro, counted now."""
    return {model: sizes.size(model) for model in provenance.own_models()}


@pytest.mark.parametrize("name", official_sizes())
def test_params_and_flops_as_fvcore_counts_and_as_printed(counted, name):
    official = official_sizes()[name]
    params, macs = counted[name].params / 1e6, counted[name].macs / 1e9
    assert round(params, 2) == official.get("params_m", round(params, 2))
    assert round(macs, 2) == official.get("macs_g", round(macs, 2))
    if printed := official.get("printed_params_m"):
        # SPANet's paper prints one decimal.
        assert official.get("counted_params_m", printed) == round(params, 1 if name.startswith("spanet_") else None)
    if printed := official.get("printed_macs_g"):
        assert official.get("counted_macs_g", printed) == round(macs, 1)


def test_ablations_of_spanet_cost_the_same(counted):
    """Table 5 has one figure for all rows: 29 M and 4.6 G."""
    rows = [counted[row.model] for row in papers.load("spanet").tables[5].rows]
    assert {(round(size.params / 1e6), round(size.macs / 1e9, 1)) for size in rows} == {(29, 4.6)}


def test_the_committed_sizes_are_what_is_counted(counted, monkeypatch):
    monkeypatch.delenv("FREPRO_RESULTS")
    assert {size.model: size for size in sizes.read()} == counted, "make them anew: frepro sizes"


def test_vims_print_is_counted_as_localmamba_does(monkeypatch):
    """1.5 and 5.1 G are printed for Vim, and the same for Vim-F(H)."""
    found = {model: cost.vim_flops(model) for model in sizes.VIM_FLOPS}
    rounded = {model: {way: round(macs / 1e9, 1) for way, macs in ways.items()} for model, ways in found.items()}
    for model, printed in (("vim_tiny", 1.5), ("vim_small", 5.1)):
        assert [way for way, macs in rounded[model].items() if macs == printed] == ["as LocalMamba's code"]
    assert rounded["vimf_tiny_h"]["as LocalMamba's code"] == 1.5
    assert rounded["vimf_small_h"]["as LocalMamba's code"] == 5.2
    monkeypatch.delenv("FREPRO_RESULTS")
    committed = {(row.model, row.counting): row.macs for row in sizes.read_vim_flops()}
    assert committed == {(model, way): round(macs) for model, ways in found.items() for way, macs in ways.items()}


def test_the_stem_of_vim_f_costs_what_the_paper_says(counted):
    """Section 4.3: 0.035 G more than Vim-Ti."""
    assert (counted["vimf_tiny_h"].macs - counted["vim_tiny"].macs) / 1e9 == pytest.approx(0.035, abs=0.002)


def test_every_operation_has_a_formula_or_costs_nothing():
    seen = {"depthwise_conv", "linear"}  # by the counter
    free = {
        "gelu",
        "star_relu",
        "resize_filter",
        "spectral_pooling_mask",
    }  # elementwise, or nothing to do at a model's own size
    assert set(cost.FORMULAS) | seen | free == set(ops.__all__)


def spectral(**model_args) -> int:
    """Operations of the spectral part of a one-block GFNet with 14 x 14 patches."""
    return 2 * cost.count("gfnet_ti", depths=(1,), num_classes=0, **model_args)["spectral"]


def test_a_global_filter_by_hand():
    """Two real FFTs, 2.5 n log2(n) each, and 6 operations at each of 14 x 8 frequencies, for each channel."""
    by_hand = 64 * (2 * 2.5 * 196 * math.log2(196) + 6 * 14 * 8)
    assert spectral(dims=(64,)) == pytest.approx(by_hand, abs=2)
    assert spectral(dims=(128,)) == pytest.approx(2 * by_hand, abs=2)


def test_an_fft_that_a_model_calls_itself_is_counted_as_one_of_ops():
    """AFNO calls torch's FFT: as dear as the static filter's but for the product, which is a matrix's."""
    afno, static = cost.count("dfformer_s18_afno"), cost.count("gfformer_s18")
    products = sum(
        6 * 2 * dim * side * (side // 2 + 1) * depth
        for dim, side, depth in zip((64, 128, 320, 512), (56, 28, 14, 7), (3, 3, 9, 3), strict=True)
    )
    assert static["spectral"] - afno["spectral"] == pytest.approx(products / 2, rel=1e-6)


def test_a_scan_by_hand():
    """Two directions of 24 layers, 197 tokens, 384 channels, 16 numbers of state each."""
    assert cost.count("vim_tiny")["scan"] * 2 == 2 * 24 * 197 * 384 * (9 * 16 + 2)


def test_counting_leaves_the_models_as_they_were():
    cost.count("vim_tiny", depth=1)
    cost.count("dfformer_s18", depths=(1, 1, 1, 1))
    assert dfformer.dynamic_filter is ops.dynamic_filter
    assert vim.selective_scan is ops.selective_scan


def test_attention_is_counted():
    """timm's CAFormer-S18 prints 4.1 G; with a fused attention a counter sees less."""
    assert round(cost.count("caformer_s18")["macs"] / 1e9, 1) == 4.1


def test_counts_of_a_known_convolution():
    counted = cost.count("resnet18")
    assert counted["params"] == 11_689_512
    assert round(counted["macs"] / 1e9, 2) == 1.81


def test_a_backbone_is_counted_without_its_head():
    """ResNet-18 by hand: its classifier has 513,000 parameters, and nothing else depends on the image."""
    counted = cost.count_backbone("resnet18", (64, 96))
    assert counted["params"] == 11_689_512 - 513_000
    square = cost.count_backbone("resnet18", (64, 64))
    assert counted["macs"] == 1.5 * square["macs"]


def test_filters_are_made_for_the_image_or_for_a_size():
    made_for_image, resized = (
        cost.count_backbone("dfformer_s18", (512, 512), native_size) for native_size in (None, 224)
    )
    # Table 3 of DFFormer prints 31.7 M, and the official code has 31.72 M: with a norm for each map, a pyramid of 256
    # channels, and a head of seven convolutions of 128 with batch norms and a classifier of 150 classes.
    widths, pyramid, head = (64, 128, 320, 512), 256, 128
    norms = 2 * sum(widths)
    fpn = sum(width * pyramid + pyramid for width in widths) + 4 * (9 * pyramid**2 + pyramid)
    semantic = 4 * (9 * pyramid * head + 2 * head) + 3 * (9 * head**2 + 2 * head) + 150 * (head + 1)
    assert round((made_for_image["params"] + norms + fpn + semantic) / 1e6, 2) == 31.72
    assert resized["params"] < made_for_image["params"]
    assert resized["macs"] == made_for_image["macs"]


def test_norms_of_a_backbone_are_counted_as_those_of_the_classifier():
    """Head apart, which is 1.6 M products and a norm of 512."""
    whole, backbone = cost.count("spanetv2_s18_pure"), cost.count_backbone("spanetv2_s18_pure", (224, 224))
    assert 0 < whole["macs"] - backbone["macs"] < 4e6


def test_swin_and_vim_take_wide_images():
    for model, per_pixel in (("swin_tiny_patch4_window7_224", 4.5e9), ("vimf_tiny_h", 1.33e9), ("vim_tiny", 1.29e9)):
        wide = cost.count_backbone(model, (224, 448))
        assert wide["macs"] == pytest.approx(2 * per_pixel, rel=0.03)


def test_models_that_take_turns_are_stored_one_by_one_with_their_session():
    jobs = [
        Throughput("paper/table_1", name, {}, Benchmark(2, 32, 3), "cpu", "this machine")
        for name in ("resnet18", "resnet34")
    ]
    records = cost.throughput(jobs)
    assert [job.measurement.record() for job in jobs] == records
    rates = [record["values"]["images_per_second"] for record in records]
    assert [len(rate) for rate in rates] == [3, 3]
    assert all(value > 0 for rate in rates for value in rate)
    assert len({record["values"]["session"] for record in records}) == 1
    (later,) = cost.throughput(jobs[:1])
    assert later["values"]["session"] != records[0]["values"]["session"]
    assert torch.is_grad_enabled()


def test_what_is_passed_over_changes_no_shape():
    def sizes_of(size):
        with torch.device("meta"):
            x = torch.empty(2, 3, 5, 7)
            return torch.empty_like(x).clamp_(0, 1).shape, F.interpolate(x, size=size, mode="bicubic").shape

    whole = sizes_of((11, 4))
    with cost.ShapesAlone():
        assert sizes_of((11, 4)) == whole == ((2, 3, 5, 7), (2, 3, 11, 4))


def test_matrix_products_are_linear_layers_pointwise_convolutions_and_attention():
    tokens, dim = 197, 192
    block = tokens * (3 + 1 + 4 + 4) * dim**2 + 2 * tokens**2 * dim
    assert cost.matrix_products("deit_tiny_patch16_224", 224) == 12 * block + dim * 1000
    pointwise = 64 * 128 * 28**2 + 128 * 256 * 14**2 + 256 * 512 * 7**2  # of the shortcuts; all others are 3 × 3
    assert cost.matrix_products("resnet18", 224) == pointwise + 512 * 1000
    for name in ("dfformer_s18", "spanet_small", "vimf_tiny_h"):  # without norms, spectra and other convolutions
        assert 0.9 * cost.count(name)["macs"] < cost.matrix_products(name, 224) < cost.count(name)["macs"]
