"""The device to compute on: the names that can be asked for, and what each means on this machine."""

from pathlib import Path

from frepro.errors import FreproError, unknown
from frepro.store import provenance

DEVICES = ("auto", "cpu", "cuda")
NO_CUDA = "no CUDA device here: use device cpu, or install a driver that torch can use"
# Device files of NVIDIA's, WSL's and AMD's drivers: a machine without any needs no torch to know that it has no GPU.
DRIVERS = ("nvidiactl", "dxg", "kfd")


def check_device(asked: str) -> None:
    """Raise for a name that is none of ``DEVICES``."""
    if asked not in DEVICES:
        raise unknown("device", asked, DEVICES)


def device_name(asked: str) -> tuple[str, str]:
    """Return the device to compute on, "cpu" or "cuda", and its name.

    Raises:
        FreproError: The name is none of ``DEVICES``, or "cuda" is asked for and there is none.
    """
    check_device(asked)
    if asked != "cpu" and any(Path(f"/dev/{name}").exists() for name in DRIVERS):
        import torch

        if torch.cuda.is_available():
            return "cuda", torch.cuda.get_device_name()
    if asked == "cuda":
        raise FreproError(NO_CUDA)
    machine = provenance.machine()
    return "cpu", f"{machine['cpu']}, {machine['cores']} cores"
