"""The front door, tried as a user would: in processes of its own, on real runs."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from frepro import papers, paths, recipes, reproduce, tasks
from frepro.data.export import export
from frepro.errors import FreproError
from frepro.ops import cpu
from frepro.reproduce import Artefact, Notebook
from frepro.store import provenance, records
from tests.conftest import MAKE, ROOT
from tests.data.test_sources import make_folder

TABLE_4 = ("reproduce", "--paper", "dfformer", "--table", "4", "--profile", "smoke", "--device", "cpu")
SMALL = (*TABLE_4, "--seeds", "2")
TWO = ("-p", "models", '["dfformer_s18", "gfformer_s18"]')


def test_a_table_is_made_then_cached_then_renewed(frepro_command, store):
    first = frepro_command(*SMALL, *TWO)
    assert first.returncode == 0, first.stderr
    assert "training runs: 0 cached, 4 to do" in first.stdout
    assert "textured test top-1" in first.stdout
    folder = store / "smoke-models-dfformer_s18-gfformer_s18" / "dfformer" / "table_4"  # narrowed: never over the whole
    assert sorted(path.name for path in folder.iterdir()) == [
        "claims.csv",
        "comparison.png",
        "findings.csv",
        "origin.json",
        "provenance.json",
        "seeds.jsonl",
        "table_4.ipynb",
    ]
    executed = (folder / "table_4.ipynb").read_text()
    assert str(store) not in executed  # no path of this machine in what is committed
    assert str(ROOT) not in executed

    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    second = frepro_command(*SMALL, *TWO)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 3  # no torch, whatever else runs here
    assert "up to date" in second.stdout
    assert second.stdout.count("textured test top-1") == 1

    record = json.loads(next((store / "runs").glob("*/record.json")).read_text())
    more = frepro_command(*SMALL, "--seeds", "3", *TWO, "--dry-run")
    assert "training runs: 4 cached, 2 to do" in more.stdout
    assert record["provenance"]["commit"] or record["provenance"]["commit"] is None


def test_a_narrowed_run_never_replaces_a_whole_result():
    """Fewer seeds than the profile has, some of the models, or another parameter: a folder of its own."""
    artefact, whole = Artefact("dfformer", "table", 4), {"profile": "demo", "seeds": [0, 1, 2], "device": "cpu"}
    folders = [
        reproduce.plan(artefact, {**whole, **change}).folder.parts[-3]
        for change in ({}, {"seeds": [4, 5, 6, 7]}, {"seeds": [0]}, {"models": ["dfformer_s18"]}, {"profile": "smoke"})
    ]
    assert folders == ["demo", "demo", "demo-seeds-0", "demo-models-dfformer_s18", "smoke"]
    figure = Artefact("dfformer", "figure", 9)
    assert reproduce.plan(figure, {**whole, "seeds": [0]}).folder.parts[-3] == "demo-seeds-0"
    assert reproduce.plan(figure, whole).folder.parts[-3] == "demo"


def test_seeds_are_added_until_claims_are_decided_or_time_is_up(frepro_command, store):
    made = ("--data", "digits", "-p", "epochs", "12", *TWO)  # enough to train, so that the claim can be decided
    first = frepro_command(*TABLE_4, *made, "--seeds", "auto", "--budget", "1s")
    assert first.returncode == 0, first.stderr
    assert "3 seeds, more until all claims are decided" in first.stdout
    assert "No more seeds, since the budget of 1 s is used up" in first.stdout
    (table,) = store.glob("smoke-*/dfformer/table_4")
    (claim,) = [row for row in csv.DictReader((table / "claims.csv").open()) if row["unit"] == "points" and row["p"]]
    assert (claim["n"], claim["is_sequential"], claim["verdict"]) == ("3", "True", "undecided")
    assert "auto:3" in (table / "table_4.ipynb").read_text()

    again = frepro_command(*TABLE_4, *made, "--seeds", "auto", "--budget", "1s")  # begins with a round
    assert again.returncode == 0, again.stderr
    plan = frepro_command(*TABLE_4, *made, "--seeds", "auto", "--dry-run")
    assert "4 seeds, more until" in plan.stdout
    assert "up to date" in plan.stdout
    assert len(list(store.glob("runs/*/record.json"))) == 4 * 2 + 2  # four seeds of two models, and two timings


def test_another_machine_goes_on_from_stored_seeds(frepro_command, store):
    made = frepro_command(*TABLE_4, *TWO, "--seeds", "2")
    assert made.returncode == 0, made.stderr
    (table,) = store.glob("smoke-*/dfformer/table_4")
    findings = (table / "findings.csv").read_text()
    runs = [path.parent for path in store.glob("runs/*/record.json") if json.loads(path.read_text())["kind"] == "train"]
    assert len(runs) == 4
    for folder in runs:
        shutil.rmtree(folder)
    plain = frepro_command(*TABLE_4, *TWO, "--seeds", "2", "--dry-run")
    assert "0 cached, 4 to do" in plain.stdout  # measured here unless asked

    adopted = frepro_command(*TABLE_4, *TWO, "--seeds", "2", "--adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert "4 runs adopted" in adopted.stdout
    assert "up to date" in adopted.stdout
    assert (table / "findings.csv").read_text() == findings
    records_ = [json.loads((folder / "record.json").read_text()) for folder in runs]
    assert all(record["adopted"] for record in records_)
    assert all((folder / "correct.npy").exists() for folder in runs)
    more = frepro_command(*TABLE_4, *TWO, "--seeds", "3", "--dry-run")
    assert "4 cached, 2 to do" in more.stdout

    # What needs the network repeats the run.
    model, seed = ("dfformer_s18", "0")
    trained = frepro_command("train", "--model", model, "--profile", "smoke", "--device", "cpu", "--seed", seed)
    assert trained.returncode == 0, trained.stderr
    assert sum((folder / "model.safetensors").exists() for folder in runs) == 1

    (table / "seeds.jsonl").write_text('{"key": "../../x"}\n')
    damaged = frepro_command(*TABLE_4, *TWO, "--seeds", "2", "--adopt")
    assert damaged.returncode == 1
    assert "seeds.jsonl, line 1: not the record of a run" in damaged.stderr


def test_runs_are_made_again_when_asked(frepro_command, store):
    one = ("-p", "models", '["dfformer_s18"]')
    assert frepro_command(*TABLE_4, *one).returncode == 0
    records = [json.loads(path.read_text()) for path in (store / "runs").glob("*/record.json")]
    (before,) = (record for record in records if record["kind"] == "train")
    again = frepro_command(*TABLE_4, *one, "--retrain")
    assert again.returncode == 0, again.stderr
    assert "Retraining: 2 stored runs and timings were renamed to" in again.stdout
    assert "training runs: 0 cached, 1 to do" in again.stdout
    record = json.loads((store / "runs" / before["key"] / "record.json").read_text())
    assert record["provenance"]["time"] >= before["provenance"]["time"]
    assert record["values"] == before["values"]  # bit by bit
    (kept,) = (store / "runs").glob(f"{before['key']}.before-*")
    assert json.loads((kept / "record.json").read_text()) == before


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of package and notebooks, to be edited."""
    for name in ("frepro", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "checkout")
    return tmp_path / "checkout"


