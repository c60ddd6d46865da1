"""Several artefacts in one go, on real smoke runs and notebooks."""

import json
import subprocess
import sys
import time

from frepro import reproduce
from frepro.reproduce import Artefact
from frepro.reproduce.batch import Batch, summary
from tests.conftest import ROOT

GRAPH = Artefact("spanetv2", "figure", 1)


def table(number: int) -> reproduce.Plan:
    """A table of DFFormer with one model alone."""
    settings = {"profile": "smoke", "seeds": [0], "device": "cpu", "models": ["dfformer_s18"]}
    return reproduce.plan(Artefact("dfformer", "table", number), settings)


def figure(**parameters) -> reproduce.FigurePlan:
    return reproduce.plan(GRAPH, {"profile": "smoke", "kernel_sizes": [3], "size": 6, "draws": 2, **parameters})


def test_a_shared_run_is_made_once_and_a_failure_stays_alone(store):
    batch = Batch([table(2), table(4), figure(draws=0)], "cpu", jobs=2)
    assert [run.title for run in batch.runs.values()] == ["dfformer_s18, seed 0"]
    said = []
    two, four, failed = batch.make(log=said.append)
    assert [one.state for one in (two, four, failed)] == ["made", "made", "failed"]
    records = [json.loads(path.read_text()) for path in (store / "runs").glob("*/record.json")]
    # Each table times its models in turn, so that both have a timing of the model that they share.
    assert sorted(record["kind"] for record in records) == ["throughput", "throughput", "train"]
    (train,) = [record for record in records if record["kind"] == "train"]
    assert two.seconds > train["seconds"]
    assert four.seconds > train["seconds"]
    assert "Figure 1 of spanetv2: " in failed.cause()
    assert "figure_1.failed.ipynb)" in failed.cause()
    assert list(store.glob("smoke-*/spanetv2/figure_1.failed.ipynb"))
    # One line for each thing done: a run, two timings, three notebooks.
    assert [line.split("]")[0] for line in said] == [f"[{number}/6" for number in range(1, 7)]
    text = summary([two, four, failed]).text()
    assert "Figure 1 of spanetv2  failed" in text
    assert "results/smoke-models-dfformer_s18/dfformer/table_4" in text

    again = Batch([table(2), table(4)], "cpu")
    assert again.stale == []
    assert [one.state for one in again.make()] == ["up to date", "up to date"]
    assert reproduce.rendered_in(table(4).folder) > 0


def test_a_run_that_fails_takes_along_what_rests_on_it(store):
    plans = [table(4), figure()]
    (run,) = plans[0].missing
    said = []
    with run.measurement.lock():
        failed, made = Batch(plans, "cpu", jobs=1).make(log=said.append)
    assert failed.cause().startswith("Table 4 of dfformer: another process is working on run")
    assert (failed.state, made.state) == ("failed", "made")
    assert not failed.plan.folder.exists()
    assert [line[:5] for line in said] == ["[1/4]", "[2/2]"]  # its timing and its notebook are not tried


def test_what_is_no_error_of_the_user_leaves_its_traceback(store, monkeypatch):
    def broken(plan: reproduce.FigurePlan) -> float:
        raise KeyError("nosuch")

    monkeypatch.setattr(reproduce, "render", broken)
    (failed,) = Batch([figure()], "cpu").make(log=lambda line: None)
    assert failed.cause().startswith("Figure 1 of spanetv2: KeyError: 'nosuch' (see ")
    assert "in broken" in failed.log.read_text()


def test_the_plan_of_many_is_a_line_each(frepro_command):
    done = frepro_command("reproduce", "--profile", "smoke", "--dry-run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    ready, _ = reproduce.find()
    lines = done.stdout.splitlines()
    for artefact in ready:
        assert any(line.startswith(f"{artefact.title} ") and line.endswith("  not made yet") for line in lines)
    (todo,) = [line for line in lines if line.startswith("To do: ")]
    assert f"and {len(ready)} notebooks" in todo


ARGUMENTS = (
    *("reproduce", "--table", "4", "--paper", "dfformer", "--profile", "smoke", "--seeds", "1", "--device", "cpu"),
    *("-p", "models", '["dfformer_s18"]'),
)


def test_the_command_names_failures_and_ends_in_1(frepro_command):
    (run,) = table(4).missing
    run.measurement.folder.parent.mkdir(parents=True)
    run.measurement.folder.touch()  # so that there can be no folder
    done = frepro_command(*ARGUMENTS)
    assert done.returncode == 1
    assert done.stderr.startswith(f"frepro: error: Table 4 of dfformer: cannot write {run.measurement.folder}: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_commands_that_make_the_same_table_at_once_make_each_run_once(store):
    command = [sys.executable, "-m", "frepro", *ARGUMENTS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(6)]
    written = set()
    while any(process.poll() is None for process in started):
        written |= {(path.parent.name, path.stat().st_mtime_ns) for path in store.glob("runs/*/record.json")}
        time.sleep(0.02)
    ends = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0] * 6, ends
    assert len(written) == 2, ends  # a training run and a timing
    assert table(4).is_current
    left = {path.name for path in store.rglob(".*")}
    assert left == {".lock"}
