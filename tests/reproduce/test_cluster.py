"""Runs on Slurm: the script and what cannot be sent without one; sending, requeueing, failing on a real one."""

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from frepro import recipes, reproduce
from frepro.cli.options import cli
from frepro.cli.reproduce import same_choice
from frepro.data import locate
from frepro.errors import FreproError
from frepro.reproduce import cluster
from frepro.reproduce.cluster import Cluster
from frepro.reproduce.slurm import ATTEMPT, folder
from frepro.training import loop
from frepro.training.runs import Run
from tests import slurm
from tests.conftest import ROOT

pytest.importorskip("submitit")

CPUS = {"gpus": "0", "cpus": 1}
ON_CPUS = ["--gpus", "0", "--cpus", "1"]
TWO = ["--paper", "dfformer", "--table", "4", "--profile", "smoke", "-p", "models", '["dfformer_s18", "gfformer_s18"]']


def job(seed=0, model="dfformer_s18", **changes) -> Run:
    recipe = dataclasses.replace(recipes.load("dfformer", "smoke"), **changes)
    return Run(model, recipe, "smoke", locate(None), seed)


def submit(*arguments: str):
    return CliRunner().invoke(cli, ["submit", *arguments])


def settings(script: str) -> dict[str, str]:
    """Name -> value of the lines with #SBATCH."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {name: shlex.split(value)[0] if value else "" for name, _, value in (line.partition("=") for line in lines)}


# Without Slurm: the plan and the script.


@pytest.fixture
def without_slurm(monkeypatch):
    """No command of Slurm is found."""
    monkeypatch.setenv("PATH", "/nonexistent")


def test_dry_run_prints_plan_and_script_without_slurm(without_slurm, store):
    done = submit(*TWO, "--gpus", "8", "--nodes", "2", "--cpus", "12", "--time", "2-12", "--mem", "64G", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "Table 4 of dfformer, profile smoke: not made yet\n" in done.output
    assert "Training runs: 2 to submit, 0 queued or running\n  dfformer_s18, seed 0: to submit\n" in done.output
    found = settings(done.output)
    assert found == {
        **{"array": "0-1%2", "cpus-per-task": "12", "gpus-per-node": "8", "job-name": "frepro", "mem": "64G"},
        **{"nodes": "2", "ntasks-per-node": "8", "time": "3600", "signal": "USR2@90", "requeue": ""},
        **{"open-mode": "append", "output": f"{store}/slurm/%A_%a_0_log.out"},
    }
    assert f"export FREPRO_RESULTS={store}\n" in done.output
    assert "export SRUN_CPUS_PER_TASK=12\n" in done.output
    assert sys.executable in done.output


def test_a_run_that_another_starts_from_needs_no_job_of_its_own(without_slurm, store):
    options = ("--gpus", "1", "--seeds", "2", "--profile", "smoke", "--dry-run")
    done = submit("--paper", "vim-f", "--table", "3", *options)
    assert done.exit_code == 0, done.output
    assert "Training runs: 2 to submit, 0 queued or running\n  vimf_tiny_h_stride8, seed 0: to submit\n" in done.output
    assert not store.exists()


@pytest.mark.parametrize("text", ["a\nb", "\n#SBATCH --wrap=id", "a\rb", "a\x0bb", "a\u2028b", "\x1b[31m"])
def test_no_value_adds_a_line_to_the_script(text, tmp_path, monkeypatch):
    for settings in (
        *({name: text} for name in ("partition", "account", "mem", "gpus")),
        *({"settings": given} for given in ({"comment": text}, {text: "x"}, {f"comment={text}": True}, {"": "x"})),
    ):
        with pytest.raises(FreproError) as error:
            Cluster(**settings)
        assert str(error.value).isprintable()
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / text))
    with pytest.raises(FreproError, match="the path of results has a line break or another control character"):
        Cluster()


def test_one_run_is_no_array():
    found = settings(Cluster(gpus="a100:4", partition="main", account="me", at_once=3).script(1))
    assert "array" not in found
    assert (found["gpus-per-node"], found["ntasks-per-node"]) == ("a100:4", "4")
    assert (found["partition"], found["account"]) == ("main", "me")
    assert settings(Cluster(at_once=3).script(8))["array"] == "0-7%3"


def test_any_setting_of_sbatch_can_be_given():
    done = submit(*TWO, "--slurm", "constraint", "h100&ib", "--slurm", "exclusive", "true", "--slurm", "--signal",
                  "USR2@300", "--dry-run")  # fmt: skip
    found = settings(done.output)
    assert (found["constraint"], found["exclusive"], found["signal"]) == ("h100&ib", "", "USR2@300")


def test_what_cannot_be_in_parts_is_refused():
    with pytest.raises(FreproError, match="--fsdp shards weights across processes: request more --gpus or --nodes"):
        Cluster(fsdp=True)
    half = job()
    half = dataclasses.replace(half, recipe=dataclasses.replace(half.recipe, precision="fp16"))
    with pytest.raises(FreproError, match="dfformer_s18, seed 0: --fsdp does not support precision fp16"):
        Cluster(gpus="2", fsdp=True).check([half])


def test_loading_processes():
    embedded, files = job(), dataclasses.replace(job(), source=dataclasses.replace(locate(None), root="/data"))
    assert [Cluster(cpus=8).execution(run)["workers"] for run in (embedded, files)] == [0, 7]
    assert [Cluster(cpus=8, workers=3).execution(run)["workers"] for run in (embedded, files)] == [3, 3]
    assert [Cluster(gpus=gpus).execution(embedded)["device"] for gpus in ("0", "1", "a100:8")] == [
        "cpu",
        "cuda",
        "cuda",
    ]


@pytest.mark.parametrize(
    ("given", "minutes"),
    [("90", 90), ("90:30", 91), ("12:00:00", 720), ("3-00", 4320), ("1-12:30", 2190), ("1-00:00:01", 1441)],
)
def test_time_is_written_as_slurm_does(given, minutes):
    assert settings(submit(*TWO, "--time", given, "--dry-run").output)["time"] == str(minutes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "3"], "dfformer_s18, seed 0: a batch of 32 cannot be divided among 3 processes"),
        (["--gpus", "two"], "--gpus 'two' is invalid: give a number, or type and number such as a100:8"),
        (["--tasks", "2"], "--tasks is for CPUs, since each GPU has one process: omit --tasks"),
        (["--slurm", "time", "30"], "--slurm time: use --time"),
        (["--slurm", "cpus-per-task", "3"], "--slurm cpus_per_task: use --cpus"),
        (["--slurm", "output", "x"], "--slurm output cannot be changed, since requeueing and logs depend on it"),
        (["--time", "a day"], "'a day' is not a time limit"),
    ],
)
def test_what_cannot_be_sent_is_said(options, message):
    done = submit(*TWO, *options, "--dry-run")
    assert message in str(done.exception) + done.output
    assert done.exit_code


def test_without_slurm_nothing_is_sent(without_slurm, store):
    with pytest.raises(FreproError, match="sbatch is not available: run this on a login node"):
        Cluster().send([job()])
    assert not store.exists()


def test_without_submitit_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(FreproError, match=r"clusters need submitit: run pip install -e '\.\[cluster\]'"):
        Cluster().script(1)


def test_the_command_that_gathers():
    options = [*TWO, "--seeds", "2", "--time", "90", "--gpus", "0", "--backbones", "/data/w", "--checkpoint", "/data/c"]
    with cli.commands["submit"].make_context("submit", options) as context:
        words = shlex.split(same_choice(context))
    assert words[:8] == ["frepro", "reproduce", *TWO[:6]]
    weights = ["--checkpoint", "/data/c", "--backbones", "/data/w"]
    assert sorted(words[8:]) == sorted([*weights, "--seeds", "2", *TWO[6:]])


class Deafness(Dataset):
    """One datum: whether the process that loads it ignores the signal with which Slurm announces the end."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> bool:
        return signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN


