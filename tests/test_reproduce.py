"""The front door, tried as a user would: in processes of its own, on real runs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from frepro import reproduce
from frepro.errors import FreproError
from frepro.reproduce import Artefact, Notebook
from tests.conftest import MAKE, ROOT
from tests.data.test_sources import make_folder

SMALL = ("reproduce", "--table", "4", "--profile", "smoke", "--seeds", "2", "--device", "cpu")
TWO = ("-p", "models", '["dfformer_s18", "gfformer_s18"]')


def test_a_table_is_made_then_cached_then_renewed(frepro_command, store):
    first = frepro_command(*SMALL, *TWO)
    assert first.returncode == 0, first.stderr
    assert "training runs: 0 cached, 4 to do" in first.stdout
    assert "textured test top-1" in first.stdout
    folder = store / "smoke" / "dfformer" / "table_4"
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.png",
        "findings.csv",
        "origin.json",
        "provenance.json",
        "table_4.ipynb",
    ]
    executed = (folder / "table_4.ipynb").read_text()
    assert str(store) not in executed  # no path of this machine in what is committed
    assert str(ROOT) not in executed

    started = time.perf_counter()
    second = frepro_command(*SMALL, *TWO)
    assert time.perf_counter() - started < 3
    assert "up to date" in second.stdout
    assert second.stdout.count("textured test top-1") == 1

    record = json.loads(next((store / "runs").glob("*/record.json")).read_text())
    more = frepro_command(*SMALL, "--seeds", "3", *TWO, "--dry-run")
    assert "training runs: 4 cached, 2 to do" in more.stdout
    assert record["provenance"]["commit"] or record["provenance"]["commit"] is None


def test_ctrl_c_keeps_what_is_done(frepro_command, store):
    command = [sys.executable, "-m", "frepro", *SMALL]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As at a terminal: a shell that starts these tests in the background has Ctrl-C ignored by all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if line.startswith("[2/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what was done is kept" in errors
    assert "Traceback" not in errors
    plan = frepro_command(*SMALL, "--dry-run").stdout
    done = int(plan.split("training runs: ")[1].split(" cached")[0])
    assert done >= 2
    assert f"{16 - done} to do" in plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "99"], "no table 99 in any paper: there are Tables 1-4 of dfformer, Tables 1-5 of spanet"),
        (["--table", "4", "--paper", "nosuch"], "unknown paper 'nosuch'"),
        (["--figure", "4", "--paper", "vim-f"], "no figure 4 in paper 'vim-f': there are Figures 1-3 of vim-f"),
        (["--table", "4", "--profile", "paper"], "profile paper needs the real data set"),
        (["--table", "4", "--profile", "dmeo"], "did you mean demo"),
        (["--table", "4", "--data", "/nowhere"], "no data at /nowhere"),
        (["--table", "4", "-p", "seds", "3"], "unknown parameter of table_4.ipynb 'seds': did you mean seeds"),
        (["--table", "4", "-p", "models", '["dfformer_s81"]'], "unknown model of this table 'dfformer_s81'"),
    ],
)
def test_bad_input_is_one_line(frepro_command, arguments, message):
    done = frepro_command("reproduce", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Notebooks for two artefacts alone."""
    monkeypatch.setattr(reproduce.paths, "notebook", lambda paper, name: tmp_path / paper / f"{name}.ipynb")
    for name in ("dfformer/table_4", "spanet/table_1"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.ipynb").write_text("")


def test_what_has_a_notebook_is_made_and_the_rest_named(notebooks):
    ready, missing = reproduce.find(table=4)
    assert [a.title for a in ready] == ["Table 4 of dfformer"]
    assert reproduce.listed(missing) == "Table 4 of spanet, Table 4 of spanetv2, Table 4 of vim-f"
    ready, missing = reproduce.find()
    assert len(ready) + len(missing) == 39
    assert reproduce.listed(ready) == "Table 4 of dfformer, Table 1 of spanet"
    assert reproduce.listed(missing).startswith("Tables 1-3 and Figures 1-9 of dfformer, Tables 2-5 and Figures 1-5 of")
    assert reproduce.find("dfformer", table=4) == ([Artefact("dfformer", "table", 4)], [])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"table": 2},
            "not built yet: Table 2 of dfformer, Table 2 of spanet, .*made: Table 4 of dfformer, Table 1 of",
        ),
        ({"table": 4, "paper": "vim-f"}, "not built yet: Table 4 of vim-f; what can be made: Table 4 of dfformer,"),
        ({"table": 4, "figure": 5}, "not built yet: Figure 5 of dfformer, Table 4 and Figure 5 of spanet"),
        ({"figure": 4, "paper": "vim-f"}, "no figure 4 in paper 'vim-f': there are Figures 1-3 of vim-f"),
    ],
)
def test_nothing_to_make_is_an_error(notebooks, wanted, message):
    with pytest.raises(FreproError, match=message):
        reproduce.find(**wanted)


