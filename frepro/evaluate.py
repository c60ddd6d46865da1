"""Stored weights, of a run or of the authors, on the test images of a data set."""

from pathlib import Path
from typing import Any

from torch import nn

from frepro import train
from frepro.data.loading import TestBatches, count_classes, loader, samples
from frepro.data.sources import Source
from frepro.errors import FreproError
from frepro.models.official import load_strictly, read, unwrap
from frepro.recipes import Recipe
from frepro.runs import Run


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
    mean, std = train.normalisation(run.model)
    classes = run.source.classes or count_classes(samples(run.source, "test", run.recipe, mean, std, seed=0))
    found = train.create_model(run.model, run.all_model_args, classes, run.recipe.img_size, drop_path=0.0)
    load_strictly(found, read(weights), str(weights))
    found.pretrained_cfg["input_size"] = (3, run.recipe.img_size, run.recipe.img_size)
    return found.eval()


def evaluate_checkpoint(
    model: str, weights: Path, source: Source, recipe: Recipe, execution: train.Execution, model_args: dict[str, Any]
) -> dict[str, float]:
    """Accuracy of stored weights on the test images of a data set; ``weights`` as in ``models.official.read``.

    Raises:
        FreproError: The file cannot be read, or does not fit the model.
    """
    recipe = recipe.of(model)
    accelerator = train.make_accelerator(execution.device, recipe.precision)
    test_set = samples(source, "test", recipe, *train.normalisation(model), seed=0)
    num_classes = source.classes or count_classes(test_set)
    network = train.create_model(
        model, {**recipe.model_args, **model_args}, num_classes, recipe.img_size, drop_path=0.0
    )
    load_strictly(network, unwrap(read(weights), named=str(weights)), str(weights))
    network.to(accelerator.device)
    batch = execution.per_device or recipe.batch_size
    batches = TestBatches(len(test_set), batch, accelerator.process_index, accelerator.num_processes)
    test_loader = loader(test_set, batches, execution.workers, accelerator.device.type == "cuda")
    return {"test_images": len(test_set), **train.evaluate(network, test_loader, len(test_set), accelerator)}
