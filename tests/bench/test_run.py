"""Each instruction set is measured by itself: kernels and libraries alike, in a folder of its own."""

import json
import os

import pytest

from frepro.bench import run
from frepro.ops import cpu

# Writes what the process that measures has found, next to this file.
BESIDE = """
import json, multiprocessing, os
from pathlib import Path

import torch

SOURCE = "star_relu in torch"


def operations():
    if multiprocessing.parent_process() is not None:
        found = {"capability": torch.backends.cpu.get_cpu_capability(), **os.environ}
        Path(__file__).with_suffix(".json").write_text(json.dumps(found))
    return {"star_relu": lambda x, scale, bias: lambda: scale * torch.relu(x) ** 2 + bias}
"""
has_both = cpu.instruction_set() == "AVX-512" and run.processor_set() == "AVX-512"


@pytest.mark.skipif(not has_both, reason="takes a processor with AVX-512, a compiler, and neither held to less")
def test_the_sets_of_a_processor_are_measured_apart(frepro_command, store, tmp_path):
    (tmp_path / "others.py").write_text(BESIDE)
    command = ("bench", "--smoke", "--device", "cpu", "--only", "star_relu", "--beside", str(tmp_path / "others.py"))
    native = {name: value for name, value in os.environ.items() if name != "FREPRO_MARCH"}
    seen, said = {}, {}
    for march in ("native", "x86-64-v3"):
        done = frepro_command(*command, env=native if march == "native" else {**native, "FREPRO_MARCH": march})
        assert done.returncode == 0, done.stderr
        seen[march] = json.loads((tmp_path / "others.json").read_text())
        said[march] = done.stdout
    assert seen["native"]["capability"] == "AVX512"
    assert seen["x86-64-v3"]["capability"] == "AVX2"
    assert seen["x86-64-v3"].items() >= run.HELD["AVX2"].items()
    assert seen["x86-64-v3"]["TORCHINDUCTOR_CPP_MARCH"] == "x86-64-v3"

    folders = sorted((store / "bench-smoke").iterdir())
    assert [folder.name for folder in folders] == ["cpu-avx-512", "cpu-avx2"]
    wide, narrow = (json.loads((folder / "provenance.json").read_text())["kernels"] for folder in folders)
    assert wide == {"instruction_set": "AVX-512", "march": "native", "processor": "AVX-512", "held": {}}
    assert (narrow["instruction_set"], narrow["march"], narrow["processor"]) == ("AVX2", "x86-64-v3", "AVX-512")
    assert narrow["held"].items() <= seen["x86-64-v3"].items()
    assert ", AVX-512\n" in said["native"]
    assert ", AVX2\n" in said["x86-64-v3"]


def test_nothing_is_held_to_what_the_processor_has_at_most(monkeypatch):
    monkeypatch.delenv("FREPRO_MARCH", raising=False)
    assert run.held() == {}
    monkeypatch.setenv("FREPRO_MARCH", "native")
    assert run.held() == {}


def test_kernels_that_were_asked_for_and_cannot_be_used_are_one_line(frepro_command, store):
    done = frepro_command("bench", "--smoke", "--device", "cpu", env={**os.environ, "FREPRO_MARCH": "pdp11"})
    assert done.returncode == 1
    *compiling, error = done.stderr.strip().splitlines()
    assert error.startswith("frepro: error: no CPU kernels for FREPRO_MARCH=pdp11, so unset it or take another: ")
    assert all("compiling" in each for each in compiling)
    assert not store.exists()
