"""What turns a backbone into a trained, scored predictor: data, network, loss and evaluator of each task.

The training loop (``frepro.training.loop``) is the same for all tasks; it uses the interface of ``Task`` alone. Batches
are pairs of inputs and targets, whose structure only the task knows.
"""

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from frepro.data.loading import Samples
    from frepro.training.runs import Run

__all__ = ["Evaluator", "Task", "of"]


class Evaluator(ABC):
    """Accumulates the predictions of a network on test images and computes the metrics of a task."""

    @abstractmethod
    def update(self, inputs: Any, targets: Any, answers: Any) -> None:
        """Add a batch."""

    @abstractmethod
    def values(self, accelerator: "Accelerator") -> dict[str, float]:
        """Return the metrics over all batches of all processes, by name in ``Recipe.metrics`` and in their units."""


class Task(ABC):
    """Data, network, loss and evaluator of one training run.

    Args:
        run: The model, recipe and data of the run.

    Attributes:
        collate: Function that makes a batch of samples; ``None`` means torch's default.
    """

    collate: Any = None

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.recipe = run.recipe

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


def of(run: "Run") -> Task:
    """Return the task of a run, as its recipe specifies."""
    module = importlib.import_module(f"frepro.tasks.{run.recipe.task}")
    return module.task(run)