def deaf(run: Run) -> list[bool]:
    """Whether a process in which the run's job began is deaf, and one forked to load its data."""
    with contextlib.suppress(RuntimeError):  # no further than to the question where in Slurm it is
        cluster.ArrayTask(run, {})()
    (loaded,) = DataLoader(Deafness(), num_workers=1, multiprocessing_context="fork")
    return [signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, loaded.item()]


def test_what_loads_data_ignores_the_signal_of_slurm():
    """It would requeue the job a second time."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(deaf, job()).result() == [False, True]


# With Slurm.


@pytest.fixture(scope="module")
def slurm_of_one_node():
    if lacking := slurm.missing():
        pytest.skip(f"not installed: {', '.join(lacking)} (Debian: slurm-wlm, munge)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with slurm.running(folder):
        yield
    shutil.rmtree(folder)


needs_slurm = pytest.mark.slurm


@pytest.fixture
def one_thread():
    """As many threads as a job has here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.measurement.folder / "model.safetensors")


def assert_same(run: Run, tmp_path: Path, monkeypatch) -> None:
    """What the cluster made is what is made here in one go: values, and weights bit for bit."""
    record, made = run.measurement.record(), weights(run)
    with monkeypatch.context() as here:
        here.setenv("FREPRO_RESULTS", str(tmp_path / "straight"))
        expected, tensors = loop.run(run, loop.Execution(device="cpu")), weights(run)
    assert record["values"] == expected["values"]
    assert made.keys() == tensors.keys()
    assert all(torch.equal(tensor, made[name]) for name, tensor in tensors.items())


