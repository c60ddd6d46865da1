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
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from frepro.errors import one_line
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
        }
        metadata["checksum"] = str(checksum(tensors, metadata))
        save(self.folder / f"checkpoint-{updates:08d}.safetensors", tensors, metadata)
        self._write_history(progress)
        while self.damaged:
            self.damaged.pop().unlink(missing_ok=True)
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)

    def _write_history(self, progress: Progress) -> None:
        history = "".join(json.dumps(entry) + "\n" for entry in progress.history)
        records.write_text(self.folder / "metrics.jsonl", history)

    def restore(self, accelerator: Accelerator) -> Progress:
        """Resume from the latest checkpoint of this run that can be used; without one, return that of a new run.

        A checkpoint that cannot be used for whatever reason is skipped, and the log says so. One of another
        specification or of an earlier revision is never used and never removed. All processes must call this, and use
        the same checkpoint.
        """
        files = self.files()
        new = self._state() if files else None
        for path in _of_main_process(files):
            outcome: Progress | str | Exception
            try:
                tensors, metadata = self._read(path)
                is_ours = metadata["key"] == self.measurement.key
                outcome = self._take_up(tensors, metadata, accelerator) if is_ours else metadata["key"]
            except Exception as error:  # damage can show in any way
                outcome = error
            outcomes = gather_object([outcome])
            if all(isinstance(each, Progress) for each in outcomes):
                assert isinstance(outcome, Progress)
                return outcome
            failure = next((each for each in outcomes if isinstance(each, Exception)), None)
            if failure is not None:
                self.damaged.append(path)
                if accelerator.is_main_process:
                    self.log(f"{path} is damaged, or of another version of frepro ({one_line(failure)}): skipped")
            elif accelerator.is_main_process:
                kept = path.with_name(f"other-run-{outcome}-{path.name}")
                path.rename(kept)
                self.log(f"{path} belongs to another run ({outcome}): not used, kept as {kept.name}")
        if new is not None:  # a checkpoint that failed may have been taken up in part
            self._set_state(*new)
        for name, earlier in self.measurement.earlier():
            if accelerator.is_main_process and any(earlier.folder.glob("checkpoint-*.safetensors")):
                self.log(
                    f"{earlier.folder} has a checkpoint of revision {name}, but the behaviour has changed since: it is "
                    "kept but not used, and the run starts from scratch"
                )
        return Progress()

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a copy of the state of all modules and of the optimizer."""
        modules = {part: deepcopy(module.state_dict()) for part, module in self.modules.items()}
        return modules, deepcopy(self.optimizer.state_dict())

    def _set_state(self, modules: dict[str, Any], optimizer: dict[str, Any]) -> None:
        for part, module in self.modules.items():
            module.load_state_dict(modules[part])
        self.optimizer.load_state_dict(optimizer)

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata()
        if metadata.pop("checksum") != str(checksum(tensors, metadata)):
            raise ValueError("checksum mismatch")
        return tensors, metadata

    def _take_up(self, tensors: dict[str, Tensor], metadata: dict[str, str], accelerator: Accelerator) -> Progress:
        progress = Progress(**json.loads(metadata["progress"]))
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
        return progress

    def _takes_part(self, accelerator: Accelerator) -> bool:
        """Return whether this process takes part in gathering the tensors; all do if the network is sharded."""
        return accelerator.is_main_process or is_sharded(self.modules["model"])

    def _counting_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups with a step count: all with LAMB; none with AdamW, which counts per tensor."""
        return [group for group in self.optimizer.param_groups if "step" in group]

    def finish(
        self, progress: Progress, accelerator: Accelerator, metadata: dict[str, str] | None = None
    ) -> dict[str, str]:
        """Store the trained weights, and the history, which lacks a line if the run was killed after a checkpoint.

        Args:
            progress: The history.
            accelerator: The processes of the run.
            metadata: What the files of weights say about themselves.

        Returns:
            Name of each file of weights -> its SHA-256: model.safetensors, and ema.safetensors if there is a moving
            average.
        """
        hashes: dict[str, str] = {}
        if not self._takes_part(accelerator):
            return hashes
        for part, module in self.modules.items():
            tensors = on_cpu(module.state_dict())
            if accelerator.is_main_process:
                path = self.folder / f"{part}.safetensors"
                save(path, tensors, metadata)
                hashes[path.name] = records.sha256_of_file(path)
        if accelerator.is_main_process:
            self._write_history(progress)
        return hashes

    def remove(self) -> None:
        """Remove all checkpoints of a run whose record has been written."""
        for path in self.files():
            path.unlink(missing_ok=True)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return full copies of the tensors on the CPU; if they are sharded, all processes must call it."""
    return {name: full_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Return the CRC-32 of all tensors on the CPU, with their names, types and shapes, and of the metadata."""
    total = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _of_main_process(files: list[Path]) -> list[Path]:
    """Return the main process's list in all processes: on a network file system, others may see another one."""
    shared: list[Any] = [files]
    broadcast_object_list(shared)
    return shared[0]


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with records.atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)