def in_checkout(checkout, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "frepro", *arguments], cwd=checkout, capture_output=True, text=True, timeout=300
    )


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_harmless_edits_train_and_time_nothing_again(checkout, store):
    """Another registered variant, a message, a moved file: the same runs and timings."""
    assert in_checkout(checkout, *TABLE_4, *TWO).returncode == 0
    models = checkout / "frepro" / "models" / "dfformer.py"
    models.write_text(
        models.read_text()
        + "\n\n@register_model\ndef dfformer_s18_n8(pretrained: bool = False, **kwargs: Any) -> DFFormer:\n"
        + '    return _create_dfformer("dfformer_s18_n8", pretrained, "s18", kwargs, num_filters=8)\n'
    )
    edit(checkout / "frepro" / "training" / "loop.py", "out of memory on", "no memory left on")
    (checkout / "frepro" / "ops" / "depthwise.py").rename(checkout / "frepro" / "ops" / "depthwise_conv.py")
    edit(checkout / "frepro" / "ops" / "__init__.py", "from .depthwise import", "from .depthwise_conv import")
    plan = in_checkout(checkout, *TABLE_4, *TWO, "--dry-run")
    assert "training runs: 2 cached, 0 to do" in plan.stdout, plan.stderr
    assert "throughput of models at full size: 2 cached, 0 to do" in plan.stdout
    assert "2 of them made with other code: " in plan.stdout
    assert "frepro.training.loop" in plan.stdout
    made = in_checkout(checkout, *TABLE_4, *TWO)
    assert made.returncode == 0, made.stderr
    assert "test top-1" not in made.stdout.partition("made in")[0].partition("training runs")[2]  # none was trained
    assert len(list((store / "runs").glob("*/record.json"))) == 4


