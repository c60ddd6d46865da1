"""What turns a backbone into a trained, scored predictor: data, network, loss and evaluator of each task.

The training loop (``frepro.training.loop``) is the same for all tasks; it uses the interface of ``Task`` alone. Batches
are pairs of inputs and targets, whose structure only the task knows.
"""

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from frepro import recipes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from frepro.data.loading import Samples
    from frepro.training.runs import Run

__all__ = ["Evaluator", "Task", "of", "of_network"]


class Evaluator(ABC):
    """Accumulates the predictions of a network on test images and computes the metrics of a task."""

    @abstractmethod
    def update(self, inputs: Any, targets: Any, answers: Any) -> None:
        """Add a batch."""

    @abstractmethod
    def values(self, accelerator: "Accelerator") -> dict[str, float]:
        """Return the metrics over all batches of all processes, by name in ``Recipe.metrics`` and in their units."""

    def correct(self, accelerator: "Accelerator") -> Tensor | None:
        """Return which samples of all processes were answered correctly, as booleans (N,) on the CPU.

        They are in the order of the data set if each process has seen its share of ``data.loading.TestBatches``. All
        processes must call this. ``None`` for tasks whose answers are not simply right or wrong.
        """
        return None


class Task(ABC):
    """Data, network, loss and evaluator of one training run.

    Args:
        run: The model, recipe and data of the run.

    Attributes:
        collate: Function that makes a batch of samples; ``None`` means torch's default.
        create: Function that makes one of the task's networks, given its name and that of the backbone; ``None`` for
            classifiers.
        notes: What ``network`` did with the weights that the run starts from, one line each.
    """

    collate: Any = None
    create: Any = None

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.recipe = run.recipe
        self.notes: list[str] = []

    @abstractmethod
    def samples(self, split: str) -> "Samples":
        """Return the samples of "train" (augmented) or "test"."""

    @abstractmethod
    def network(self, drop_path: float) -> nn.Module:
        """Return the network with new weights, or with those that the run starts from."""

    @abstractmethod
    def loss(self, network: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """Return the loss of a forward pass in training mode."""

    @abstractmethod
    def predict(self, network: nn.Module, inputs: Any) -> Any:
        """Return the predictions of a forward pass in evaluation mode."""

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """Return a new evaluator without predictions."""

    def check_micro_batch(self, size: int) -> None:  # noqa: B027 - most tasks take any
        """Raise ``FreproError`` for a number of samples in a forward pass that the task cannot handle."""

    @staticmethod
    def counted_backbone(model: str) -> str:
        """Return the backbone with which the costs of a network on ``model`` are counted in publications."""
        return model

    @staticmethod
    def counted_forward(network: nn.Module, image: Tensor) -> None:
        """Compute what the costs of a network cover, on an image (1, 3, H, W) without content (device "meta")."""
        network(image)


def of(run: "Run") -> Task:
    """Return the task of a run, as its recipe specifies."""
    return _class(run.recipe.task)(run)


def of_network(name: str) -> type[Task]:
    """Return the class of the task that a detector or segmenter is for, by a name in ``recipes.NETWORKS``."""
    return _class(next(kind.task for kind in recipes.TASKS.values() if name in kind.networks))


def _class(task: str) -> type[Task]:
    return importlib.import_module(f"frepro.tasks.{task}").task
