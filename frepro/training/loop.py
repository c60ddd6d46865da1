"""One training loop for all tasks, on Accelerate: CPU, one GPU, or several processes started by ``torchrun``.

All randomness is a function of (seed, epoch, optimizer step, process): order and augmentation in ``data.loading``,
mixup and stochastic depth here. A checkpoint therefore holds no generator state, and a run that was interrupted
continues as if it had not been. The learning rate depends on the number of optimizer steps alone.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, send_to_device
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from frepro import tasks
from frepro.data.loading import MODEL, STEP, Samples, TestBatches, TrainBatches, class_names, loader, seed_all
from frepro.errors import FreproError, unknown
from frepro.recipes import Recipe
from frepro.store import records
from frepro.tasks import Evaluator, Task
from frepro.training import fsdp, nonfinite, saved
from frepro.training.checkpoint import Checkpoint
from frepro.training.device import NO_CUDA, check_device
from frepro.training.optimizers import make_optimizer, make_schedule, total_updates
from frepro.training.runs import CORRECT, MOST_PROCESSES, Run

__all__ = ["Execution", "evaluate", "run"]

REVISION = {"training loop": 1}


@dataclass(frozen=True)
class Execution:
    """How a run is executed. Its results stay the same up to rounding and the random draws of mixup.

    Mixup draws one mixture per forward pass, so ``per_device`` and the number of processes change how many mixtures an
    optimizer step has. The same holds for stochastic depth, for the boxes that detectors sample, and for batch norms.

    Attributes:
        device: "auto", "cpu" or "cuda".
        per_device: Maximum number of samples in a forward pass; ``None`` means no limit but the effective batch.
        workers: Number of data-loading processes; 0 loads in the training process.
        checkpoint_every: Optimizer steps between two checkpoints within an epoch; every epoch also ends with one.
        damaged: "stop" ends the run at a damaged image; "skip" leaves the image out and counts it.
        compile: Compile the network for training (``torch.compile``).
        fsdp: Shard weights, gradients and optimizer state across processes (``training.fsdp``).
        log: Called with one line per epoch if standard error is not a terminal; on a terminal, a progress bar is shown
            instead. ``None`` shows neither.
    """

    device: str = "auto"
    per_device: int | None = None
    workers: int = 0
    checkpoint_every: int = 1000
    damaged: Literal["stop", "skip"] = "stop"
    compile: bool = False
    fsdp: bool = False
    log: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.damaged not in ("stop", "skip"):
            raise unknown("choice for damaged images", self.damaged, ("stop", "skip"))
        per_device = 1 if self.per_device is None else self.per_device
        for name, value in (("per_device", per_device), ("checkpoint_every", self.checkpoint_every)):
            if type(value) is not int or value < 1:
                raise FreproError(f"{name} must be a whole number of at least 1, not {value!r}")
        if type(self.workers) is not int or not 0 <= self.workers <= MOST_PROCESSES:
            raise FreproError(f"workers must be a whole number from 0 to {MOST_PROCESSES}, not {self.workers!r}")


def run(job: Run, execution: Execution) -> dict[str, Any]:
    """Return the record of a run: the stored one if there is one, else train it, resuming from its last checkpoint.

    A run that it starts from is trained first unless it is stored, too.
    """
    record = job.own_record()
    if record is not None:
        job.measurement.tidy()
        return record
    if isinstance(job.start, Run):
        run(job.start, execution)
    accelerator = make_accelerator(execution.device, job.recipe.precision)
    with alone(job, execution, accelerator) as record:
        if record is not None:
            return record  # another process finished it in the meantime
        try:
            return train(job, execution, accelerator)
        except torch.OutOfMemoryError as error:
            raise FreproError(
                f"{job.title}: out of memory on {accelerator.device}: limit the samples in a forward pass, for example "
                "with --per-device 32 (make: PER_DEVICE=32); the effective batch stays the same"
            ) from error


@contextmanager
def alone(job: Run, execution: Execution, accelerator: Accelerator) -> Iterator[dict[str, Any] | None]:
    """Wait in all processes until the main one has the lock of a run, and yield the record if there is one by then."""

    def tell(is_waiting: bool, record: dict[str, Any] | None) -> tuple[bool, dict[str, Any] | None]:
        """Send what the main process knows to all others, often enough that none of them gives up waiting."""
        news: list[Any] = [(is_waiting, record)]
        broadcast_object_list(news)
        return news[0]

    if not accelerator.is_main_process:
        is_waiting, record = True, None
        while is_waiting:
            is_waiting, record = tell(is_waiting, record)
        yield record
        return
    log = execution.log or warn
    with job.measurement.lock(log, lambda: tell(True, None)):
        record = job.own_record()
        if job.measurement.record() is None and job.measurement.file.exists():
            log(f"{job.measurement.file} is damaged: the run is repeated")
        tell(False, record)
        yield record


def make_accelerator(device: str, precision: str) -> Accelerator:
    """Return an Accelerator on a device; on a CPU, it computes in float32 whatever the recipe's precision."""
    check_device(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise FreproError(NO_CUDA)
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    # Accelerate fixes device and precision for the lifetime of a process, but successive runs may differ in both.
    if AcceleratorState._shared_state and AcceleratorState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=on_cpu, mixed_precision="no" if on_cpu else precision)