def test_a_notebook_of_another_artefact_is_refused(checkout):
    """Copied for a new table, and the old one's name left in: nothing is made, and the remedy is told."""
    edit(
        checkout / "notebooks" / "spanet" / "table_5.ipynb",
        '\\"spanet\\", 5, variants,',
        '\\"dfformer\\", 4, variants,',
    )
    done = in_checkout(checkout, "reproduce", "--paper", "spanet", "--table", "5", "--profile", "smoke")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "frepro: error: notebooks/spanet/table_5.ipynb makes Table 4 of dfformer, but its path is that of Table 5 of "
        "spanet: correct the paper and number in the notebook"
    )


def test_a_result_that_names_another_figure_is_refused(checkout, store):
    edit(
        checkout / "notebooks" / "spanet" / "figure_3.ipynb",
        'Illustration(\\"spanet\\", 3',
        'Illustration(\\"spanet\\", 1',
    )
    done = in_checkout(checkout, "reproduce", "--paper", "spanet", "--figure", "3", "--profile", "smoke")
    assert done.returncode == 1
    assert "makes Figure 1 of spanet, but its path is that of Figure 3 of spanet" in done.stderr
    assert not (store / "smoke" / "spanet" / "figure_3").exists()


def test_a_variant_added_in_the_notebook_is_in_plan_and_result(checkout, store):
    """As a tinkerer would: one call after the experiment, a claim with it; a misspelt one takes its row alone."""
    cell = 'epochs=epochs\\n",\n    ")'
    more = '.with_variant(\\n    \\"N = 8\\", \\"dfformer_s18\\", \\"Eight outperform four.\\", num_filters=8\\n)'
    bad = '.with_variant(\\"odd\\", \\"dfformer_s18\\", num_filterz=8)'
    edit(checkout / "notebooks" / "dfformer" / "table_4.ipynb", cell, f"{cell}{more}{bad}")
    done = in_checkout(checkout, *TABLE_4, *TWO)
    assert done.returncode == 1  # for the row that could not be built
    assert "training runs: 0 cached, 4 to do" in done.stdout
    assert (
        "Table 4 of dfformer: odd is left out: unknown argument of dfformer_s18 'num_filterz': did you mean num_f"
        in (done.stderr)
    )
    text = next(store.glob("smoke-*/dfformer/table_4/table_4.ipynb")).read_text()
    assert "Eight outperform four." in text
    rows = list(csv.DictReader(next(store.glob("smoke-*/dfformer/table_4/findings.csv")).read_text().splitlines()))
    assert {row["label"] for row in rows} == {"DFFormer-S18", "GFFormer-S18", "N = 8", "odd"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_what_is_done(frepro_command, store, jobs):
    command = [sys.executable, "-m", "frepro", *SMALL, "--jobs", str(jobs)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As at a terminal: a shell that starts these tests in the background has Ctrl-C ignored by all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("[2/"):
            break
    os.killpg(process.pid, signal.SIGINT)  # to its processes, too, as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "stopped; finished work is kept, and the same command resumes from there"
    plan = frepro_command(*SMALL, "--dry-run").stdout
    done = int(plan.split("training runs: ")[1].split(" cached")[0])
    assert done >= 2
    assert f"{16 - done} to do" in plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "99"], "no table 99 in any paper: choose from Tables 1-4 of dfformer, Tables 1-5 of spanet"),
        (["--table", "4", "--paper", "nosuch"], "unknown paper 'nosuch'"),
        (["--figure", "4", "--paper", "vim-f"], "no figure 4 in paper 'vim-f': choose from Figures 1-3 of vim-f"),
        (["--table", "4", "--profile", "paper"], "profile paper needs the real data set"),
        (["--table", "4", "--profile", "dmeo"], "did you mean demo"),
        (["--table", "4", "--data", "/nowhere"], "no data at /nowhere"),
        (["--table", "4", "-p", "seds", "3"], "unknown parameter of table_4.ipynb 'seds': did you mean seeds"),
        (["--table", "4", "--budget", "30m"], "give --seeds auto as well"),
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
    monkeypatch.setattr(paths, "notebook", lambda paper, name: tmp_path / paper / f"{name}.ipynb")
    for name in ("dfformer/table_4", "spanet/table_1"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.ipynb").write_text("")


def test_what_has_a_notebook_is_made_and_the_rest_named(notebooks):
    ready, missing = reproduce.find(table=4)
    assert [a.title for a in ready] == ["Table 4 of dfformer"]
    assert reproduce.listed(missing) == "Table 4 of spanet, Table 4 of spanetv2, Table 4 of vim-f"
    ready, missing = reproduce.find()
    assert sorted([*ready, *missing], key=str) == sorted(reproduce.artefacts(), key=str)
    assert reproduce.listed(ready) == "Table 4 of dfformer, Table 1 of spanet"
    assert reproduce.listed(missing).startswith("Tables 1-3 and Figures 1-9 of dfformer, Tables 2-5 and Figures 1-5 of")
    assert reproduce.find("dfformer", table=4) == ([Artefact("dfformer", "table", 4)], [])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"table": 2},
            "not built yet: Table 2 of dfformer, Table 2 of spanet, .*available: Table 4 of dfformer, Table 1 of",
        ),
        ({"table": 4, "paper": "vim-f"}, "not built yet: Table 4 of vim-f; available: Table 4 of dfformer,"),
        ({"table": 4, "figure": 5}, "not built yet: Figure 5 of dfformer, Table 4 and Figure 5 of spanet"),
        ({"figure": 4, "paper": "vim-f"}, "no figure 4 in paper 'vim-f': choose from Figures 1-3 of vim-f"),
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
    assert "neither a number of seeds, nor a list" in done.stderr
    done = frepro_command("reproduce", "--seeds", "auto", "--budget", "soon")
    assert done.returncode == 2
    assert "not a duration: use for example 90s, 30m or 2h" in done.stderr


