"""What turns a backbone into a trained, scored predictor: data, network, loss and metric of each task.

The training loop (``frepro.training.loop``) is one for all tasks; it knows a ``Task`` and nothing of what is behind it.
Batches are pairs of inputs and targets, of which a task alone knows the insides.
"""

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from frepro.data.loading import Samples
    from frepro.training.runs import Run

__all__ = ["Metric", "Task", "of"]


class Metric(ABC):
    """Gathers what a network answers to test images."""

    @abstractmethod
    def update(self, inputs: Any, targets: Any, answers: Any) -> None:
        """Take in a batch."""

    @abstractmethod
    def values(self, accelerator: "Accelerator") -> dict[str, float]:
        """The metrics of all batches of all processes, in percent but for losses."""


class Task(ABC):
    """One training run's data, network, loss and metric.

    Args:
        run: What is trained by which recipe on which data.

    Attributes:
        collate: Makes a batch of samples; none for torch's way.
    """

    collate: Any = None

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.recipe = run.recipe

    @abstractmethod
    def samples(self, split: str) -> "Samples":
        """Those of "train" (augmented) or "test"."""

    @abstractmethod
    def network(self, drop_path: float) -> nn.Module:
        """The network with new weights, or with those that the run starts from."""

    @abstractmethod
    def loss(self, network: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """Forward pass in training, and its loss."""

    @abstractmethod
    def predict(self, network: nn.Module, inputs: Any) -> Any:
        """Forward pass in evaluation."""

    @abstractmethod
    def metric(self) -> Metric:
        """An empty one."""

    def check_micro_batch(self, size: int) -> None:  # noqa: B027 - most tasks take any
        """Raise for a number of samples in a forward pass that cannot be."""


def of(run: "Run") -> Task:
    """The task of a run; its recipe says which."""
    module = importlib.import_module(f"frepro.tasks.{run.recipe.task}")
    return module.task(run)