def attempts(job_id: str, rank: int = 0) -> int:
    return (folder() / f"{job_id}_{rank}_log.out").read_text().count(ATTEMPT)


def queued() -> list[str]:
    return slurm.said("squeue", "--noheader", "--array", "--format=%i").split()


def epochs_done(run: Run) -> int:
    file = run.measurement.folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def preempted_at(run: Run, epochs: int, *command: str) -> None:
    """Run a command of Slurm's once so many epochs are done."""
    slurm.until(lambda: epochs_done(run) >= epochs, 240, f"{run.title} did not come so far")
    subprocess.run(command, check=True)


@needs_slurm
def test_a_table_is_sent_at_once_and_comes_back(slurm_of_one_node, store, one_thread, tmp_path, monkeypatch):
    done = submit(*TWO, *ON_CPUS, "--wait")
    assert done.exit_code == 0, done.output
    assert re.search(r"^Submitted as job \d+ \(2 runs\); logs in ", done.output, re.M)
    told = [line for line in done.output.splitlines() if line.startswith(("[1/2]", "[2/2]"))]
    assert sum("18, seed 0: test top-1" in line for line in told) == 2
    assert "\nTable 4 of dfformer, profile smoke\n" in done.output
    (artefact,), _ = reproduce.find("dfformer", 4)
    plan = reproduce.plan(artefact, {"profile": "smoke", "seeds": [0], "models": json.loads(TWO[-1])})
    assert plan.is_current
    for run in plan.experiment.runs:
        assert_same(run, tmp_path, monkeypatch)
    assert "Training runs: 0 to submit, 0 queued or running\nWhen they are done" in submit(*TWO, *ON_CPUS).output