def test_a_damaged_image_ends_in_one_line(frepro_command, tmp_path):
    from PIL import Image

    folder = make_folder(tmp_path / "pets", images=40)
    bad = folder / "train" / "cat" / "bad.jpg"
    Image.effect_noise((200, 200), 50).convert("RGB").save(bad)
    bad.write_bytes(bad.read_bytes()[:3000])
    # An accuracy on data of the user's own is stored apart, and a damaged file is named.
    done = frepro_command(*TABLE_4, "--data", str(folder), *TWO)
    assert done.returncode == 1
    assert "bad.jpg" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_data_of_the_users_own_by_a_relative_path(tmp_path):
    """Trained, shown under the folder's name, in a result apart from the embedded data's; two runs side by side."""
    make_folder(tmp_path / "work" / "pets", images=40)
    command = [sys.executable, "-m", "frepro", *TABLE_4, "--data", "pets", "--jobs", "2", *TWO]
    environment = {**os.environ, "FREPRO_RESULTS": "mine"}
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pets test top-1" in done.stdout
    (folder,) = (tmp_path / "work" / "mine").glob("smoke-pets-*-models-*/dfformer/table_4")
    assert (folder / "findings.csv").exists()
    assert not (folder / "mine").exists()


def test_no_path_of_the_user_stands_in_an_executed_notebook(tmp_path, monkeypatch, store):
    """The injected cell names data and weights as the provenance does; outputs that print a path, in any spelling, too.

    A notebook of the user's own kind: that of Table 4, with a cell that prints all it knows.
    """
    data = make_folder(tmp_path / "O'Brien & söns" / 'my "own" pets', images=40)
    weights = tmp_path / "of O'Brien"
    weights.mkdir()
    source = json.loads(Artefact("dfformer", "table", 4).notebook.read_text())
    printing = [
        "import html, json, shlex",
        "from pathlib import Path",
        "from frepro import paths",
        "for path in (data, checkpoints, str(paths.results())):",
        "    print(path, repr(path), json.dumps(path), html.escape(path), shlex.quote(path), Path(path).as_uri())",
        "{'data': Path(data) / 'train', 'weights': [checkpoints]}",
    ]
    cell = {"cell_type": "code", "id": "printing", "metadata": {}, "outputs": [], "execution_count": None}
    source["cells"].append({**cell, "source": "\n".join(printing)})
    file = tmp_path / "table_4.ipynb"
    file.write_text(json.dumps(source))
    monkeypatch.setattr(paths, "notebook", lambda paper, name: file)
    parameters = {**SETTINGS, "data": str(data), "models": ["dfformer_s18"]}
    (run,) = reproduce.plan(Artefact("dfformer", "table", 4), parameters).experiment.runs
    save_file(tasks.of(run).network(0.0).state_dict(), weights / "dfformer_s18.safetensors")
    plan = reproduce.plan(Artefact("dfformer", "table", 4), {**parameters, "checkpoints": str(weights)})
    reproduce.make(plan, 1, None, 0, print)
    text = (plan.folder / "table_4.ipynb").read_text()
    executed = json.loads(text)
    (injected,) = [c for c in executed["cells"] if "injected-parameters" in c["metadata"].get("tags", ())]
    assigned = {}
    exec("".join(injected["source"]), assigned)
    shown = json.loads((plan.folder / "provenance.json").read_text())["parameters"]
    assert assigned["data"] == shown["data"] == 'my "own" pets'
    assert assigned["checkpoints"] == shown["checkpoints"] == "of O'Brien"
    assert (assigned["models"], assigned["output"]) == (["dfformer_s18"], ".")
    printed = "".join(executed["cells"][-1]["outputs"][0]["text"])
    assert printed.count('my "own" pets') >= 3
    assert printed.count("results") == 6
    for name in (tmp_path.name, "Brien & ", "Brien%20", "Brien &amp;", str(ROOT)):
        assert name not in text