def accumulation_steps(recipe: Recipe, processes: int, per_device: int | None) -> int:
    """Return the number of forward passes per optimizer step that gives exactly the recipe's effective batch.

    Raises:
        FreproError: The batch cannot be split evenly among the processes.
    """
    batch = recipe.batch_size
    if batch % processes:
        raise FreproError(
            f"a batch of {batch} cannot be split evenly among {processes} processes: use a number that divides it"
        )
    share = batch // processes
    steps = -(-share // per_device) if per_device else 1
    while share % steps:
        steps += 1
    return steps


def train(job: Run, execution: Execution, accelerator: Accelerator) -> dict[str, Any]:
    """Train from the last checkpoint, or from scratch, to the end; store and return the record."""
    recipe, seed, device = job.recipe, job.seed, accelerator.device
    rank, processes = accelerator.process_index, accelerator.num_processes
    on_gpu = device.type == "cuda"

    task = tasks.of(job)
    train_set, test_set = (task.samples(split) for split in ("train", "test"))
    if execution.damaged == "skip":
        train_set.damaged = test_set.damaged = job.measurement.folder / "damaged.txt"
    accumulate = accumulation_steps(recipe, processes, execution.per_device)
    micro_batch = recipe.batch_size // (processes * accumulate)
    task.check_micro_batch(micro_batch)
    batches = TrainBatches(
        len(train_set), recipe.batch_size, seed, rank, processes, accumulate, getattr(recipe, "repeats", 1)
    )
    if batches.updates == 0:
        raise FreproError(
            f"{len(train_set)} training images do not fill one batch of {recipe.batch_size}: use more "
            f"training images, or a smaller batch (--batch-size {1 << (len(train_set).bit_length() - 1)})"
        )
    train_loader, test_loader = (
        loader(images, plan, execution.workers, on_gpu, task.collate)
        for images, plan in ((train_set, batches), (test_set, TestBatches(len(test_set), micro_batch, rank, processes)))
    )

    seed_all(MODEL, seed)
    model = task.network(recipe.drop_path).to(device)
    if execution.log is not None and accelerator.is_main_process:
        if job.reduced:
            execution.log(
                f"{job.model} is a reduced model here: profile {job.profile} makes it small ({job.reduced}); for the "
                "model of full size, use profile finetune or paper"
            )
        for note in task.notes:
            execution.log(note)
    if processes > 1 and on_gpu:
        model = convert_sync_batchnorm(model)  # timm's own: torch's drops the activations inside timm's norms
    ema = None
    if recipe.ema_decay is not None:  # torch's foreach functions cannot mix sharded and other tensors
        ema = ModelEmaV3(model, decay=recipe.ema_decay, foreach=not execution.fsdp)
    if execution.fsdp:
        for module in (model, ema.module) if ema is not None else (model,):
            fsdp.shard(module, device, accelerator.mixed_precision)
    optimizer = make_optimizer(model, recipe)
    schedule = make_schedule(optimizer, recipe, batches.updates)
    checkpoint = Checkpoint(job.measurement, model, ema, optimizer, execution.log or warn)
    optimizer, wrapped = accelerator.prepare(optimizer), model if execution.fsdp else accelerator.prepare(model)
    if execution.compile:
        wrapped.compile()
    progress = checkpoint.restore(accelerator)
    accelerator.wait_for_everyone()  # no process may write a checkpoint while another still reads the old one

    total = total_updates(recipe, batches.updates) + recipe.cooldown_epochs * batches.updates
    epochs = -(-total // batches.updates)
    has_bar = execution.log is not None and accelerator.is_main_process and sys.stderr.isatty()
    bar = tqdm(total=total, desc=job.name, unit="step", leave=False, disable=not has_bar)
    bar.update(progress.epoch * batches.updates + progress.update)
    while progress.epoch < epochs:
        epoch, first = progress.epoch, progress.epoch * batches.updates
        last = min(batches.updates, total - first)
        batches.set_part(epoch, progress.update, last)
        started = time.perf_counter() - progress.seconds
        loss_sum = torch.tensor(resumed(progress.losses, rank, processes), device=device)
        wrapped.train()
        for micro, (inputs, targets) in enumerate(train_loader, progress.update * accumulate):
            update, part = divmod(micro, accumulate)
            step = first + update
            ends_update = part == accumulate - 1
            seed_all(STEP, seed, step, part, rank)
            inputs, targets = send_to_device((inputs, targets), device, non_blocking=on_gpu)
            # Sharded gradients are reduced in every pass; deferring that would require keeping full gradients.
            with nullcontext() if ends_update or execution.fsdp else accelerator.no_sync(wrapped):
                with accelerator.autocast():
                    loss = task.loss(wrapped, inputs, targets)
                nonfinite.check(job, model, (inputs, targets), loss, (step, part, rank), accelerator)
                accelerator.backward(loss / accumulate)
            loss_sum += loss.detach() / (last * accumulate)
            if not ends_update:
                continue
            if recipe.clip_grad is not None:
                accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip_grad)
            schedule.step_update(step)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                share_statistics(model, accelerator)
                ema.update(model, step=step)
            bar.update()
            if (step + 1) % execution.checkpoint_every == 0 and update + 1 < last:
                progress.update, progress.seconds = update + 1, time.perf_counter() - started
                progress.losses = accelerator.gather(loss_sum[None]).tolist()
                checkpoint.write(progress, step + 1, accelerator)
        entry = {
            "epoch": epoch + 1,
            "updates": first + last,
            "lr": max(group["lr"] for group in optimizer.param_groups),  # earlier layers may have lower rates
            "train_loss": accelerator.reduce(loss_sum, "mean").item(),
        }
        share_statistics(model, accelerator)
        if (epoch + 1) % recipe.score_every == 0 or epoch + 1 == epochs:
            evaluator = task.evaluator()
            entry |= evaluate(task, model, test_loader, accelerator, evaluator=evaluator)
            if epoch + 1 == epochs:  # before the last checkpoint, from which a run is finished without evaluation
                store_correct(job, evaluator, len(test_set), accelerator)
            entry |= {} if ema is None else evaluate(task, ema.module, test_loader, accelerator, "ema_")
        progress.history.append({**entry, "seconds": round(time.perf_counter() - started, 3)})
        progress.epoch, progress.update, progress.losses, progress.seconds = epoch + 1, 0, [], 0.0
        checkpoint.write(progress, first + last, accelerator)
        if execution.log is not None and accelerator.is_main_process and not has_bar:
            execution.log(epoch_line(job, progress.history[-1], epochs))
    bar.close()

    seconds = sum(entry["seconds"] for entry in progress.history)
    values = {
        **{name: value for name, value in progress.history[-1].items() if name not in ("epoch", "lr", "seconds")},
        "epochs": epochs,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train_set),
        "test_images": len(test_set),
        "effective_batch": recipe.batch_size,
        "processes": processes,
        "accumulate": accumulate,
        "precision": accelerator.mixed_precision,
        "compiled": execution.compile,
        "fsdp": execution.fsdp,
    }
    if execution.damaged == "skip":
        values["damaged_images"] = len(train_set.damaged_names()) + len(test_set.damaged_names())
    described = None
    if recipe.network is None:
        classes: Any = model.num_classes
        described = saved.config(job, model, class_names(train_set, classes))
    weights = checkpoint.finish(progress, accelerator, saved.metadata(job, described))
    if described is not None and accelerator.is_main_process:
        text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
        records.write_text(job.measurement.folder / saved.CONFIG, text)
    if not accelerator.is_main_process:
        return {"values": values, "seconds": seconds}
    record = job.measurement.write(values, seconds, str(device), weights)
    checkpoint.remove()
    return record


