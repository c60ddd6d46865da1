"""Networks in parts: real processes on gloo compute what one process computes."""

import time
from functools import partial

import pytest
import torch

from frepro import recipes
from frepro.data import locate
from frepro.errors import FreproError
from frepro.training import fsdp, loop, nonfinite
from frepro.training.runs import Run
from tests.training.test_loop import PLAIN, checkpoints, finish, history, job, launch, start, weights


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "clip_grad": 0.5}, {"optimizer": "lamb"}])
def test_two_processes_with_a_part_each_are_one(monkeypatch, tmp_path, changes):
    """Losses of each epoch, and weights; with an odd number of test images, of which one process has more."""
    run = job(**PLAIN, samples=(64, 33), epochs=8, **changes)
    loop.run(run, loop.Execution(device="cpu"))
    expected, log = weights(run), history(run)
    average = weights(run, "ema") if "ema_decay" in changes else {}
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "parts"))
    finish(start(run, 2, fsdp=True, per_device=4))
    values = run.measurement.record()["values"]
    assert (values["fsdp"], values["processes"], values["accumulate"]) == (True, 2, 4)
    for name in ("train_loss", "test_loss"):
        mine, theirs = ([entry[name] for entry in entries if name in entry] for entries in (history(run), log))
        assert mine == pytest.approx(theirs, rel=1e-4)
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    for name, tensor in average.items():
        torch.testing.assert_close(weights(run, "ema")[name], tensor, rtol=1e-3, atol=1e-4)
    assert values["params"] == sum(tensor.numel() for tensor in expected.values())


def test_killed_and_taken_up_equals_straight(monkeypatch, tmp_path):
    straight = job(samples=(96, 10), epochs=4, ema_decay=0.9)
    finish(start(straight, 2, fsdp=True))
    expected, average = weights(straight), weights(straight, "ema")
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "killed"))
    killed = job(samples=(96, 10), epochs=4, ema_decay=0.9)
    begun = start(killed, 2, fsdp=True, checkpoint_every=1)
    while len(checkpoints(killed)) < 2 and all(process.is_alive() for process in begun):
        time.sleep(0.002)
    for process in begun:
        process.kill()
        process.join()
    assert killed.measurement.record() is None
    finish(start(killed, 2, fsdp=True, checkpoint_every=1))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(killed).items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in weights(killed, "ema").items())


@pytest.mark.parametrize("name", ["spanet-mask_rcnn", "spanetv2-upernet"])
def test_detectors_and_segmenters_train_in_parts(name):
    recipe = recipes.load(name, "smoke")
    run = Run("spanet_small", recipe, "smoke", locate(None, recipe.task), 0)
    finish(start(run, 2, fsdp=True))
    assert run.measurement.record()["values"]["train_loss"] > 0


def diverge(run: Run) -> None:
    with pytest.raises(FreproError, match=r"at optimizer step 2|of process 0 is not finite|of process 1 is not finite"):
        loop.run(run, loop.Execution(device="cpu", fsdp=True))


def test_a_loss_that_is_not_finite_stops_all_processes():
    run = job(lr=1e30, warmup_lr=1e30)
    finish(launch(2, diverge, run))
    found = nonfinite.replay(run.measurement.folder / "nonfinite", partial(loop.make_accelerator, "cpu"))
    assert (found["update"], found["again"]) == (2, "nan")


def test_one_process_has_no_parts():
    with pytest.raises(FreproError, match="--fsdp shards weights across processes: start several with torchrun"):
        loop.run(job(), loop.Execution(device="cpu", fsdp=True))


def test_parts_and_float16_do_not_go_together():
    with pytest.raises(FreproError, match="--fsdp does not support precision fp16: leave out --fsdp, or use a recipe"):
        fsdp.shard(torch.nn.Linear(2, 2), torch.device("cpu"), "fp16")