SETTINGS = {"profile": "smoke", "seeds": [0], "device": "cpu"}


def plans() -> dict[str, reproduce.Plan | reproduce.FigurePlan]:
    """The plan of every artefact that has a notebook, as things stand, by its title."""
    return {a.title: reproduce.plan(a, SETTINGS) for a in reproduce.artefacts() if a.is_built}


@pytest.fixture
def made(store):
    """Results that look as if everything had just been made."""
    for plan in plans().values():
        records.write_text(plan.folder / "provenance.json", json.dumps({"made_from": plan.made_from}))


def stale() -> dict[str, list[str]]:
    """What is stale now, with the reasons; that no run is in the store is none of them here."""
    found = {title: reproduce.changes(plan.made_from, plan.folder) for title, plan in plans().items()}
    return {title: reasons for title, reasons in found.items() if reasons}


def code(artefact: Artefact) -> str:
    """What its notebook runs; not what is there to be tried."""
    cells = json.loads(artefact.notebook.read_text())["cells"]
    tried = [cell for cell in cells if "skip-execution" in cell["metadata"].get("tags", ())]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code" and cell not in tried)


def test_nothing_is_stale_that_was_just_made(made):
    assert stale() == {}


@pytest.mark.parametrize("paper", papers.names())
def test_a_published_cell_makes_its_table_stale(made, paper, monkeypatch, tmp_path):
    """And the figures that show it; no other table of the same file, though lines may shift."""
    document = yaml.safe_load((paths.PACKAGE / "papers" / f"{paper}.yaml").read_text())
    original = {name: papers.load(name) for name in papers.names()}
    for number in (1, 2):
        if number not in document["tables"]:
            continue
        changed = yaml.safe_load(yaml.safe_dump(document))
        row = changed["tables"][number]["rows"][-1]
        row["cells"] = [f"{cell} or so" if isinstance(cell, str) else cell for cell in row["cells"]]
        (tmp_path / f"{paper}.yaml").write_text(yaml.safe_dump(changed))
        copy = papers.read(tmp_path / f"{paper}.yaml")
        with monkeypatch.context() as patch:
            patch.setattr(papers, "load", {**original, paper: copy}.__getitem__)
            found = stale()
        shows = f'papers.load("{paper}").tables[{number}]'
        figures = [a.title for a in reproduce.artefacts() if a.is_built and a.kind == "figure" and shows in code(a)]
        table = Artefact(paper, "table", number)
        assert set(found) == {*figures, *([table.title] if table.is_built else [])}
        assert all(reasons == ["published values changed"] for reasons in found.values())
        assert figures or (paper, number) != ("spanet", 2)  # Figure 5 shows it