def store_correct(job: Run, evaluator: Evaluator, images: int, accelerator: Accelerator) -> None:
    """Store which test images a classifier got right (``Run.correct``), unless damaged images were left out.

    All processes must call this.
    """
    correct = evaluator.correct(accelerator)
    if correct is not None and len(correct) == images and accelerator.is_main_process:
        with records.atomic_write(job.measurement.folder / CORRECT) as temporary:
            np.save(temporary, np.packbits(correct.numpy()))


def share_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """Copy the main process's batch norm statistics to all processes; on GPUs, SyncBatchNorm has made them equal."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for buffer in module.buffers(recurse=False):
                    torch.distributed.broadcast(buffer, src=0)


def resumed(losses: list[float], rank: int, processes: int) -> float:
    """Return one process's sum of losses in the epoch so far; if the number of processes has changed, the mean sum."""
    if len(losses) == processes:
        return losses[rank]
    return sum(losses) / len(losses) if losses else 0.0


def warn(line: str) -> None:
    print(line, file=sys.stderr)


def epoch_line(job: Run, entry: dict[str, Any], epochs: int) -> str:
    score = f"{job.score_line(entry)}, " if job.recipe.main_metric().name in entry else ""
    return (
        f"{job.name}: epoch {entry['epoch']}/{epochs}, loss {entry['train_loss']:.3f}, {score}{entry['seconds']:.1f} s"
    )


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    test_loader: DataLoader,
    accelerator: Accelerator,
    prefix: str = "",
    evaluator: Evaluator | None = None,
) -> dict[str, float]:
    """Return the task's metrics on the test images, each counted once over all processes.

    Args:
        prefix: Added to the names of the metrics.
        evaluator: A new evaluator of the task, for what else is to be read from it; ``None`` creates one.
    """
    model.eval()
    with fsdp.unsharded(model):  # some processes may have one batch more than others
        return _evaluated(task, model, test_loader, accelerator, prefix, evaluator or task.evaluator())


def _evaluated(
    task: Task,
    model: nn.Module,
    test_loader: DataLoader,
    accelerator: Accelerator,
    prefix: str,
    evaluator: Evaluator,
) -> dict[str, float]:
    seen = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for batch in test_loader:
        if batch is None:  # all of its images are damaged
            continue
        inputs, targets = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            answers = task.predict(model, inputs)
        evaluator.update(inputs, targets, answers)
        seen += len(inputs)
    test_set = test_loader.dataset
    assert isinstance(test_set, Samples)
    found, damaged = int(accelerator.reduce(seen, "sum")), len(test_set.damaged_names())
    if found == 0:
        raise FreproError("no test image could be evaluated" + (": all are damaged" if damaged else ""))
    if not len(test_set) - damaged <= found <= len(test_set):  # a damaged image may have been replaced since
        raise FreproError(
            f"evaluation saw {found} of {len(test_set)} test images; this is a bug in frepro, please report it"
        )
    return {f"{prefix}{name}": value for name, value in evaluator.values(accelerator).items()}
