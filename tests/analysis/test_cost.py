"""Cost: the published parameters and FLOPs, to the printed decimals."""

import pytest
import timm
import torch

from frepro import papers
from frepro.analysis import cost
from frepro.recipes import Benchmark
from frepro.runs import Throughput

TABLES = papers.load("dfformer").tables
PRINTED = {
    row.model: (row, TABLES[n])
    for n in (2, 4)
    for row in TABLES[n].rows
    if row.model and (n == 4 or "ours" in row.marks)
}
AFNO = ("dfformer_s18_afno", "dfformer_s18_relu_afno")  # printed without the products of AFNO's MLP


def test_all_fifteen_models_are_printed():
    assert set(PRINTED) == set(timm.list_models(module="dfformer"))


@pytest.mark.parametrize("name", PRINTED)
def test_params_and_flops_as_printed(name):
    row, table = PRINTED[name]
    counted = cost.count(name)
    assert round(counted["params"] / 1e6) == table.value(row, "params")
    if name in AFNO:
        assert round(counted["macs"] / 1e9, 2) == 4.45
        assert row.note is not None  # the table says why
    else:
        assert round(counted["macs"] / 1e9, 1) == table.value(row, "flops")


def test_attention_is_counted():
    """timm's CAFormer-S18 prints 4.1 G; with a fused attention a counter sees less."""
    assert round(cost.count("caformer_s18")["macs"] / 1e9, 1) == 4.1


def test_counts_of_a_known_convolution():
    counted = cost.count("resnet18")
    assert counted["params"] == 11_689_512
    assert round(counted["macs"] / 1e9, 2) == 1.81


def test_throughput_is_stored_and_not_measured_again():
    job = Throughput((("resnet18", ()), ("resnet34", ())), Benchmark(2, 32, 3), "cpu", "this machine")
    record = cost.throughput(job)
    rates = record["values"]["images_per_second"]
    assert [len(rate) for rate in rates] == [3, 3]
    assert all(value > 0 for rate in rates for value in rate)
    assert cost.throughput(job) == record
    assert torch.is_grad_enabled()
