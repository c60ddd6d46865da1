"""Evaluation of stored weights, those of a run or the authors', on the test images of a data set."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frepro import tasks
from frepro.data.loading import TestBatches, loader
from frepro.errors import FreproError
from frepro.models.official import load_strictly, read, unwrap
from frepro.store import records
from frepro.tasks.pretrained import classifier_weights
from frepro.training import loop
from frepro.training.runs import Run, Start

MOST = 128  # default number of images in a forward pass; the scores do not depend on it


def network(run: Run) -> nn.Module:
    """Return the trained network of a run, in evaluation mode on the CPU.

    The ``pretrained_cfg`` of a classifier gives the image size that it was trained at.

    Raises:
        FreproError: The run has not been trained, or its weights are missing or damaged.
    """
    if run.own_record() is None:
        raise FreproError(f"{run.title} has not been trained yet: train it first")
    weights = run.measurement.folder / "model.safetensors"
    if not weights.exists():
        raise FreproError(f"the weights of run {run.measurement.key} are missing: delete its folder and train it again")
    records.check_weights(weights)
    found = tasks.of(replace(run, start=None)).network(drop_path=0.0)  # the file it started from may be gone
    load_strictly(found, read(weights), str(weights))
    if run.recipe.network is None:
        config: Any = found.pretrained_cfg  # a dictionary, which the annotations of nn.Module leave out
        config["input_size"] = (3, run.recipe.img_size, run.recipe.img_size)
    return found.eval()


def evaluate_checkpoint(run: Run, weights: Path, execution: loop.Execution) -> dict[str, float]:
    """Return the metrics of stored weights on the test images of a run's data set, without training.

    Args:
        weights: A file that ``models.official.read`` accepts, with the weights of the complete network that the run
            would train.

    Raises:
        FreproError: The file cannot be read, it does not match the network or the data, or memory runs out.
    """
    task = tasks.of(run)
    records.check_weights(weights)
    tensors = unwrap(read(weights), named=str(weights))
    found = task.network(drop_path=0.0)
    check_classes(found, tensors, run, weights)
    if "." in run.model:  # weights of timm by tag, which timm may have to convert
        tensors = classifier_weights(run, Start.of(weights), tensors)
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
            f"{weights}: out of memory on {accelerator.device}: limit the images in a forward pass, for example with "
            "--per-device 32 (make: PER_DEVICE=32)"
        ) from error


def reevaluate(run: Run, checkpoint: Start, execution: loop.Execution) -> dict[str, Any]:
    """Return the stored record of ``evaluate_checkpoint``; if there is none, evaluate and store it."""
    measurement = run.evaluation(checkpoint)
    with measurement.lock(execution.log or loop.warn):
        if record := measurement.record():
            return record
        started = time.perf_counter()
        values = evaluate_checkpoint(run, checkpoint.file, execution)
        return measurement.write(values, time.perf_counter() - started, execution.device)


def check_classes(network: nn.Module, tensors: dict[str, Any], run: Run, weights: Path) -> None:
    """Raise ``FreproError`` if a classifier's weights are for a different number of classes than the data set has."""
    if run.recipe.network is not None:
        return
    config: Any = network.pretrained_cfg
    name = f"{config['classifier']}.weight"
    own = network.state_dict().get(name)
    if name in tensors and own is not None and len(tensors[name]) != len(own):
        raise FreproError(
            f"{weights} has {len(tensors[name]):,} classes, but {run.source.name} has {len(own):,}: give the data set "
            "that it was trained on"
        )
