"""The CPU kernels as other processors compute them: compiled for those, and run in an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frepro.ops import cpu
from tests.compiler import needs_compiler

SOURCE = Path(__file__).parent / "kernels_main.c"
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


def compiled(compiler: str, target: Path, *flags: str) -> str:
    kept = [flag for flag in cpu.FLAGS if flag not in ("-shared", "-fPIC")]
    command = [compiler, *kept, *flags, "-o", str(target), str(SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return str(target)


def results(*command: str) -> tuple[str, Tensor]:
    """The instruction set, and the results of all kernels."""
    done = subprocess.run(command, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr.decode(), torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)


@needs_compiler
@pytest.mark.skipif(
    not (shutil.which(CROSS_COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {CROSS_COMPILER} and {EMULATOR} (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)",
)
def test_on_arm_they_give_what_they_give_here(tmp_path):
    """Here, test_cpu.py holds them to the plain forms."""
    native = compiled(next(filter(None, map(shutil.which, ("cc", "gcc", "clang")))), tmp_path / "native")
    arm = compiled(CROSS_COMPILER, tmp_path / "arm", "-static")
    _, expected = results(native)
    name, found = results(EMULATOR, arm)
    assert name == "NEON"
    assert expected.isfinite().all()
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
