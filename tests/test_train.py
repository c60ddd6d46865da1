"""The loop: schedule by update, the effective batch held, resume bit for bit, evaluation exact, runs made once."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from frepro import recipes, train
from frepro.data import locate
from frepro.errors import FreproError
from frepro.evaluate import evaluate_checkpoint
from frepro.runs import Run
from tests.conftest import ROOT

CPU = train.Execution(device="cpu")
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0, "auto_augment": None, "reprob": 0.0}


def job(seed=0, model="dfformer_s18", **changes) -> Run:
    recipe = dataclasses.replace(recipes.load("dfformer", "smoke"), **changes)
    return Run(model, recipe, "smoke", locate(None), seed)


def weights(run: Run, part="model"):
    return load_file(run.measurement.folder / f"{part}.safetensors")


def history(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.measurement.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_made_once_and_leaves_what_it_should():
    run = job(ema_decay=0.9)
    record = train.run(run, CPU)
    assert record["values"]["effective_batch"] == 32
    assert {"top1", "ema_top1", "train_loss"} <= set(record["values"])
    assert record["provenance"]["device"] == {**record["provenance"]["device"], "device": "cpu"}
    assert sorted(p.name for p in run.measurement.folder.iterdir() if p.name[0] != ".") == [
        "ema.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "record.json",
    ]
    written = (run.measurement.folder / "record.json").stat().st_mtime_ns
    assert train.run(run, CPU) == record
    assert (run.measurement.folder / "record.json").stat().st_mtime_ns == written


def test_the_same_run_gives_the_same_bits(monkeypatch, tmp_path):
    first = job()
    train.run(first, CPU)
    a = weights(first)
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "again"))
    torch.rand(3)
    train.run(job(), CPU)
    b = weights(job())
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_learning_rate_by_update():
    """Linear warm-up, cosine, cool-down at the end; one value for each optimizer update, however many pieces it has."""
    recipe = dataclasses.replace(
        recipes.load("dfformer", "smoke"),
        epochs=4,
        warmup_epochs=1,
        cooldown_epochs=1,
        lr=1.0,
        min_lr=0.1,
        warmup_lr=0.0,
    )
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.lr)
    schedule = train.make_schedule(optimizer, recipe, updates=5)
    rates = []
    for step in range(25):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    expected = [step / 5 for step in range(5)]
    expected += [0.1 + 0.9 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(5, 20)]
    expected += [0.1] * 5
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("processes", "per_device", "steps"), [(1, None, 1), (1, 8, 4), (2, None, 1), (4, 4, 2), (1, 12, 4), (1, 100, 1)]
)
def test_the_effective_batch_is_held(processes, per_device, steps):
    assert train.accumulation_steps(job().recipe, processes, per_device) == steps


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(FreproError, match="a batch of 32 cannot be shared by 3 processes"):
        train.accumulation_steps(job().recipe, 3, None)
    with pytest.raises(FreproError, match="mixup pairs samples"):
        train.accumulation_steps(job().recipe, 1, 1)


def test_accumulation_changes_only_rounding(monkeypatch, tmp_path):
    whole = train.run(job(**PLAIN), CPU)
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "pieces"))
    pieces = train.run(job(**PLAIN), train.Execution(device="cpu", per_device=8))
    assert (whole["values"]["accumulate"], pieces["values"]["accumulate"]) == (1, 4)
    assert pieces["values"]["train_loss"] == pytest.approx(whole["values"]["train_loss"], rel=1e-3)


def test_two_processes_are_one_run(monkeypatch, tmp_path):
    """Started as a user would, by torchrun: the same updates with the same learning rates."""
    one = job()
    train.run(one, CPU)
    before = history(one)
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "two"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "frepro", "train", "--model", "dfformer_s18", "--profile", "smoke", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("test top-1") == 1  # one process speaks
    after = history(one)
    record = one.measurement.record()
    assert (record["values"]["processes"], record["values"]["effective_batch"]) == (2, 32)
    assert [entry["lr"] for entry in after] == [entry["lr"] for entry in before]
    assert [entry["updates"] for entry in after] == [entry["updates"] for entry in before]
    # Mixup and stochastic depth draw per process, so that only the size of the loss can be the same.
    assert after[0]["train_loss"] == pytest.approx(before[0]["train_loss"], rel=0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_killed_and_resumed_equals_straight(monkeypatch, tmp_path, optimizer):
    """SIGKILL after some epoch; weights, moving average and history end up the same, bit for bit."""
    changes = {"epochs": 6, "ema_decay": 0.9, "optimizer": optimizer}
    straight = job(**changes)
    train.run(straight, CPU)
    expected, average, log = weights(straight), weights(straight, "ema"), history(straight)

    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "killed"))
    code = (
        "import dataclasses, torch\nfrom frepro import train\nfrom tests.test_train import job\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"train.run(job(**{changes!r}), train.Execution(device='cpu'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    killed = job(**changes)
    deadline = time.monotonic() + 120
    while not (killed.measurement.folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert killed.measurement.record() is None
    assert 0 < len(history(killed)) < 6
    train.run(killed, CPU)

    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(killed).items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in weights(killed, "ema").items())
    timeless = [{k: v for k, v in entry.items() if k != "seconds"} for entry in history(killed)]
    assert timeless == [{k: v for k, v in entry.items() if k != "seconds"} for entry in log]


def test_a_checkpoint_of_other_code_is_not_taken_up():
    measurement = job().measurement
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    accelerator = train.make_accelerator("cpu", "no")
    train.Checkpoint(measurement, model, None, optimizer).write([{"epoch": 1}], accelerator)
    assert train.Checkpoint(measurement, model, None, optimizer).restore(accelerator) == [{"epoch": 1}]
    changed = dataclasses.replace(measurement, code="other")
    assert train.Checkpoint(changed, model, None, optimizer).restore(accelerator) == []


def test_evaluation_does_not_depend_on_the_batch():
    run = job()
    train.run(run, CPU)
    file = run.measurement.folder / "model.safetensors"
    results = [
        evaluate_checkpoint(
            run.model, file, run.source, run.recipe, train.Execution(device="cpu", per_device=batch), {}
        )
        for batch in (1, 7, 64)
    ]
    for result in results[1:]:
        assert result == pytest.approx(results[0])
    assert results[0]["test_images"] == 50
    assert results[0]["top1"] == run.measurement.record()["values"]["top1"]


def test_a_loss_that_is_not_finite_stops_the_run():
    run = job(lr=1e30, warmup_lr=1e30)
    with pytest.raises(FreproError, match="the loss is nan at update"):
        train.run(run, CPU)
    assert run.measurement.record() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dfformer_s81"}, "unknown model 'dfformer_s81': did you mean dfformer_s18"),
        ({"samples": (20, 10)}, "20 training images do not fill one batch of 32"),
        ({"model_args": {"numm_filters": 2}}, "cannot be made with"),
    ],
)
def test_what_cannot_be_trained_is_said(changes, message):
    with pytest.raises(FreproError, match=message):
        train.run(job(**changes), CPU)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    run = job()
    arguments = (run.source, run.recipe, CPU, {})
    with pytest.raises(FreproError, match="no checkpoint at"):
        evaluate_checkpoint(run.model, tmp_path / "none", *arguments)
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(FreproError, match="damaged, or no checkpoint"):
        evaluate_checkpoint(run.model, tmp_path / "text", *arguments)
    train.run(run, CPU)
    with pytest.raises(FreproError, match=r"does not fit DFFormer: 16 left over: .*reweight"):
        evaluate_checkpoint("gfformer_s18", run.measurement.folder / "model.safetensors", *arguments)