def test_numbers_are_drawn_together():
    assert reproduce.ranges([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"
    assert reproduce.ranges([4]) == "4"


def test_one_line_says_what_is_not_built(frepro_command):
    done = frepro_command("reproduce", "--table", "4", "--profile", "smoke", "--dry-run")
    _, missing = reproduce.find(table=4)
    assert done.returncode == 0
    assert "Table 4 of dfformer: profile smoke" in done.stdout
    assert (f"Not built yet: {reproduce.listed(missing)}." in done.stdout) == bool(missing)


def test_bad_options_are_explained(frepro_command):
    done = frepro_command("reproduce", "--seeds", "many")
    assert done.returncode == 2
    assert "neither a number of seeds nor a list" in done.stderr


def test_a_damaged_image_ends_in_one_line(frepro_command, tmp_path):
    from PIL import Image

    folder = make_folder(tmp_path / "pets", images=40)
    bad = folder / "train" / "cat" / "bad.jpg"
    Image.effect_noise((200, 200), 50).convert("RGB").save(bad)
    bad.write_bytes(bad.read_bytes()[:3000])
    # An accuracy on data of the user's own is stored apart, and a damaged file is named.
    done = frepro_command(*SMALL[:5], "--device", "cpu", "--data", str(folder), *TWO)
    assert done.returncode == 1
    assert "bad.jpg" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_data_of_the_users_own_by_a_relative_path(tmp_path):
    """Trained, shown under the folder's name, in a result apart from the embedded data's; two runs side by side."""
    make_folder(tmp_path / "work" / "pets", images=40)
    command = [sys.executable, "-m", "frepro", *SMALL[:5], "--device", "cpu", "--data", "pets", "--jobs", "2", *TWO]
    environment = {**os.environ, "FREPRO_RESULTS": "mine"}
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pets test top-1" in done.stdout
    (folder,) = (tmp_path / "work" / "mine").glob("smoke-pets-*/dfformer/table_4")
    assert (folder / "findings.csv").exists()
    assert not (folder / "mine").exists()


def test_misspelt_make_variable():
    done = subprocess.run([*MAKE, "reproduce", "TABEL=4"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown variable TABEL; there is TABLE FIGURE PAPER" in done.stderr


def test_a_store_that_cannot_be_written(frepro_command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "file" / "results"))
    done = frepro_command(*SMALL, *TWO)
    assert done.returncode == 1
    assert "set FREPRO_RESULTS" in done.stderr.strip().splitlines()[-1]


def test_a_failing_notebook_is_kept_and_named(tmp_path):
    notebook = Notebook(Artefact("dfformer", "table", 4).notebook)
    folder = tmp_path / "smoke" / "dfformer" / "table_4"
    (tmp_path / "work").mkdir()
    folder.parent.mkdir(parents=True)
    with pytest.raises(FreproError, match=r"failed: unknown profile 'nosuch'.*table_4\.failed\.ipynb"):
        reproduce.execute(notebook, {"profile": "nosuch"}, tmp_path / "work" / "table_4.ipynb", kept=folder)
    assert folder.with_name("table_4.failed.ipynb").exists()


def test_other_commands(frepro_command):
    listed = frepro_command("list")
    assert "dfformer_s18_relu_afno" in listed.stdout
    assert "figure 4: Evaluation of models on texture and shape bias\n" in listed.stdout
    assert "table 4: Ablation for DFFormer-S18 on ImageNet-1K\n" in listed.stdout
    doctor = frepro_command("doctor")
    assert doctor.returncode == 0
    assert "torch: " in doctor.stdout
    trained = frepro_command("train", "--model", "dfformer_s18", "--profile", "smoke", "-a", "num_filters", "2")
    assert "dfformer_s18, num_filters=2, seed 0: test top-1" in trained.stdout
    unknown = frepro_command("train", "--model", "dfformer_s81")
    assert unknown.returncode == 1
    assert "did you mean dfformer_s18" in unknown.stderr
    other = frepro_command("train", "--model", "resnet18")
    assert "resnet18 has no recipe of its own: add --recipe" in other.stderr
