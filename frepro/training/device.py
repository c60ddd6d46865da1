"""The compute device: the names that can be requested, and what each means on this machine."""

from pathlib import Path

from frepro.errors import FreproError, unknown
from frepro.store import provenance

DEVICES = ("auto", "cpu", "cuda")
NO_CUDA = "no CUDA device found: use device cpu, or install a driver that torch supports"
# Device files of the NVIDIA, WSL and AMD drivers. Without any of them there is no GPU, and torch need not be imported.
DRIVERS = ("nvidiactl", "dxg", "kfd")


def check_device(asked: str) -> None:
    """Raise ``FreproError`` for a name that is not in ``DEVICES``."""
    if asked not in DEVICES:
        raise unknown("device", asked, DEVICES)


def device_name(asked: str) -> tuple[str, str]:
    """Return the device to compute on, "cpu" or "cuda", and the name of the hardware.

    Raises:
        FreproError: The name is not in ``DEVICES``, or "cuda" was requested and there is no CUDA device.
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
