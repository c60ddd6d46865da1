"""Checkpoints of a run: written atomically, verified when read, and kept together with the previous one.

Files::

    results/runs/<key>/checkpoint-00001250.safetensors     after this many optimizer steps; the last two are kept
    results/runs/<key>/metrics.jsonl                       training history, one line per epoch

One safetensors file holds the weights, their moving average and the optimizer state; pickle is not used. All randomness
in a run is a function of seed, epoch, optimizer step and process, so there is no generator state to store.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from frepro.store import records
from frepro.store.records import Measurement
from frepro.training.fsdp import full_tensor, is_sharded, placed

KEPT = 2


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Number of completed epochs.
        update: Number of completed optimizer steps in the next epoch.
        losses: For each process, the sum of losses over these steps, which becomes the epoch's training loss.
        seconds: Duration of these steps.
        history: A mapping for each completed epoch.
    """

    epoch: int = 0
    update: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoint:
    """The checkpoints of a run: its network, the moving average and the optimizer.

    Args:
        measurement: The run's measurement, whose folder holds the checkpoints.
        log: Called with a line for each file that is not used.
    """

    def __init__(
        self,
        measurement: Measurement,
        model: nn.Module,
        ema: ModelEmaV3 | None,
        optimizer: torch.optim.Optimizer,
        log: Callable[[str], None],
    ) -> None:
        self.measurement, self.folder = measurement, measurement.folder
        self.modules = {"model": model} if ema is None else {"model": model, "ema": ema.module}
        self.optimizer = optimizer
        self.log = log
        self.damaged: list[Path] = []

    def files(self) -> list[Path]:
        """Return the checkpoint files, latest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def write(self, progress: Progress, updates: int, accelerator: Accelerator) -> None:
        """Store the state after ``updates`` optimizer steps in total, and remove outdated files.

        Outdated files are those older than the previous checkpoint, and those that ``restore`` found damaged, because
        they would count as newer. All processes must call this, as the network may be sharded; the main process writes.
        """
        if not self._takes_part(accelerator):
            return
        tensors = {
            f"{part}.{name}": tensor
            for part, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors = on_cpu(tensors)
        if not accelerator.is_main_process:
            return
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        metadata = {
            "progress": json.dumps(asdict(progress)),
            "scaler": json.dumps(scaler),
            "steps": json.dumps([float(group["step"]) for group in self._counting_groups()]),
            "key": self.measurement.key,
            "checksum": str(checksum(tensors)),
        }
        save(self.folder / f"checkpoint-{updates:08d}.safetensors", tensors, metadata)
        history = "".join(json.dumps(entry) + "\n" for entry in progress.history)
        records.write_text(self.folder / "metrics.jsonl", history)
        while self.damaged:
            self.damaged.pop().unlink(missing_ok=True)
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)

    def restore(self, accelerator: Accelerator) -> Progress:
        """Resume from the latest intact checkpoint of this run; without one, return the progress of a new run.

        A checkpoint of another specification or of an earlier revision is never used and never removed; the log says
        so.
        """
        if accelerator.is_main_process:
            for path in self.folder.glob(".checkpoint-*"):  # left behind by a killed run
                path.unlink(missing_ok=True)
        for path in self.files():
            try:
                tensors, metadata = self._read(path)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                self.log(f"{path} is damaged ({error}): skipped")
                self.damaged.append(path)
                continue
            if metadata.get("key", self.measurement.key) == self.measurement.key:
                return self._take_up(tensors, metadata, accelerator)
            if accelerator.is_main_process:
                kept = path.with_name(f"other-run-{metadata['key']}-{path.name}")
                path.rename(kept)
                self.log(f"{path} belongs to another run ({metadata['key']}): not used, kept as {kept.name}")
        for name, earlier in self.measurement.earlier():
            if any(earlier.folder.glob("checkpoint-*.safetensors")):
                self.log(
                    f"{earlier.folder} has a checkpoint of revision {name}, but the behaviour has changed since: it is "
                    "kept but not used, and the run starts from scratch"
                )
        return Progress()

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata()
        if metadata["checksum"] != str(checksum(tensors)):
            raise ValueError("checksum mismatch")
        return tensors, metadata

    def _take_up(self, tensors: dict[str, Tensor], metadata: dict[str, str], accelerator: Accelerator) -> Progress:
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                index, _, rest = rest.partition(".")
                states.setdefault(int(index), {})[rest] = tensor
        for part, module in self.modules.items():
            prefix = f"{part}."
            module.load_state_dict(
                {name: placed(tensors[prefix + name], like) for name, like in module.state_dict().items()}
            )
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, state in states.items():
            states[number] = {name: placed(tensor, parameters[number]) for name, tensor in state.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        for group, step in zip(groups, json.loads(metadata["steps"]), strict=False):
            group["step"] = step
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        scaler = json.loads(metadata["scaler"])
        if accelerator.scaler is not None and scaler:  # empty if the run began in float32 on a CPU
            accelerator.scaler.load_state_dict(scaler)
        return Progress(**json.loads(metadata["progress"]))

    def _takes_part(self, accelerator: Accelerator) -> bool:
        """Return whether this process takes part in gathering the tensors; all do if the network is sharded."""
        return accelerator.is_main_process or is_sharded(self.modules["model"])

    def _counting_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups with a step count: all with LAMB; none with AdamW, which counts per tensor."""
        return [group for group in self.optimizer.param_groups if "step" in group]

    def finish(self, accelerator: Accelerator, metadata: dict[str, str] | None = None) -> None:
        """Store the trained weights: model.safetensors, and ema.safetensors if there is a moving average.

        Args:
            metadata: What the files say about themselves.
        """
        if not self._takes_part(accelerator):
            return
        for part, module in self.modules.items():
            tensors = on_cpu(module.state_dict())
            if accelerator.is_main_process:
                save(self.folder / f"{part}.safetensors", tensors, metadata)

    def remove(self) -> None:
        """Remove all checkpoints of a run whose record has been written."""
        for path in self.files():
            path.unlink(missing_ok=True)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return full copies of the tensors on the CPU; if they are sharded, all processes must call it."""
    return {name: full_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the bytes of all tensors on the CPU, in the order of their names."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with records.atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)