@pytest.mark.parametrize("family", sorted({module.rpartition(".")[2] for module in provenance.own_models().values()}))
def test_the_code_of_a_model_makes_stale_what_uses_it(made, family, monkeypatch, tmp_path):
    shutil.copytree(paths.PACKAGE, tmp_path / "frepro", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    path = tmp_path / "frepro" / "models" / f"{family}.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert stale() == {}
    path.write_text(path.read_text() + "\nANOTHER = 1\n")
    found = stale()
    assert set(found) == {a.title for a in reproduce.artefacts() if a.is_built and family in reached(a)}
    assert all(reasons == [f"code of frepro.models.{family} changed"] for reasons in found.values())
    # What no import may blur: tables of models of ours are not made again for families that these models do not use.
    tables = [a for a in reproduce.artefacts() if a.is_built and a.kind == "table" and "frepro.analysis" not in code(a)]
    models = {a.title: [model for _, model, _ in reproduce.plan(a, SETTINGS).experiment.variants] for a in tables}
    own = provenance.own_models()
    used = {
        title: {module for model in names for module in provenance.code(own[model])}
        for title, names in models.items()
        if own.keys() >= set(names)
    }
    assert {"Table 4 of dfformer", "Table 5 of spanet", "Table 2 of spanetv2", "Table 5 of vim-f"} <= set(used)
    assert {title for title in used if f"frepro.models.{family}" in used[title]} == set(found) & set(used)


def reached(artefact: Artefact) -> set[str]:
    """The families of which a notebook names or trains a model, or to which its text leads import after import."""
    text, own = code(artefact), provenance.own_models()
    models = set(re.findall(r'"(\w+)"', text)) & set(own)
    for paper, number in re.findall(r'papers\.load\("([\w-]+)"\)\.tables\[(\d+)\]', text):
        models |= {row.model for row in papers.load(paper).tables[int(number)].rows if row.model in own}
    models |= {run.model for run in reproduce.plan(artefact, SETTINGS).missing} & set(own)
    waiting = imported(text) + [own[model].replace(".", "/") for model in models]
    waiting += ["frepro/illustration"] if artefact.kind == "figure" else ["frepro/experiment", "frepro/report"]
    seen = {"frepro", "frepro/models"}  # these import every family so that timm knows it
    while waiting:
        name = waiting.pop()
        for file in (ROOT / f"{name}.py", ROOT / name / "__init__.py"):
            if name not in seen and file.exists():
                waiting += imported(file.read_text(), name)
        seen.add(name)
    return {name.removeprefix("frepro/models/") for name in seen if name.startswith("frepro/models/")}


def imported(text: str, package: str = "") -> list[str]:
    """What a text imports from frepro, as paths without ending."""
    text = re.sub(r"^if TYPE_CHECKING:.*?\n(?=\S)", "", text, flags=re.M | re.S)
    found = []
    for module, several, one in re.findall(r"^ *from (\.?[\w.]*) import (?:\(([^)]*)\)|(.*))", text, flags=re.M):
        path = f"{package}/{module[1:]}" if module.startswith(".") else module.replace(".", "/")
        if path.split("/")[0] == "frepro":
            found += [path, *(f"{path}/{name}" for name in re.findall(r"\w+", several or one.partition("#")[0]))]
    return found


@pytest.mark.parametrize("paper", papers.names())
def test_a_recipe_makes_stale_what_is_trained_by_it(made, paper, monkeypatch, tmp_path):
    document = yaml.safe_load((paths.PACKAGE / "recipes" / f"{paper}.yaml").read_text())
    load = recipes.load

    def changed(profile: str, key: str, value: object) -> dict[str, list[str]]:
        other = {**document, profile: {**document[profile], key: value}}
        (tmp_path / f"{paper}.yaml").write_text(yaml.safe_dump(other))
        read = recipes.read(tmp_path / f"{paper}.yaml", "smoke")
        with monkeypatch.context() as patch:
            patch.setattr(recipes, "load", lambda name, profile: read if name == paper else load(name, profile))
            return stale()

    built = [a for a in reproduce.artefacts(paper) if a.is_built]
    tables = {a.title for a in built if a.kind == "table" and "trained = []" not in code(a)}
    costs = {a.title for a in built if a.kind == "table" and papers.load(paper).tables[a.number].is_of_backbones}
    learnt = changed("smoke", "lr", 0.123)
    assert tables - costs <= set(learnt) <= {a.title for a in built if "variants = [" in code(a)}
    assert all(reasons == [f"recipe {paper} changed"] for reasons in learnt.values())
    timed = changed("smoke", "benchmark", {"batch_size": 7, "img_size": 224, "rounds": 1})
    assert set(timed) == tables
    assert all(reasons == [f"benchmark of recipe {paper} changed"] for reasons in timed.values())
    assert changed("demo", "lr", 0.123) == {}


WHOLES = [name for name in recipes.names() if recipes.load(name, "smoke").task != "classification"]


@pytest.mark.parametrize("name", WHOLES)
def test_a_recipe_of_a_network_makes_stale_its_table_alone(made, name, monkeypatch, tmp_path):
    paper = next(paper for paper in papers.names() if name.startswith(f"{paper}-"))
    document = yaml.safe_load((paths.PACKAGE / "recipes" / f"{name}.yaml").read_text())
    (tmp_path / f"{name}.yaml").write_text(
        yaml.safe_dump({**document, "smoke": {**document.get("smoke", {}), "lr": 0.123}})
    )
    read, load = recipes.read(tmp_path / f"{name}.yaml", "smoke"), recipes.load
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "load", lambda asked, profile: read if asked == name else load(asked, profile))
        found = stale()
    numbers = [number for number, table in papers.load(paper).tables.items() if table.task is type(read)]
    assert len(numbers) == (name != "dfformer-retinanet")  # DFFormer's paper has no table of it
    assert found == {f"Table {number} of {paper}": [f"recipe {paper} changed"] for number in numbers}