@needs_slurm
def test_what_is_queued_is_not_sent_twice(slurm_of_one_node, store):
    options = [*TWO, "--gpus", "0", "--slurm", "hold", "true"]
    first = submit(*options)
    assert first.exit_code == 0, first.output
    (script,) = [path for path in folder().glob("*.sh") if not path.name.startswith(".")]
    assert script.read_text() in first.output  # what was printed is what was sent
    jobs = queued()
    assert len(jobs) == 2
    assert "`frepro reproduce --paper dfformer --table 4 --profile smoke -p models" in first.output

    second = submit(*options)
    assert "Training runs: 0 to submit, 2 queued or running\n" in second.output
    assert f"  dfformer_s18, seed 0: job {jobs[0]} pending\n" in second.output
    assert queued() == jobs
    more = submit(*TWO[:-1], '["dfformer_s18", "dfformer_s18_k2"]', *options[len(TWO) :], "--dry-run")
    assert "Training runs: 1 to submit, 1 queued or running\n" in more.output

    waiting = subprocess.Popen(
        [sys.executable, "-m", "frepro", "submit", *options, "--wait"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if the tests run in the background
    )  # fmt: skip
    assert any(line.startswith("Waiting for job ") for line in waiting.stdout)
    waiting.send_signal(signal.SIGINT)
    _, told = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, told
    assert f"stopped waiting; job {jobs[0].partition('_')[0]} (2 runs) continue" in told
    assert queued() == jobs

    subprocess.run(["scancel", *jobs], check=True)
    slurm.until(lambda: not queued(), 30, "not cancelled")
    again = submit(*options, "--dry-run")
    assert f"dfformer_s18, seed 0: to submit again, job {jobs[0]} cancelled: it wrote no log\n" in again.output


@needs_slurm
def test_preempted_and_requeued_equals_straight(slurm_of_one_node, one_thread, tmp_path, monkeypatch):
    """By the signal that Slurm gives before it takes a node away or time is up, and by a requeue without a word."""
    runs = [job(seed, epochs=8) for seed in (0, 1)]
    signalled, requeued = Cluster(**CPUS, workers=1).send(runs)
    preempted_at(signalled.run, 2, "scancel", "--signal=USR2", signalled.job)
    preempted_at(requeued.run, 2, "scontrol", "requeue", requeued.job)
    said = []
    assert cluster.wait([signalled, requeued], said.append) == []
    assert len([line for line in said if line.startswith("[")]) == 2
    assert [attempts(sent.job) for sent in (signalled, requeued)] == [2, 2]
    assert (folder() / f"{signalled.job}_0_log.out").read_text().count("epoch 1/8") == 1
    for run in runs:
        assert_same(run, tmp_path, monkeypatch)


@needs_slurm
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_are_one_run(slurm_of_one_node, fsdp):
    """Also when they are preempted together."""
    run = job(epochs=6)
    (sent,) = Cluster(gpus="0", tasks=2, cpus=1, fsdp=fsdp).send([run])
    preempted_at(run, 2, "scancel", "--signal=USR2", sent.job)
    assert cluster.wait([sent], print) == []
    values = run.measurement.record()["values"]
    assert (values["processes"], values["effective_batch"], values["epochs"]) == (2, 32, 6)
    assert values["fsdp"] == fsdp
    assert [attempts(sent.job, rank) for rank in (0, 1)] == [2, 2]
    assert epochs_done(run) == 6


@needs_slurm
def test_a_run_that_fails_is_named(slurm_of_one_node):
    one = [*TWO[:-1], '["gfformer_s18"]', *ON_CPUS, "--tasks", "2"]
    done = submit(*one, "--per-device", "1", "--wait")
    assert done.exit_code == 1
    number = next(folder().glob("*_submission.sh")).name.split("_")[0]
    failed = f"job {number} failed: mixup pairs samples, but a batch of 32 would be split into micro-batches of 1: "
    first, second = done.stderr.splitlines()
    assert first.startswith(f"frepro: error: gfformer_s18, seed 0: {failed}")
    assert re.search(rf"\(see \S*slurm/{number}_[01]_log\.out\)$", first)
    assert second == "frepro: error: not made because their runs failed: Table 4 of dfformer"
    assert f"gfformer_s18, seed 0: to submit again, {failed}" in submit(*one, "--dry-run").output


@needs_slurm
def test_what_slurm_refuses_is_said(slurm_of_one_node):
    with pytest.raises(FreproError, match=r"Slurm rejected the jobs: .*Invalid partition name specified"):
        Cluster(**CPUS, partition="nowhere").send([job()])
    assert cluster.survey([job()])[0].job == ""
