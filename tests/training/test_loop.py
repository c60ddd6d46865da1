"""The loop: schedule by update, the effective batch held, resume bit for bit, evaluation exact, runs made once."""

import copy
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from frepro import recipes, tasks
from frepro.data import locate
from frepro.data.export import export
from frepro.errors import FreproError
from frepro.training import loop, nonfinite, optimizers
from frepro.training.checkpoint import Checkpoint, Progress, checksum, save
from frepro.training.evaluate import evaluate_checkpoint, network
from frepro.training.runs import Run, Start
from tests.conftest import ROOT

CPU = loop.Execution(device="cpu")
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
    record = loop.run(run, CPU)
    assert record["values"]["effective_batch"] == 32
    assert {"top1", "ema_top1", "train_loss"} <= set(record["values"])
    assert record["provenance"]["device"] == {**record["provenance"]["device"], "device": "cpu"}
    assert sorted(p.name for p in run.measurement.folder.iterdir() if p.name[0] != ".") == [
        "config.json",
        "correct.npy",
        "ema.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "record.json",
    ]
    written = (run.measurement.folder / "record.json").stat().st_mtime_ns
    assert loop.run(run, CPU) == record
    assert (run.measurement.folder / "record.json").stat().st_mtime_ns == written


def test_the_same_run_gives_the_same_bits(monkeypatch, tmp_path):
    first = job()
    loop.run(first, CPU)
    a = weights(first)
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "again"))
    torch.rand(3)
    loop.run(job(), CPU)
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
    schedule = optimizers.make_schedule(optimizer, recipe, updates=5)
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
    assert loop.accumulation_steps(job().recipe, processes, per_device) == steps


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(FreproError, match="a batch of 32 cannot be split evenly among 3 processes"):
        loop.accumulation_steps(job().recipe, 3, None)
    with pytest.raises(FreproError, match="mixup pairs samples"):
        tasks.of(job()).check_micro_batch(1)


# Processes that are there at once: the server that they are forked from has imported everything, and computed nothing.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.test_loop"])