def test_weights_of_a_folder_are_evaluated(frepro_command, store, tmp_path):
    """Under their authors' names; nothing is trained, and what has no file has no score."""
    (tmp_path / "weights").mkdir()
    made = frepro_command("train", "--model", "gfformer_s18", "--profile", "smoke", "--device", "cpu")
    assert made.returncode == 0, made.stderr
    (file,) = (store / "runs").glob("*/model.safetensors")
    shutil.copy(file, tmp_path / "weights" / "GFFormer-S18.safetensors")
    top1 = json.loads(file.with_name("record.json").read_text())["values"]["top1"]
    done = frepro_command(*TABLE_4, "--checkpoint", str(tmp_path / "weights"), *TWO)
    assert done.returncode == 0, done.stderr
    assert "training runs: 0 cached, 0 to do" in done.stdout
    rows = list(csv.DictReader(next(store.glob("smoke-*/dfformer/table_4/findings.csv")).read_text().splitlines()))
    scores = {row["model"]: row for row in rows if row["metric"] == "textured_top1"}
    assert [*scores] == ["gfformer_s18"]
    assert float(scores["gfformer_s18"]["measured"]) == top1
    assert scores["gfformer_s18"]["weights"] == "GFFormer-S18.safetensors"
    wrong = frepro_command(*TABLE_4, "--checkpoint", str(tmp_path / "nowhere"))
    assert wrong.returncode == 1
    assert "no weights at" in wrong.stderr


