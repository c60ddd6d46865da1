"""A run's state on disk: written whole or not at all, checked when it is read, and never the only one while it is new.

    results/runs/<key>/checkpoint-00001250.safetensors     after so many optimizer updates; the last two are kept
    results/runs/<key>/metrics.jsonl                       how it went so far, one line an epoch

One safetensors file holds weights, moving average and optimizer; no pickle. Everything random in a run is a function of
seed, epoch, update and process, so that there is no state of a generator to keep.
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
    """How far a run is.

    Attributes:
        epoch: Epochs that are done.
        update: Optimizer updates of the next one that are done.
        losses: Of each process, the sum over these updates that becomes the epoch's training loss.
        seconds: That these updates took.
        history: A mapping for each epoch that is done.
    """

    epoch: int = 0
    update: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoint:
    """The checkpoints of a run: of a network, its moving average and its optimizer.

    Args:
        measurement: Whose folder they lie in.
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
        """The latest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def write(self, progress: Progress, updates: int, accelerator: Accelerator) -> None:
        """Store the state after so many updates in all, and then remove what is older than the one before it, and what
        ``restore`` found damaged, which would count as newer.

        All processes call it, as a network may be in parts; the main one writes.
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
        """Resume from the latest whole state of this run, if there is one; else the run begins.

        A state of another specification or of an earlier revision is never used and never removed; the log says so.
        """
        if accelerator.is_main_process:
            for path in self.folder.glob(".checkpoint-*"):  # was being written when the run was killed
                path.unlink(missing_ok=True)
        for path in self.files():
            try:
                tensors, metadata = self._read(path)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                self.log(f"{path} is damaged ({error}): not used")
                self.damaged.append(path)
                continue
            if metadata.get("key", self.measurement.key) == self.measurement.key:
                return self._take_up(tensors, metadata, accelerator)
            if accelerator.is_main_process:
                kept = path.with_name(f"other-run-{metadata['key']}-{path.name}")
                path.rename(kept)
                self.log(f"{path} is of another run ({metadata['key']}): not used, kept as {kept.name}")
        for name, earlier in self.measurement.earlier():
            if any(earlier.folder.glob("checkpoint-*.safetensors")):
                self.log(
                    f"{earlier.folder} has a checkpoint of revision {name}, and the behaviour has changed since: not "
                    "used, and kept; the run begins anew"
                )
        return Progress()

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata()
        if metadata["checksum"] != str(checksum(tensors)):
            raise ValueError("its checksum does not fit")
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
        for index, state in states.items():
            states[index] = {name: placed(tensor, parameters[index]) for name, tensor in state.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        for group, step in zip(groups, json.loads(metadata["steps"]), strict=False):
            group["step"] = step
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        scaler = json.loads(metadata["scaler"])
        if accelerator.scaler is not None and scaler:  # none where the run began in float32, on a CPU
            accelerator.scaler.load_state_dict(scaler)
        return Progress(**json.loads(metadata["progress"]))

    def _takes_part(self, accelerator: Accelerator) -> bool:
        """Whether this process is needed to put the tensors together; all are where the network is in parts."""
        return accelerator.is_main_process or is_sharded(self.modules["model"])

    def _counting_groups(self) -> list[dict[str, Any]]:
        """Groups in which the optimizer counts its updates: all with LAMB; none with AdamW, which counts by tensor."""
        return [group for group in self.optimizer.param_groups if "step" in group]

    def finish(self, accelerator: Accelerator) -> None:
        """Store the trained weights for use: model.safetensors, and ema.safetensors where there is an average."""
        if not self._takes_part(accelerator):
            return
        for part, module in self.modules.items():
            tensors = on_cpu(module.state_dict())
            if accelerator.is_main_process:
                save(self.folder / f"{part}.safetensors", tensors)

    def remove(self) -> None:
        """Remove all checkpoints, of a run whose record is written."""
        for path in self.files():
            path.unlink(missing_ok=True)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole; where they are in parts, all processes call it."""
    return {name: full_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the bytes of all tensors on the CPU, in the order of their names."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), total)
    return total


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all."""
    with records.atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)