def _called(environment: dict[str, str], function, *arguments) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def launch(processes: int, function, *arguments) -> list[multiprocessing.Process]:
    """A function in processes of their own, as a launcher would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world else {}
        environment = {"FREPRO_RESULTS": os.environ["FREPRO_RESULTS"], **world, **own}
        process = FORKS.Process(target=_called, args=(environment, function, *arguments))
        process.start()
        started.append(process)
    return started


def start(run: Run, processes: int, **execution) -> list[multiprocessing.Process]:
    return launch(processes, loop.run, run, loop.Execution(device="cpu", **execution))


def finish(started: list[multiprocessing.Process]) -> None:
    for process in started:
        process.join(240)
        assert process.exitcode == 0


def same_but_for_time(a: list[dict], b: list[dict]) -> bool:
    def timeless(entries: list[dict]) -> list[dict]:
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]

    return timeless(a) == timeless(b)


def test_half_the_batch_in_each_of_two_processes_or_passes_gives_the_same_losses(monkeypatch, tmp_path):
    """An update an epoch, fifty of them: the loss curve of one process, of two, and of accumulation."""
    run = job(**PLAIN, samples=(32, 10), epochs=50, score_every=50)
    curves = {}
    for name, processes, per_device in (("one", 1, None), ("two", 2, None), ("accumulated", 1, 16)):
        monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / name))
        finish(start(run, processes, per_device=per_device))
        values = run.measurement.record()["values"]
        assert values["processes"] * values["accumulate"] == (1 if name == "one" else 2)
        curves[name] = [entry["train_loss"] for entry in history(run)]
    assert len(curves["one"]) == 50
    assert curves["one"][-1] < curves["one"][0] - 0.1
    assert curves["two"] == pytest.approx(curves["one"], rel=1e-5)
    assert curves["accumulated"] == pytest.approx(curves["one"], rel=1e-5)


def test_two_processes_are_one_run(monkeypatch, tmp_path):
    """Started as a user would, by torchrun: the same updates with the same learning rates."""
    one = job()
    loop.run(one, CPU)
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


@pytest.mark.parametrize(("optimizer", "processes", "kills"), [("adamw", 1, 20), ("lamb", 1, 3), ("adamw", 2, 6)])
def test_killed_again_and_again_equals_straight(monkeypatch, tmp_path, optimizer, processes, kills):
    """SIGKILL at random moments: while importing, in an update, in a checkpoint, in a test, between two epochs.

    Weights, moving average and history end up the same, bit for bit.
    """
    changes = {"samples": (96, 10), "epochs": 2 + 2 * kills, "ema_decay": 0.9, "optimizer": optimizer}
    straight = job(**changes)
    finish(start(straight, processes))
    expected, average, log = weights(straight), weights(straight, "ema"), history(straight)
    right = straight.correct()
    assert right.shape == (10,)

    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "killed"))
    killed, rng, done = job(**changes), random.Random(0), 0
    deadline = time.monotonic() + 400
    while done < kills and time.monotonic() < deadline:
        seen = len(set(checkpoints(killed)))
        begun, latest = start(killed, processes, checkpoint_every=1), max(checkpoints(killed), default="")
        for _ in range(rng.randint(0, 2)):  # so many checkpoints further
            while max(checkpoints(killed), default="") == latest and any(process.is_alive() for process in begun):
                time.sleep(0.002)
            latest = max(checkpoints(killed), default="")
        time.sleep(rng.uniform(0, 0.2))
        assert killed.measurement.record() is None, f"it ended after {done} kills, with {seen} checkpoints"
        for process in begun:
            process.kill()
        for process in begun:
            process.join()
        done += 1
    assert done == kills
    finish(start(killed, processes, checkpoint_every=1))

    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(killed).items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in weights(killed, "ema").items())
    assert same_but_for_time(history(killed), log)
    assert checkpoints(killed) == []
    left = {path.name for path in killed.measurement.folder.iterdir()}
    stored = {"config.json", "correct.npy", "ema.safetensors", "metrics.jsonl", "model.safetensors", "record.json"}
    assert left == {".lock", *stored}
    assert np.array_equal(killed.correct(), right)


def checkpoints(run: Run) -> list[str]:
    return sorted(path.name for path in run.measurement.folder.glob("checkpoint-*.safetensors"))


def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch):
    """Cut off, changed in one bit, or empty: the one before it is taken up, with a word, and nothing is lost."""
    straight = job(epochs=10)
    finish(start(straight, 1))
    expected = weights(straight)
    damages = (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: path.write_bytes(b""),
    )
    for number, damage in enumerate(damages):
        monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / str(number)))
        run = job(epochs=10)
        process = start(run, 1, checkpoint_every=1)[0]
        while len(checkpoints(run)) < 2 and process.is_alive():
            time.sleep(0.002)
        process.kill()
        process.join()
        latest = run.measurement.folder / checkpoints(run)[-1]
        damage(latest)
        said: list[str] = []
        loop.run(run, loop.Execution(device="cpu", log=said.append))
        assert any(latest.name in line and "damaged" in line for line in said)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())


def test_a_checkpoint_is_resumed_unless_run_or_revision_differ_and_none_is_deleted(monkeypatch):
    measurement = job().measurement
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    accelerator = loop.make_accelerator("cpu", "no")
    progress, lines = Progress(epoch=1, history=[{"epoch": 1}]), []
    Checkpoint(measurement, model, None, optimizer, print).write(progress, 3, accelerator)
    with monkeypatch.context() as patch:  # reworded, moved, renamed: the code is another
        patch.setattr("frepro.store.provenance.code", lambda *modules: {"frepro.training.loop": "other"})
        assert Checkpoint(measurement, model, None, optimizer, lines.append).restore(accelerator) == progress
    assert lines == []

    raised = dataclasses.replace(measurement, revisions={**measurement.revisions, "dfformer": 2})
    assert Checkpoint(raised, model, None, optimizer, lines.append).restore(accelerator) == Progress()
    assert lines == [
        f"{measurement.folder} has a checkpoint of revision dfformer 1, but the behaviour has changed since: it is "
        "kept but not used, and the run starts from scratch"
    ]
    assert len(list(measurement.folder.glob("checkpoint-*"))) == 1

    other = job(seed=1).measurement  # into whose folder somebody copied the file
    other.folder.mkdir(parents=True)
    (file,) = measurement.folder.glob("checkpoint-*")
    (other.folder / file.name).write_bytes(file.read_bytes())
    assert Checkpoint(other, model, None, optimizer, lines.append).restore(accelerator) == Progress()
    assert f"belongs to another run ({measurement.key}): not used, kept as other-run-{measurement.key}" in lines[-1]
    (kept,) = other.folder.glob("other-run-*")
    assert kept.read_bytes() == file.read_bytes()


def network_and_checkpoint(measurement, optimizer="adamw", log=print) -> tuple[torch.nn.Module, Checkpoint]:
    model = torch.nn.Linear(3, 2)
    made = optimizers.create_optimizer_v2(model, optimizer, lr=0.1)
    model(torch.randn(1, 3)).sum().backward()
    made.step()
    return model, Checkpoint(measurement, model, None, made, log)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_whatever_is_wrong_with_a_checkpoint_the_one_before_is_used(optimizer):
    """Every bit of the file counts: of weights, names, types, shapes, history and all other metadata."""
    measurement, accelerator, rng, said = job().measurement, loop.make_accelerator("cpu", "no"), random.Random(0), []
    model, checkpoint = network_and_checkpoint(measurement, optimizer)
    history = [{"epoch": 1, "train_loss": 2.125}]
    checkpoint.write(Progress(update=5, history=history), 5, accelerator)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.normal_(model.weight)
    checkpoint.write(Progress(update=6, history=history), 6, accelerator)
    latest = checkpoint.files()[0]
    intact = latest.read_bytes()
    for _ in range(200):
        place = rng.randrange(len(intact))
        latest.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << rng.randrange(8)]) + intact[place + 1 :])
        other, fresh = network_and_checkpoint(measurement, optimizer, said.append)
        assert fresh.restore(accelerator) in (Progress(update=5, history=history), Progress(update=6, history=history))
        is_equal = all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())
        assert is_equal is bool(said)  # blanks at the end of the header may differ
        assert all(latest.name in line and "skipped" in line and "\n" not in line for line in said)
        said.clear()


@pytest.mark.parametrize("spoil", ["progress", "steps", "scaler", "key", "checksum", "weights", "average", "optimizer"])
def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(spoil):
    """It is complete and intact, but of another version of the code: the run starts as if there were none."""
    measurement, accelerator, said = job().measurement, loop.make_accelerator("cpu", "no"), []
    _, checkpoint = network_and_checkpoint(measurement, "lamb")
    checkpoint.write(Progress(update=5), 5, accelerator)
    (path,) = checkpoint.files()
    tensors, metadata = Checkpoint._read(path)
    if spoil in metadata:
        metadata[spoil] = '{"unknown": 1}' if spoil == "progress" else "no JSON"
    elif spoil == "weights":
        tensors["model.weight"] = torch.zeros(5, 5)
    elif spoil == "average":
        del tensors["model.bias"]
    elif spoil == "optimizer":
        tensors["optimizer.9.exp_avg"] = torch.zeros(1)
    if spoil == "key":
        del metadata["key"]
    if spoil == "scaler":
        del metadata["scaler"]
    total = checksum(tensors, metadata)
    save(path, tensors, metadata | ({} if spoil == "checksum" else {"checksum": str(total)}))
    other, fresh = network_and_checkpoint(measurement, "lamb", said.append)
    weights, state = copy.deepcopy(other.state_dict()), copy.deepcopy(fresh.optimizer.state_dict())
    assert fresh.restore(accelerator) == Progress()
    assert len(said) == 1
    assert path.name in said[0]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())
    assert str(fresh.optimizer.state_dict()) == str(state)


def test_a_run_killed_before_its_record_has_all_of_its_history(monkeypatch):
    """The last checkpoint is there, and the lines of the history that were written after it are not."""
    run = job(epochs=3)
    expected = loop.run(run, CPU)["values"]
    whole = history(run)
    monkeypatch.setenv("FREPRO_RESULTS", f"{os.environ['FREPRO_RESULTS']}-killed")
    killed = job(epochs=3)

    class KilledError(Exception):
        pass

    def kill(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "finish", kill)
        with pytest.raises(KilledError):
            loop.run(killed, CPU)
    log = killed.measurement.folder / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert loop.run(killed, CPU)["values"].keys() == expected.keys()
    assert same_but_for_time(history(killed), whole)
    assert killed.correct() is not None  # the last evaluation is not repeated


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_tells_which_test_images_it_got_right(processes):
    """In their order, whatever the number of processes; 61 images, so that shares and bytes are uneven."""
    run = job(samples=(64, 61))
    finish(start(run, processes, per_device=4))
    samples = tasks.of(run).samples("test")
    inputs, targets = torch.utils.data.default_collate([samples[0, index] for index in range(61)])
    with torch.no_grad():
        expected = network(run)(inputs).argmax(1) == targets
    assert 0 < expected.sum() < 61
    assert run.correct().tolist() == expected.tolist()


def test_what_does_not_fit_the_record_tells_nothing():
    run = job()
    loop.run(run, CPU)
    path = run.measurement.folder / "correct.npy"
    packed = np.load(path)
    assert packed.nbytes == -(-len(run.correct()) // 8)
    for content in (packed ^ np.eye(1, len(packed), dtype=np.uint8)[0], packed[1:], packed.astype(float), packed[None]):
        np.save(path, content)
        assert run.correct() is None
    for damaged in (b"", path.read_bytes()[:-1], b"no array"):
        path.write_bytes(damaged)
        assert run.correct() is None
    path.unlink()
    assert run.correct() is None
    assert run.measurement.record() is not None  # runs of earlier versions have no such file


def test_weights_are_in_the_record_and_checked_when_they_are_read():
    run = job()
    record = loop.run(run, CPU)
    path = run.measurement.folder / "model.safetensors"
    assert record["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    network(run)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for read in (network, lambda run: evaluate_checkpoint(run, path, CPU), lambda run: Start.of(path)):
        with pytest.raises(FreproError, match="is damaged: its SHA-256 is not the one in the record"):
            read(run)


def test_a_damaged_record_is_made_again_and_it_is_said():
    run, said = job(), []
    first = loop.run(run, CPU)
    run.measurement.file.write_text(run.measurement.file.read_text()[:-100])
    assert loop.run(run, loop.Execution(device="cpu", log=said.append))["files"] == first["files"]
    assert said[0] == f"{run.measurement.file} is damaged: the run is repeated"


def test_a_finished_run_keeps_no_checkpoint_of_a_process_that_was_killed_at_its_end():
    run = job()
    loop.run(run, CPU)
    (run.measurement.folder / "checkpoint-00000004.safetensors").touch()
    loop.run(run, CPU)
    assert checkpoints(run) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_process_waits_for_the_record(processes):
    """Nothing is trained while another process holds the lock, and its record is taken."""
    run = job()
    with run.measurement.lock():
        waiting = start(run, processes)
        time.sleep(4)
        assert all(process.is_alive() for process in waiting)
        run.measurement.write({"top1": 1.0}, 1.0, "cpu")
    finish(waiting)
    assert run.measurement.record()["values"] == {"top1": 1.0}
    assert not (run.measurement.folder / "model.safetensors").exists()


def test_old_checkpoints_are_pruned():
    measurement = job().measurement
    model = torch.nn.Linear(2, 2)
    checkpoint = Checkpoint(measurement, model, None, torch.optim.AdamW(model.parameters()), print)
    accelerator = loop.make_accelerator("cpu", "no")
    for updates in (9, 99, 100, 1000):
        checkpoint.write(Progress(update=updates), updates, accelerator)
    assert [path.stem for path in checkpoint.files()] == ["checkpoint-00001000", "checkpoint-00000100"]
    assert checkpoint.restore(accelerator).update == 1000


def test_what_is_damaged_does_not_push_out_what_is_new():
    """It has the higher number."""
    measurement = job().measurement
    model = torch.nn.Linear(2, 2)
    accelerator = loop.make_accelerator("cpu", "no")

    def checkpoint() -> Checkpoint:
        return Checkpoint(measurement, model, None, torch.optim.AdamW(model.parameters()), print)

    measurement.folder.mkdir(parents=True)
    (measurement.folder / "checkpoint-00000700.safetensors").write_bytes(b"")
    mine = checkpoint()
    assert mine.restore(accelerator) == Progress()
    mine.write(Progress(update=5), 5, accelerator)
    assert [path.stem for path in mine.files()] == ["checkpoint-00000005"]
    assert checkpoint().restore(accelerator).update == 5


def test_statistics_of_batch_norms_are_the_main_processes(tmp_path):
    """Where they are not taken over whole batches, on CPUs: so scores are those of the weights that are stored."""
    run = Run("resnet18", recipes.load("dfformer", "smoke"), "smoke", locate(None, "classification"), 0)
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, model_args={}, ema_decay=0.5, epochs=2))
    finish(start(run, 2))
    values = run.measurement.record()["values"]
    for part, prefix in (("model", ""), ("ema", "ema_")):
        found = evaluate_checkpoint(run, run.measurement.folder / f"{part}.safetensors", CPU)
        for name in ("top1", "test_loss"):
            assert values[prefix + name] == pytest.approx(found[name], rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch():
    run = job()
    loop.run(run, CPU)
    file = run.measurement.folder / "model.safetensors"
    found = [evaluate_checkpoint(run, file, loop.Execution(device="cpu", per_device=batch)) for batch in (1, 7, 64)]
    for result in found[1:]:
        assert result == pytest.approx(found[0])
    assert found[0]["test_images"] == 50
    assert found[0]["top1"] == run.measurement.record()["values"]["top1"]


def test_a_loss_that_is_not_finite_stops_the_run_and_can_be_gone_through_again(frepro_command):
    run = job(lr=1e30, warmup_lr=1e30)
    with pytest.raises(FreproError, match=r"the loss is nan at optimizer step 2.*`frepro replay") as error:
        loop.run(run, CPU)
    assert "\n" not in str(error.value)
    assert run.measurement.record() is None
    folder = run.measurement.folder / "nonfinite"
    found = nonfinite.replay(folder, partial(loop.make_accelerator, "cpu"))
    assert (found["update"], found["loss"], found["again"]) == (2, "nan", "nan")
    assert found["module"].startswith("downsample_layers.0")
    done = frepro_command("replay", str(folder), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"first module with a non-finite output: {found['module']}" in done.stdout
    (folder / "batch.pt").write_bytes(b"nothing")
    with pytest.raises(FreproError, match="holds no optimizer step to replay"):
        nonfinite.replay(folder, partial(loop.make_accelerator, "cpu"))


def test_a_finite_loss_is_gone_through_again_to_the_bit(monkeypatch):
    """What is kept is what the network saw: with the loss taken for infinite, the same number comes out again."""
    run = job()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "isfinite", lambda loss, finite=torch.isfinite: finite(loss) & (loss.ndim > 0))
        with pytest.raises(FreproError, match="at optimizer step 1") as error:
            loop.run(run, CPU)
    found = nonfinite.replay(run.measurement.folder / "nonfinite", partial(loop.make_accelerator, "cpu"))
    assert found["again"] == found["loss"]
    assert found["loss"] in str(error.value)
    assert (found["weights"], found["module"]) == ([], None)


@pytest.fixture
def damaged_folder(tmp_path):
    """Digits as files, of which one to train and two to test cannot be read."""
    export("imagenet", tmp_path / "digits", counts=(64, 40))
    (tmp_path / "digits" / "train" / "3").mkdir(exist_ok=True)
    train_file = sorted((tmp_path / "digits" / "train").rglob("*.png"))[5]
    test_files = sorted((tmp_path / "digits" / "val").rglob("*.png"))[3:5]
    for file in (train_file, *test_files):
        file.write_bytes(file.read_bytes()[:60])
    return tmp_path / "digits"


def test_damaged_images_stop_a_run_or_are_counted(damaged_folder):
    run = dataclasses.replace(job(samples=None), source=locate(str(damaged_folder)))
    with pytest.raises(FreproError, match=r"damaged image .*\.png: .*: replace or remove the file"):
        loop.run(run, CPU)
    for workers in (0, 1):
        record = loop.run(
            dataclasses.replace(run, seed=workers), loop.Execution(device="cpu", damaged="skip", workers=workers)
        )
        assert record["values"]["damaged_images"] == 3
    assert run.correct() is None  # the order of the others is unknown
    names = (run.measurement.folder / "damaged.txt").read_text()
    assert names.count(".png") >= 3


def test_an_unknown_way_with_damaged_images_is_refused():
    with pytest.raises(FreproError, match="unknown choice for damaged images 'ignore': choose from skip, stop"):
        loop.Execution(damaged="ignore")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dfformer_s81"}, "unknown model 'dfformer_s81': did you mean dfformer_s18"),
        ({"samples": (20, 10)}, "20 training images do not fill one batch of 32"),
        (
            {"model_args": {"numm_filters": 2}},
            "unknown argument of dfformer_s18 'numm_filters': did you mean num_filters",
        ),
    ],
)
def test_what_cannot_be_trained_is_said(changes, message):
    with pytest.raises(FreproError, match=message):
        loop.run(job(**changes), CPU)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    run = job()
    with pytest.raises(FreproError, match="no checkpoint at"):
        evaluate_checkpoint(run, tmp_path / "none", CPU)
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(FreproError, match="damaged or not a checkpoint"):
        evaluate_checkpoint(run, tmp_path / "text", CPU)
    loop.run(run, CPU)
    with pytest.raises(FreproError, match=r"does not fit DFFormer: 16 left over: .*reweight"):
        evaluate_checkpoint(job(model="gfformer_s18"), run.measurement.folder / "model.safetensors", CPU)


def test_weights_for_other_classes_are_refused(tmp_path):
    """The head of a model of a thousand classes on data of ten."""
    from safetensors.torch import save_file

    run = job()
    network = timm.create_model("dfformer_s18", img_size=32, **run.all_model_args)
    save_file(network.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(FreproError, match=r"has 1,000 classes, but textured has 10: give the data set"):
        evaluate_checkpoint(run, tmp_path / "m.safetensors", CPU)