def test_of_several_data_sets_each_table_takes_the_one_that_fits(tmp_path):
    digits, scenes = make_folder(tmp_path / "digits"), tmp_path / "scenes"
    export("coco", scenes, counts=(4, 2), size=64)
    both = f"{digits},{scenes}"
    taken = {
        number: reproduce.plan(Artefact("spanet", "table", number), {**SETTINGS, "data": both}).experiment.source.reader
        for number in (3, 5)
    }
    assert taken == {3: "coco", 5: "folder"}
    with pytest.raises(FreproError, match="is not data for segmentation: use a folder in the layout of ADE20K"):
        reproduce.plan(Artefact("spanet", "table", 4), {**SETTINGS, "data": both})


def test_what_the_data_do_not_serve_is_left_out_and_named(tmp_path, frepro_command):
    """As `make reproduce TABLE=4 DATA=/data/imagenet` asks for tables of ADE20K and COCO too."""
    digits = make_folder(tmp_path / "digits")
    choice = ("reproduce", "--table", "4", "--profile", "smoke", "--data", str(digits), "--dry-run")
    done = frepro_command(*choice)
    assert done.returncode == 1
    assert "Table 4 of dfformer: profile smoke, data digits" in done.stdout
    named = [line for line in done.stderr.splitlines() if "cannot be made" in line]
    assert [line.split(" cannot")[0] for line in named] == [
        f"frepro: error: Table 4 of {paper}" for paper in ("spanet", "spanetv2", "vim-f")
    ]
    assert "use a folder in the layout of COCO 2017" in named[-1]
    alone = frepro_command(*choice, "--paper", "spanet")
    assert alone.stderr.splitlines() == [
        f"frepro: error: {digits} is not data for segmentation: use a folder in the layout of ADE20K, or the embedded "
        "scenes"
    ]


def test_reasons(made):
    artefact = Artefact("dfformer", "table", 4)
    plan = reproduce.plan(artefact, SETTINGS)
    assert plan.reasons == [
        "training runs that it depends on are not in the store",
        "its models have not been timed on this device",
    ]
    more = reproduce.plan(artefact, {**SETTINGS, "seeds": [0, 1]})
    assert more.reasons == ["parameters changed"] or "recipe dfformer changed" not in more.reasons
    file = plan.folder / "provenance.json"
    file.write_text(json.dumps({"made_from": plan.made_from, "files": ["findings.csv"]}))
    assert reproduce.changes(plan.made_from, plan.folder) == ["findings.csv is missing"]
    file.write_text(json.dumps({"fingerprint": "25efec1cc551211c", "files": []}))
    (old,) = reproduce.changes(plan.made_from, plan.folder)
    assert old.startswith("made by an earlier version of frepro")
    file.unlink()
    assert "not made yet" in reproduce.plan(artefact, SETTINGS).describe(1)
    changed = {**plan.made_from, "data": "other", "frepro.training.loop": "other"}
    records.write_text(file, json.dumps({"made_from": changed}))
    assert "data changed, code of frepro.training.loop changed\n" in reproduce.plan(artefact, SETTINGS).describe(1)
    assert reproduce.because([str(number) for number in range(9)]) == "stale: 0, 1, 2, 3 and 5 more"


def test_misspelt_make_variable():
    done = subprocess.run([*MAKE, "reproduce", "TABEL=4"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown variable TABEL: use TABLE FIGURE PAPER" in done.stderr


def test_a_store_that_cannot_be_written(frepro_command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "file" / "results"))
    done = frepro_command(*SMALL, *TWO)
    assert done.returncode == 1
    assert "FREPRO_RESULTS" in done.stderr.strip().splitlines()[-1]


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
    assert "backend cpu: " + (f"available, kernels for {built}" if (built := cpu.instruction_set()) else "unavailable")
    trained = frepro_command("train", "--model", "dfformer_s18", "--profile", "smoke", "-a", "num_filters", "2")
    assert "dfformer_s18, num_filters=2, seed 0: test top-1" in trained.stdout
    unknown = frepro_command("train", "--model", "dfformer_s81")
    assert unknown.returncode == 1
    assert "did you mean dfformer_s18" in unknown.stderr
    other = frepro_command("train", "--model", "resnet18")
    assert "resnet18 has no default recipe: add --recipe" in other.stderr
