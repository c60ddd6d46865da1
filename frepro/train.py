"""One training loop, on Accelerate: CPU, one GPU, or several processes started by ``torchrun``.

Everything random is a function of (seed, epoch, step, process): order and augmentation in ``data.loading``, mixup and
stochastic depth here. So a checkpoint holds no state of any generator, and a run that was stopped goes on as if it had
not been. The learning rate is a function of the number of optimizer updates alone.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import frepro.models  # noqa: F401 - registers them with timm
from frepro import results
from frepro.data.loading import MODEL, STEP, TestBatches, TrainBatches, count_classes, loader, samples, seed_all
from frepro.errors import FreproError, unknown
from frepro.recipes import Recipe
from frepro.results import Measurement
from frepro.runs import Run

__all__ = ["Execution", "evaluate", "run"]


@dataclass(frozen=True)
class Execution:
    """How a run is carried out; what it computes stays the same up to rounding and up to the draws of mixup.

    (Mixup draws one mixture for each forward pass, so that ``per_device`` and the number of processes change how many
    there are in an update.)

    Attributes:
        device: "auto", "cpu" or "cuda".
        per_device: Most samples in a forward pass; none for as many as the effective batch asks for.
        workers: Processes that load data; 0 loads in the training process.
        log: Where a line an epoch goes when standard error is no terminal (on one, there is a bar); none for silence.
    """

    device: str = "auto"
    per_device: int | None = None
    workers: int = 0
    log: Callable[[str], None] | None = None


def run(job: Run, execution: Execution) -> dict[str, Any]:
    """The record of a run: the stored one if there is one, else the run is made, or taken up where it stopped."""
    record = job.measurement.record()
    if record is not None:
        return record
    accelerator = make_accelerator(execution.device, job.recipe.precision)
    with job.measurement.lock() if accelerator.is_main_process else nullcontext():
        if accelerator.num_processes == 1 and (record := job.measurement.record()):
            return record  # another process finished it in the meantime
        try:
            return train(job, execution, accelerator)
        except torch.OutOfMemoryError as error:
            raise FreproError(
                f"{job.title}: out of memory on {accelerator.device}: bound the samples in a pass, as --per-device 32 "
                "(make: PER_DEVICE=32); the effective batch stays what it is"
            ) from error


def make_accelerator(device: str, precision: str) -> Accelerator:
    """An Accelerator on that device; a CPU computes in float32 whatever the recipe's precision."""
    if device not in ("auto", "cpu", "cuda"):
        raise unknown("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise FreproError("no CUDA device here: use device cpu, or install a driver that torch can use")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    # Accelerate keeps device and precision for the life of the process; runs of one process may differ in both.
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else precision)


def create_model(name: str, model_args: dict[str, Any], num_classes: int, img_size: int, drop_path: float) -> nn.Module:
    """A model of frepro or timm for images of that size.

    Raises:
        FreproError: No such model, or it does not take such arguments.
    """
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    cfg = timm.get_pretrained_cfg(name)
    sized = {"img_size": img_size} if cfg is not None and cfg.fixed_input_size else {}
    try:
        return timm.create_model(name, num_classes=num_classes, drop_path_rate=drop_path, **sized, **model_args)
    except (TypeError, ValueError) as error:
        raise FreproError(f"model {name!r} cannot be made with {model_args}: {error}") from error


def normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a model expects."""
    cfg = timm.get_pretrained_cfg(model)
    return (cfg.mean, cfg.std) if cfg is not None else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def accumulation_steps(recipe: Recipe, processes: int, per_device: int | None) -> int:
    """Forward passes in an optimizer update, so that it holds the recipe's effective batch exactly.

    Raises:
        FreproError: The batch cannot be cut into equal pieces that fit.
    """
    batch = recipe.batch_size
    if batch % processes:
        raise FreproError(f"a batch of {batch} cannot be shared by {processes} processes: use a number that divides it")
    share = batch // processes
    steps = -(-share // per_device) if per_device else 1
    while share % steps:
        steps += 1
    if (recipe.mixup or recipe.cutmix) and (share // steps) % 2:
        raise FreproError(
            f"mixup pairs samples, but a batch of {batch} over {processes} processes in {steps} steps leaves pieces of "
            f"{share // steps}: change the number of processes or the samples per device"
        )
    return steps


def make_loss(recipe: Recipe, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    """Mixup and cutmix if the recipe has them, and the loss for the targets that they leave."""
    if recipe.mixup or recipe.cutmix:
        mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=num_classes)
        return mixup, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(recipe.smoothing) if recipe.smoothing else nn.CrossEntropyLoss()


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> CosineLRScheduler:
    """Linear warm-up, then a cosine from lr to min_lr, by optimizer update; ``updates`` of them make an epoch."""
    return CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * updates,
        lr_min=recipe.min_lr,
        warmup_t=recipe.warmup_epochs * updates,
        warmup_lr_init=recipe.warmup_lr,
        t_in_epochs=False,
    )


def train(job: Run, execution: Execution, accelerator: Accelerator) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start, to the end; returns and stores the record."""
    recipe, seed, device = job.recipe, job.seed, accelerator.device
    rank, processes = accelerator.process_index, accelerator.num_processes

    mean, std = normalisation(job.model)
    train_set, test_set = (samples(job.source, split, recipe, mean, std, seed) for split in ("train", "test"))
    num_classes = job.source.classes or count_classes(train_set)
    accumulate = accumulation_steps(recipe, processes, execution.per_device)
    batches = TrainBatches(len(train_set), recipe.batch_size, seed, rank, processes, accumulate, recipe.repeats)
    if batches.updates == 0:
        raise FreproError(f"{len(train_set)} training images do not fill one batch of {recipe.batch_size}")
    test_batches = TestBatches(len(test_set), recipe.batch_size // (processes * accumulate), rank, processes)
    on_gpu = device.type == "cuda"
    train_loader, test_loader = (
        loader(images, plan, execution.workers, on_gpu)
        for images, plan in ((train_set, batches), (test_set, test_batches))
    )

    seed_all(MODEL, seed)
    model = create_model(job.model, job.all_model_args, num_classes, recipe.img_size, recipe.drop_path).to(device)
    mixup, criterion = make_loss(recipe, num_classes)
    optimizer = create_optimizer_v2(model, recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = make_schedule(optimizer, recipe, batches.updates)
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
    checkpoint = Checkpoint(job.measurement, model, ema, optimizer)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    history = checkpoint.restore(accelerator)
    accelerator.wait_for_everyone()  # nobody writes a new checkpoint while another still reads the old one

    epochs = recipe.epochs + recipe.cooldown_epochs
    has_bar = execution.log is not None and accelerator.is_main_process and sys.stderr.isatty()
    bar = tqdm(total=epochs * batches.updates, desc=job.title, unit="update", leave=False, disable=not has_bar)
    bar.update(len(history) * batches.updates)
    for epoch in range(len(history), epochs):
        started, loss_sum = time.perf_counter(), torch.zeros((), device=device)
        wrapped.train()
        batches.epoch = epoch
        for micro, (images, targets) in enumerate(train_loader):
            update, part = divmod(micro, accumulate)
            step = epoch * batches.updates + update
            ends_update = part == accumulate - 1
            seed_all(STEP, seed, step, part, rank)
            images, targets = images.to(device, non_blocking=on_gpu), targets.to(device, non_blocking=on_gpu)
            if mixup is not None:
                images, targets = mixup(images, targets)
            with nullcontext() if ends_update else accelerator.no_sync(wrapped):
                with accelerator.autocast():
                    loss = criterion(wrapped(images), targets)
                if not torch.isfinite(loss):
                    raise FreproError(
                        f"{job.title}: the loss is {loss.item()} at update {step + 1}: use a lower lr, or precision no"
                    )
                accelerator.backward(loss / accumulate)
            loss_sum += loss.detach() / len(batches)
            if not ends_update:
                continue
            if recipe.clip_grad is not None:
                accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip_grad)
            schedule.step_update(step)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(model, step=step)
            bar.update()
        history.append(
            {
                "epoch": epoch + 1,
                "updates": step + 1,
                "lr": optimizer.param_groups[0]["lr"],
                "train_loss": accelerator.reduce(loss_sum, "mean").item(),
                **evaluate(model, test_loader, len(test_set), accelerator),
                **({} if ema is None else evaluate(ema.module, test_loader, len(test_set), accelerator, "ema_")),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        if accelerator.is_main_process:
            checkpoint.write(history, accelerator)
            if execution.log is not None and not has_bar:
                execution.log(epoch_line(job, history[-1], epochs))
    bar.close()

    seconds = sum(entry["seconds"] for entry in history)
    values = {
        **{name: value for name, value in history[-1].items() if name not in ("epoch", "lr", "seconds")},
        "epochs": epochs,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train_set),
        "test_images": len(test_set),
        "effective_batch": recipe.batch_size,
        "processes": processes,
        "accumulate": accumulate,
        "precision": accelerator.mixed_precision,
    }
    if not accelerator.is_main_process:
        return {"values": values, "seconds": seconds}
    checkpoint.finish()
    record = job.measurement.write(values, seconds, str(device))
    checkpoint.path.unlink(missing_ok=True)
    return record


def epoch_line(job: Run, entry: dict[str, Any], epochs: int) -> str:
    return (
        f"{job.title}: epoch {entry['epoch']}/{epochs}, loss {entry['train_loss']:.3f}, "
        f"test top-1 {entry['top1']:.1f} %, {entry['seconds']:.1f} s"
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, test_loader: DataLoader, expected: int, accelerator: Accelerator, prefix: str = ""
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent and the cross entropy, each sample counted once over all processes."""
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)  # seen, top-1, top-5, loss
    for images, targets in test_loader:
        images, targets = images.to(accelerator.device), targets.to(accelerator.device)
        with accelerator.autocast():
            logits: Tensor = model(images)
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        sums[0] += len(targets)
        sums[1] += hits[:, 0].sum()
        sums[2] += hits.sum()
        sums[3] += loss
    seen, top1, top5, loss = accelerator.reduce(sums, "sum").tolist()
    if seen != expected:
        raise FreproError(f"evaluation saw {seen:.0f} of {expected} test images; this is a fault of frepro's")
    return {
        f"{prefix}top1": 100 * top1 / seen,
        f"{prefix}top5": 100 * top5 / seen,
        f"{prefix}test_loss": loss / seen,
    }


class Checkpoint:
    """A run's state between two epochs in one safetensors file: weights, moving average, optimizer; no pickle."""

    def __init__(
        self, measurement: Measurement, model: nn.Module, ema: ModelEmaV3 | None, optimizer: torch.optim.Optimizer
    ) -> None:
        self.folder, self.code = measurement.folder, measurement.code
        self.path = self.folder / "checkpoint.safetensors"
        self.modules = {"model": model} if ema is None else {"model": model, "ema": ema.module}
        self.optimizer = optimizer

    def write(self, history: list[dict[str, Any]], accelerator: Accelerator) -> None:
        """Store the state after ``len(history)`` epochs in place of the one before, and the history as JSON lines."""
        tensors = {
            f"{part}.{name}": tensor
            for part, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        metadata = {
            "history": json.dumps(history),
            "scaler": json.dumps(scaler),
            "steps": json.dumps([float(group["step"]) for group in self._counting_groups()]),
            "code": self.code,
        }
        self._save(self.path, tensors, metadata)
        results.write_text(self.folder / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))

    def restore(self, accelerator: Accelerator) -> list[dict[str, Any]]:
        """Take up the stored state, if there is one of this code; returns the history of the epochs that are done."""
        if not self.path.exists():
            return []
        with safe_open(self.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata()
        if metadata["code"] != self.code:
            return []
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                index, _, rest = rest.partition(".")
                states.setdefault(int(index), {})[rest] = tensor
        for part, module in self.modules.items():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        groups = self.optimizer.state_dict()["param_groups"]
        for group, step in zip(groups, json.loads(metadata["steps"]), strict=False):
            group["step"] = step
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        scaler = json.loads(metadata["scaler"])
        if accelerator.scaler is not None and scaler:  # none where the run began in float32, on a CPU
            accelerator.scaler.load_state_dict(scaler)
        return json.loads(metadata["history"])

    def _counting_groups(self) -> list[dict[str, Any]]:
        """Groups in which the optimizer counts its updates: all with LAMB; none with AdamW, which counts by tensor."""
        return [group for group in self.optimizer.param_groups if "step" in group]

    def finish(self) -> None:
        """Store the trained weights for use: model.safetensors, and ema.safetensors where there is an average."""
        for part, module in self.modules.items():
            self._save(self.folder / f"{part}.safetensors", module.state_dict(), {})

    @staticmethod
    def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        with results.whole(path) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata
            )
