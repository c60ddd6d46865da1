"""Stored weights, of a run or of the authors, on the test images of a data set."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frepro import tasks
from frepro.data.loading import TestBatches, loader
from frepro.errors import FreproError
from frepro.models.official import load_strictly, read, unwrap
from frepro.training import loop
from frepro.training.runs import Run, Start

MOST = 128  # images in a pass unless told otherwise; scores do not depend on it


def network(run: Run) -> nn.Module:
    """The network that a run has left, in evaluation mode on the CPU; its configuration names the size it learnt at.

    Raises:
        FreproError: The run has not been made, or its weights are gone.
    """
    if run.measurement.record() is None:
        raise FreproError(f"{run.title} has not been trained yet: train it first")
    weights = run.measurement.folder / "model.safetensors"
    if not weights.exists():
        raise FreproError(f"the weights of run {run.measurement.key} are gone: delete its folder, and it is made again")
    found = tasks.of(run).network(drop_path=0.0)
    load_strictly(found, read(weights), str(weights))
    if run.recipe.task == "classification":
        found.pretrained_cfg["input_size"] = (3, run.recipe.img_size, run.recipe.img_size)
    return found.eval()


def evaluate_checkpoint(run: Run, weights: Path, execution: loop.Execution) -> dict[str, float]:
    """The metrics of stored weights on the test images of a run's data set; nothing is trained.

    Args:
        weights: A file as ``models.official.read`` takes it, of the whole network that the run would train.

    Raises:
        FreproError: The file cannot be read, or does not fit the network or the data, or memory runs out.
    """
    task = tasks.of(run)
    tensors = unwrap(read(weights), named=str(weights))
    found = task.network(drop_path=0.0)
    check_classes(found, tensors, run, weights)
    load_strictly(found, tensors, str(weights))
    accelerator = loop.make_accelerator(execution.device, run.recipe.precision)
    found.to(accelerator.device)
    test_set = task.samples("test")
    batch = execution.per_device or min(run.recipe.batch_size, MOST)
    batches = TestBatches(len(test_set), batch, accelerator.process_index, accelerator.num_processes)
    test_loader = loader(test_set, batches, execution.workers, accelerator.device.type == "cuda", task.collate)
    try:
        return {"test_images": len(test_set), **loop.evaluate(task, found, test_loader, accelerator)}
    except torch.OutOfMemoryError as error:
        raise FreproError(
            f"{weights}: out of memory on {accelerator.device}: bound the images in a pass, as --per-device 32 "
            "(make: PER_DEVICE=32)"
        ) from error


def reevaluate(run: Run, checkpoint: Start, execution: loop.Execution) -> dict[str, Any]:
    """The record of ``evaluate_checkpoint``: the stored one if there is one, else it is made."""
    measurement = run.evaluation(checkpoint)
    with measurement.lock():
        if record := measurement.record():
            return record
        started = time.perf_counter()
        values = evaluate_checkpoint(run, checkpoint.file, execution)
        return measurement.write(values, time.perf_counter() - started, execution.device)


def check_classes(network: nn.Module, tensors: dict[str, Any], run: Run, weights: Path) -> None:
    """Raise if the weights of a classifier are for another number of classes than the data have."""
    if run.recipe.task != "classification":
        return
    name = f"{network.pretrained_cfg['classifier']}.weight"
    own = network.state_dict().get(name)
    if name in tensors and own is not None and len(tensors[name]) != len(own):
        raise FreproError(
            f"{weights} has {len(tensors[name]):,} classes and {run.source.name} {len(own):,}: name the data that it "
            "was trained on"
        )
