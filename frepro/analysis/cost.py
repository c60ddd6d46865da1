"""Parameters, multiply-accumulates and throughput."""

import time
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn, use_fused_attn
from torch.utils.flop_counter import FlopCounterMode

import frepro.models  # noqa: F401 - registers them with timm
from frepro.errors import FreproError, unknown
from frepro.runs import Throughput


def count(model: str, img_size: int = 224, **model_args: Any) -> dict[str, int]:
    """Parameters, and multiply-accumulates of one image by the papers' convention.

    The papers print what fvcore counts and call it FLOPs: multiply-accumulates of convolutions and matrix products,
    a complex product as one, with attention written out. FFTs, elementwise operations and scans are not counted.
    The model is made on the meta device, so that nothing is computed.

    Returns:
        ``params`` and ``macs``.
    """
    if not timm.is_model(model):
        raise unknown("model", model, timm.list_models())
    fused = use_fused_attn()
    set_fused_attn(False)  # a fused attention hides its products from the counter
    try:
        with torch.device("meta"):
            network = timm.create_model(model, **model_args).eval()
            image = torch.empty(1, 3, img_size, img_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        set_fused_attn(fused)
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"params": params, "macs": counter.get_total_flops() // 2}


def throughput(job: Throughput) -> dict[str, Any]:
    """The record of a throughput measurement: the stored one if there is one, else it is measured now.

    All models take turns in each round, so that a machine that grows faster or slower treats them alike; float32,
    eager, inference. The record holds images per second of every round, for each model in the order of ``job.models``.
    """
    record = job.measurement.record()
    if record is not None:
        return record
    with job.measurement.lock():
        if record := job.measurement.record():
            return record  # another process finished it in the meantime
        started = time.perf_counter()
        values = {"images_per_second": measure_throughput(job)}
        return job.measurement.write(values, time.perf_counter() - started, job.device)


def measure_throughput(job: Throughput) -> list[list[float]]:
    """Images per second, (models, rounds)."""
    device, size = torch.device(job.device), job.benchmark.img_size
    try:
        images = torch.randn(job.benchmark.batch_size, 3, size, size, device=device)
        networks = [timm.create_model(name, **dict(args)).to(device).eval() for name, args in job.models]
    except torch.OutOfMemoryError as error:
        raise FreproError(f"{len(job.models)} models do not fit on {job.name} together: time fewer") from error
    rates: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for network in networks:  # warm-up: memory, FFT plans, clocks
            network(images)
        for _ in range(job.benchmark.rounds):
            for network, rate in zip(networks, rates, strict=True):
                rate.append(len(images) / _seconds(network, images))
    return rates


def _seconds(network: torch.nn.Module, images: torch.Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    started = time.perf_counter()
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started
