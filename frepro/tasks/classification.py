"""Classification: one class per image, cross entropy, top-1 and top-5 accuracy."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from frepro.data.loading import Samples, class_names, count_classes, samples
from frepro.errors import FreproError
from frepro.models.create import create_model, normalisation
from frepro.recipes import Classification as Recipe
from frepro.tasks import Evaluator, Task
from frepro.tasks.pretrained import start_classifier

if TYPE_CHECKING:
    from frepro.training.runs import Run

__all__ = ["Accuracy", "Classification", "task"]

REVISION = {"classification": 1}


class Classification(Task):
    """A classifier on images (B, 3, H, W) and labels (B,)."""

    recipe: Recipe

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        # Hugging Face's data sets state their classes in each split; the training images need not be there to evaluate.
        split = "test" if run.source.reader.startswith("hfds/") else "train"
        self.num_classes = run.source.classes or count_classes(self.samples(split))
        if run.source.classes is None and (tested := count_classes(self.samples("test"))) > self.num_classes:
            known = self.num_classes
            raise FreproError(
                f"{run.source.name}: test images have {tested} classes, but training images {known}: use the same "
                "classes in both"
            )
        self.mixup, self.criterion = make_loss(self.recipe, self.num_classes)

    def samples(self, split: str) -> Samples:
        return samples(self.run.source, split, self.recipe, *normalisation(self.run.model), self.run.seed)

    def network(self, drop_path: float) -> nn.Module:
        network = create_model(
            self.run.model,
            self.recipe.img_size,
            self.run.all_model_args,
            num_classes=self.num_classes,
            drop_path_rate=drop_path,
        )
        if (start := self.run.initial_weights()) is not None:
            classes = class_names(self.samples("train"), self.num_classes)
            self.notes.append(start_classifier(network, self.run, start, classes))
        return network

    def loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.mixup is not None:
            inputs, targets = self.mixup(inputs.clone(), targets)  # timm's mixup works in place
        return self.criterion(network(inputs), targets)

    def predict(self, network: nn.Module, inputs: Tensor) -> Tensor:
        return network(inputs)

    def evaluator(self) -> "Accuracy":
        return Accuracy()

    def check_micro_batch(self, size: int) -> None:
        if self.mixup is not None and size % 2:
            raise FreproError(
                f"mixup pairs samples, but a batch of {self.recipe.batch_size} would be split into micro-batches of "
                f"{size}: change the number of processes or the samples per device"
            )


def make_loss(recipe: Recipe, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    """Return mixup and cutmix, or ``None`` if the recipe has neither, and the loss for the resulting targets."""
    if recipe.mixup or recipe.cutmix:
        mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes)
        return mixup, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(recipe.smoothing) if recipe.smoothing else nn.CrossEntropyLoss()


class Accuracy(Evaluator):
    """Top-1 and top-5 accuracy, and the cross entropy of the unsmoothed labels."""

    def __init__(self) -> None:
        self.sums: Any = 0.0  # seen, top-1, top-5, loss
        self.hits: list[Tensor] = []

    def update(self, inputs: Tensor, targets: Tensor, answers: Tensor) -> None:
        logits = answers.float()
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        found = torch.stack([torch.tensor(float(len(targets)), device=loss.device), hits[:, 0].sum(), hits.sum(), loss])
        self.sums = self.sums + found.double()
        self.hits.append(hits[:, 0])

    def values(self, accelerator: Accelerator) -> dict[str, float]:
        sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device) + self.sums
        seen, top1, top5, loss = accelerator.reduce(sums, "sum").tolist()
        return {"top1": 100 * top1 / seen, "top5": 100 * top5 / seen, "test_loss": loss / seen}

    def correct(self, accelerator: Accelerator) -> Tensor:
        shares = gather_object([torch.cat([torch.empty(0, dtype=torch.bool), *(hit.cpu() for hit in self.hits)])])
        found = torch.empty(sum(map(len, shares)), dtype=torch.bool)
        for rank, share in enumerate(shares):  # process number ``rank`` has every so many-th image
            found[rank :: len(shares)] = share
        return found


task = Classification
