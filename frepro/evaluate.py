"""Stored weights, of a run or of the authors, on the test images of a data set."""

from pathlib import Path
from typing import Any

from frepro import train
from frepro.data.loading import TestBatches, count_classes, loader, samples
from frepro.data.sources import Source
from frepro.models.official import load_strictly, read, unwrap
from frepro.recipes import Recipe


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
