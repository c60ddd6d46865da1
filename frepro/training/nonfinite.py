"""Handling of a non-finite loss: what led to it is stored, so that the forward pass can be replayed.

Files::

    results/runs/<key>/nonfinite/run.json              the run, the optimizer step, and the loss
    results/runs/<key>/nonfinite/weights.safetensors   the network's weights before that step
    results/runs/<key>/nonfinite/batch.pt              inputs and targets, as they were given to the network

Processes other than the main one write to nonfinite-<number>.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from frepro import recipes, tasks
from frepro.data.loading import STEP, seed_all
from frepro.data.sources import Source
from frepro.errors import FreproError, one_line
from frepro.store import records
from frepro.training.checkpoint import on_cpu, save
from frepro.training.fsdp import is_sharded
from frepro.training.runs import Run

# The errors of reading a damaged safetensors, JSON or pickle file.
BROKEN = (OSError, ValueError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError)


def check(
    job: Run, model: nn.Module, batch: Any, loss: Tensor, position: tuple[int, int, int], accelerator: Accelerator
) -> None:
    """Store what led to a loss that is not finite, and raise.

    Args:
        model: The network as it was in the forward pass.
        batch: Inputs and targets.
        position: Optimizer step, micro-batch within it, and process.

    Raises:
        FreproError: The loss is not finite; with a sharded network, the loss of any process.
    """
    is_finite = torch.isfinite(loss)
    if is_sharded(model):  # gathering its weights needs all processes
        finite = accelerator.gather(is_finite[None]).tolist()
        if all(finite):
            return
        weights = on_cpu(model.state_dict())
        if is_finite:
            first = finite.index(False)
            raise FreproError(f"{job.title}: the loss of process {first} is not finite: see the error of that process")
    elif is_finite:
        return
    else:
        weights = on_cpu(model.state_dict())
    raise keep(job, weights, batch, loss, position, accelerator.mixed_precision)


def keep(
    job: Run,
    weights: dict[str, Tensor],
    batch: Any,
    loss: Tensor,
    position: tuple[int, int, int],
    precision: str,
) -> FreproError:
    """Store what led to a loss, with arguments as in ``check``, and return the error to raise."""
    rank = position[2]  # several processes may fail at once
    folder = job.measurement.folder / (f"nonfinite-{rank}" if rank else "nonfinite")
    said = {
        "title": job.title,
        "model": job.model,
        "model_args": job.model_args,
        "task": job.recipe.task,
        "recipe": asdict(job.recipe) | {"by_model": {}},
        "profile": job.profile,
        "source": asdict(job.source),
        "seed": job.seed,
        "position": position,
        "precision": precision,
        "loss": str(loss.item()),
    }
    with records.atomic_replace(folder) as fresh:
        save(fresh / "weights.safetensors", weights)
        with records.atomic_write(fresh / "batch.pt") as temporary, temporary.open("wb") as file:
            torch.save(send_to_device(batch, "cpu"), file)  # an open file gives clearer errors than a path
        records.write_text(fresh / "run.json", json.dumps(said, indent=1) + "\n")
    return FreproError(
        f"{job.title}: the loss is {loss.item()} at optimizer step {position[0] + 1}: use a lower lr, or precision no; "
        f"`frepro replay {folder}` repeats that step and names the module where it began"
    )


def replay(folder: Path, make_accelerator: Callable[[str], Accelerator]) -> dict[str, Any]:
    """Repeat the forward pass that is stored in a folder.

    Args:
        make_accelerator: Returns the Accelerator to run on, given the precision of the run.

    Returns:
        ``title``; ``update``, the number of the optimizer step; ``loss``, the stored loss; ``again``, the loss of the
        repeated pass; ``weights``, the names of weights that are not finite; ``module``, the first module whose output
        is not finite (``None`` if all are); and ``inputs``, the largest absolute input value.

    Raises:
        FreproError: The folder does not hold a stored forward pass.
    """
    try:
        said = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        recipe = recipes.from_plain(said["task"], said["recipe"])
        job = Run(said["model"], recipe, said["profile"], Source(**said["source"]), said["seed"], said["model_args"])
        weights = load_file(folder / "weights.safetensors")
        batch = torch.load(folder / "batch.pt", weights_only=True)
        precision = said["precision"]
    except (*BROKEN, KeyError, TypeError) as error:
        raise FreproError(f"{folder} holds no optimizer step to replay: {one_line(error)}") from error
    accelerator = make_accelerator(precision)
    task = tasks.of(job)
    model = task.network(recipe.drop_path)
    model.load_state_dict(weights)
    model.to(accelerator.device).train()
    inputs, targets = send_to_device(batch, accelerator.device)

    broken: list[str] = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(
                lambda module, given, answer, name=name: None if is_finite(answer) else broken.append(name)
            )
    step, part, rank = said["position"]
    seed_all(STEP, said["seed"], step, part, rank)
    with torch.no_grad(), accelerator.autocast():
        loss = task.loss(model, inputs, targets)
    return {
        "title": said["title"],
        "update": step + 1,
        "loss": said["loss"],
        "again": str(loss.item()),
        "weights": [name for name, tensor in weights.items() if not is_finite(tensor)],
        "module": broken[0] if broken else None,
        "inputs": max(float(each.abs().max()) for each in inputs),
    }


def is_finite(answer: Any) -> bool:
    """Return whether all numbers in a module's output, however nested, are finite."""
    if isinstance(answer, Tensor):
        return bool(torch.isfinite(answer).all())
    if isinstance(answer, dict):
        return all(map(is_finite, answer.values()))
    return all(map(is_finite, answer)) if isinstance(answer, list | tuple) else True
