"""The choice of a backend, by inputs, by argument and by environment; and that the plain forms need no compiler."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from frepro.ops import backends, dynamic_filter, selective_scan
from tests.compiler import needs_compiler

FREE = {"cpu": None}
TAKEN = {"cpu": "tensors are torch.float64"}


def test_the_fastest_that_can_is_picked():
    assert backends.choose("scan", FREE) == "cpu"
    assert backends.choose("scan", TAKEN) == "torch"
    assert backends.choose("scan", {"triton": "no CUDA device", "cpu": None}) == "cpu"


def test_a_kernel_slower_than_torch_runs_where_it_is_forced():
    slower = {"torch": None, "onednn": None}
    assert backends.choose("linear", slower) == "torch"
    assert backends.choose("linear", slower, "onednn") == "onednn"


def test_argument_and_environment_force(monkeypatch):
    assert backends.choose("scan", FREE, "torch") == "torch"
    monkeypatch.setenv("FREPRO_BACKEND", "torch")
    assert backends.choose("scan", FREE) == "torch"
    assert backends.choose("scan", FREE, "cpu") == "cpu"
    monkeypatch.setenv("FREPRO_BACKEND", "mamba_ssm")  # which this operation lacks: it chooses for itself
    assert backends.choose("filter", FREE) == "cpu"


def test_forced_for_a_while(monkeypatch):
    monkeypatch.setenv("FREPRO_BACKEND", "cpu")
    with backends.forced("torch"):
        assert backends.choose("scan", FREE) == "torch"
        monkeypatch.delenv("FREPRO_BACKEND")
    assert backends.choose("scan", FREE) == os.environ["FREPRO_BACKEND"] == "cpu"


@pytest.mark.parametrize(
    ("obstacles", "asked", "message"),
    [
        (FREE, "gpu", r"unknown backend 'gpu' of scan: choose from torch, cpu"),
        (FREE, "triton", "unknown backend 'triton' of scan"),
        (TAKEN, "cpu", "backend 'cpu' cannot run scan: tensors are torch.float64"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(obstacles, asked, message):
    with pytest.raises(ValueError, match=message):
        backends.choose("scan", obstacles, asked)


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("FREPRO_BACKEND", "cuda")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        backends.choose("scan", FREE)


def test_kernels_say_what_they_cannot_take():
    u, A, B = torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(2, 4), torch.randn(1, 4, 3)
    with pytest.raises(ValueError, match=r"tensors are torch\.float64"):
        selective_scan(u, u, A, B, B, backend="cpu")
    u = u.float()
    with pytest.raises(ValueError, match="it does not return the last state"):
        selective_scan(u, u, A, B, B, return_last_state=True, backend="cpu")
    with pytest.raises(ValueError, match=r"it needs B and C of shape \(batch, N, length\)"):
        selective_scan(u, u, A, A, B, backend="cpu")
    with pytest.raises(ValueError, match="a basis holds at most 8 filters, not 9"):
        dynamic_filter(torch.randn(1, 4, 4, 2), torch.rand(1, 9, 2), torch.randn(4, 3, 9, 2), backend="cpu")
    with pytest.raises(ValueError, match="a map side of 37 does not factor"):
        dynamic_filter(torch.randn(1, 37, 4, 2), torch.rand(1, 2, 2), torch.randn(37, 3, 2, 2), backend="cpu")


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


MODEL = """
import torch, timm, frepro
from frepro.ops import backends
print(backends.reasons()["cpu"])
model = timm.create_model("dfformer_s18", depths=(1, 1, 1, 1), dims=(16, 16, 16, 16), img_size=64).eval()
print(model(torch.randn(1, 3, 64, 64)).isfinite().all().item())
"""


@pytest.mark.parametrize(
    ("compiler", "reason"), [("/no/such/compiler", "did not run"), ("false", "false failed: no message")]
)
def test_without_a_working_compiler_models_run_plain_and_the_reason_is_told(tmp_path, compiler, reason):
    done = run(MODEL, CC=compiler, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    said, is_finite = done.stdout.splitlines()
    assert reason in said
    assert is_finite == "True"


@needs_compiler
def test_kernels_of_two_instruction_sets_stand_side_by_side_in_the_cache(tmp_path):
    code = "from frepro.ops import cpu; print(cpu.reason(), cpu.instruction_set())"
    march = "x86-64" if platform.machine() == "x86_64" else "native"
    plain, asked = (run(code, XDG_CACHE_HOME=str(tmp_path), FREPRO_MARCH=value) for value in ("", march))
    assert plain.returncode == asked.returncode == 0, plain.stderr + asked.stderr
    assert len(list((tmp_path / "frepro").glob("kernels-*.so"))) == 2
    if march == "x86-64":
        assert asked.stdout == "None SSE2\n"


@needs_compiler
def test_an_unknown_instruction_set_is_told_and_models_run_plain(tmp_path):
    done = run(MODEL, XDG_CACHE_HOME=str(tmp_path), FREPRO_MARCH="no-such-set")
    assert done.returncode == 0, done.stderr
    said, is_finite = done.stdout.splitlines()
    assert "no-such-set" in said
    assert is_finite == "True"


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-512 is of x86-64")
def test_an_instruction_set_that_the_processor_lacks_kills_no_process(tmp_path):
    done = run(MODEL, XDG_CACHE_HOME=str(tmp_path), FREPRO_MARCH="x86-64-v4")
    assert done.returncode == 0, done.stderr
    said, is_finite = done.stdout.splitlines()
    assert said == "None" or "lacks the instruction set of FREPRO_MARCH=x86-64-v4" in said
    assert is_finite == "True"


def test_without_triton_and_mamba_ssm_models_run():
    block = "import sys; sys.modules.update(dict.fromkeys(('triton', 'mamba_ssm')))\n"
    code = """
import torch, timm, frepro
for name, args in (("vim_tiny", {"depth": 2}), ("dfformer_s18", {"depths": (1, 1, 1, 1)})):
    print(timm.create_model(name, img_size=64, **args).eval()(torch.randn(1, 3, 64, 64)).isfinite().all().item())
"""
    done = run(block + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]
