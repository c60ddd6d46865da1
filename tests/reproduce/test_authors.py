"""`CHECKPOINT=authors`: the weights that authors published are downloaded and evaluated, row by row."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from frepro import papers, report, reproduce
from frepro.data.export import export
from frepro.errors import FreproError
from frepro.experiment import Experiment
from frepro.models import published
from frepro.reproduce import Artefact
from frepro.training.runs import Start
from tests.data.imagenets import WNIDS, class_folders
from tests.models.test_published import save, training_state
from tests.servers import serve

AUTHORS = ("--checkpoint", "authors", "--device", "cpu", "-p", "trained", "[]")
PVT, MOBILE = "pvt_v2_b0.in1k.safetensors", "mobilevit_xs.cvnets_in1k.safetensors"
TABLE_2 = ("reproduce", "--paper", "vim-f", "--table", "2", *AUTHORS)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Folder of a server that downloads are redirected to; timm's folder of weights is empty, and 5 x 2 images."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    class_folders(tmp_path / "data")
    for each in (tmp_path / "data" / "val").iterdir():
        for image in sorted(each.iterdir())[2:]:
            image.unlink()
    with serve(folder) as (address, faults):
        monkeypatch.setenv(published.MIRROR, address)
        yield SimpleNamespace(
            folder=folder, faults=faults, address=address, data=str(tmp_path / "data"), cache=tmp_path / "torch"
        )


def publish(served, name: str, file: str | None = None) -> torch.nn.Module:
    """Serve a model's weights as its authors publish them, but for five classes."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(WNIDS)).eval()
    head = model.get_classifier()
    torch.nn.init.normal_(head.weight, std=1.0)
    if file:
        save_file(model.state_dict(), served.folder / file)
    else:
        save(training_state(model.state_dict()), served.folder / published.file_name(published.URLS[name]))
    return model


def top1(model: torch.nn.Module, data: str) -> float:
    """The accuracy as timm itself evaluates it."""
    transform = create_transform(**resolve_data_config(model=model), is_training=False)
    files = sorted(Path(data, "val").glob("*/*.JPEG"))
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        answers = model(images).argmax(dim=1).tolist()
    return 100 * sum(WNIDS[a] == f.parent.name for a, f in zip(answers, files, strict=True)) / len(files)


def scores(store: Path) -> dict[str, dict[str, str]]:
    (file,) = store.glob("*/vim-f/table_2/findings.csv")
    rows = csv.DictReader(file.read_text().splitlines())
    return {row["label"]: row for row in rows if row["metric"] == "data_top1"}


def test_each_row_is_evaluated_with_its_own_weights(served, store, frepro_command):
    """One download breaks, and one row has only weights of the released code; the other rows are measured."""
    models = {
        "PVTv2-B0": publish(served, "pvt_v2_b0.in1k", PVT),
        "MobileViT-XS": publish(served, "mobilevit_xs.cvnets_in1k", MOBILE),
        "Vim-Ti-F(H), vimf_v1_tiny": publish(served, "vimf_v1_tiny"),
        "Vim-Ti-F(H), vimf_v2_tiny": publish(served, "vimf_v2_tiny"),
    }
    expected = {label: top1(model, served.data) for label, model in models.items()}
    served.faults[MOBILE] = "short"
    chosen = ("--data", served.data, "-p", "models", '["pvt_v2_b0", "mobilevit_xs", "vimf_tiny_h"]')
    plan = frepro_command(*TABLE_2, *chosen, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert not list(served.cache.rglob("*.safetensors"))
    host, size = served.address.removeprefix("http://"), (served.folder / PVT).stat().st_size
    assert f"{PVT} from {host}, {size / 1e6:.1f} MB" in plan.stdout
    assert "authors' weights: 0 evaluated, 4 to do, without weights: 1" in plan.stdout
    assert "an estimate" in plan.stdout

    done = frepro_command(*TABLE_2, *chosen)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"MobileViT-XS is not run: {MOBILE} cannot be downloaded from {served.address}/{MOBILE}" in done.stderr
    assert "authors' weights, re-evaluated" in done.stdout
    found = scores(store)
    broken = expected.pop("MobileViT-XS")
    assert {label: float(found[label]["measured"]) for label in expected} == pytest.approx(expected)
    assert {found[label]["weights"] for label in expected} == {"authors' weights, re-evaluated"}
    assert found["MobileViT-XS"]["problem"].startswith("not run: mobilevit_xs.cvnets_in1k.safetensors cannot be")
    assert "vimf_v1_tiny and vimf_v2_tiny" in found["Vim-Ti-F(H)"]["problem"]

    served.faults.clear()  # what is done is kept, and the rest is tried again
    again = frepro_command(*TABLE_2, *chosen)
    assert again.returncode == 0, again.stderr
    assert "3 evaluated, 1 to do" in again.stdout
    assert float(scores(store)["MobileViT-XS"]["measured"]) == pytest.approx(broken)
    runs = json.loads(next(store.glob("*/vim-f/table_2/origin.json")).read_text())["runs"]
    assert {run["weights"] for run in runs} == {PVT, MOBILE, "Ti_pre_checkpoint.pth", "v2-ti-f-ckp.pth"}


def table(served, **more) -> Experiment:
    variants = more.pop("variants", [("PVTv2-B0", "pvt_v2_b0", {})])
    settings = {"profile": "paper", "data": served.data, "device": "cpu", "trained": [], "checkpoints": "authors"}
    return Experiment("vim-f", 2, variants, **{**settings, **more})


def test_the_measured_column_says_whose_weights_they_are(served):
    """On ImageNet, which five classes stand in for here."""
    model = publish(served, "pvt_v2_b0.in1k", PVT)
    experiment = table(served, variants=[("PVTv2-B0", "pvt_v2_b0", {}), ("Vim-S†", "vim_small", {})])
    object.__setattr__(experiment, "source", replace(experiment.source, name="ImageNet-1K"))
    experiment.run()
    view = report.published_beside_measured(experiment.findings, experiment.published, ["top1"])
    cells = [[cell.rstrip("*") for cell in row[1:3]] for row in view.rows]
    assert cells == [["70.5", f"{top1(model, served.data):.2f}"], ["79.6", "not run"]]
    assert view.rows[0][2].endswith("*" * (1 + view.notes.index("authors' weights, re-evaluated")))
    assert view.notes[-1].startswith("not run: vim_s_midclstok_80p5acc.pth cannot be downloaded")
    assert view.rows[1][0] == "Vim-S†" + "*" * len(view.notes)


def test_without_network_the_way_by_path_is_one_line(served, monkeypatch):
    monkeypatch.setenv(published.MIRROR, "http://127.0.0.1:9")
    with pytest.raises(FreproError, match=rf"{PVT} cannot be downloaded from http://127.*CHECKPOINT=") as error:
        table(served).run()
    assert "\n" not in str(error.value)
    both = table(served, variants=[("PVTv2-B0", "pvt_v2_b0", {}), ("Vim-Ti†", "vim_tiny", {})])
    with pytest.raises(FreproError, match=PVT):
        both.run()
    assert "vim_t_midclstok_76p1acc.pth cannot be downloaded from http://127.0.0.1:9/vim_t" in both.failed["Vim-Ti†"]
    assert "no answer before" in both.failed["Vim-Ti†"]


def test_a_changed_checksum_is_one_line(served):
    publish(served, "pvt_v2_b0.in1k", PVT)
    published.fetch("pvt_v2_b0.in1k", published.of_timm("pvt_v2_b0", "in1k").url)
    publish(served, "pvt_v2_b0.in1k", PVT)
    (file,) = served.cache.rglob(PVT)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(FreproError, match="has SHA-256") as error:
        table(served).run()
    assert "\n" not in str(error.value)


def test_weights_of_other_classes_are_one_line(served):
    save_file(timm.create_model("pvt_v2_b0").state_dict(), served.folder / PVT)
    with pytest.raises(FreproError, match=r"has 1,000 classes, but data has 5"):
        table(served).run()


def test_what_cannot_be_evaluated_is_refused(served):
    with pytest.raises(FreproError, match="use profile paper"):
        table(served, profile="demo")
    export("ade20k", served.folder / "scenes", counts=(4, 2), size=64)
    for paper, number, said in (
        ("spanetv2", 2, "no weights for Table 2 of spanetv2: the authors' weights: not published$"),
        ("dfformer", 3, "nobody has published weights of detectors or segmenters"),
    ):
        with pytest.raises(FreproError, match=said):
            given = {"profile": "paper", "data": f"{served.data},{served.folder / 'scenes'}", "checkpoints": "authors"}
            reproduce.plan(Artefact(paper, "table", number), given)


def test_a_row_s_weights_are_from_imagenet_1k_alone():
    """At the size of the row, and with an evaluation that a recipe can state."""
    for model, tag in papers.weights().items():
        config = timm.get_pretrained_cfg(published.of_timm(model, tag).model)
        size = 256 if model.startswith("mobilevit") else 224
        assert (config.num_classes, config.input_size, config.crop_mode) == (1000, (3, size, size), "center"), model
        assert tag.split("_")[-1] == "in1k"
        assert not {"in12k", "in21k", "in22k", "laion2b", "ft", "ssl", "swsl"} & {*tag.split("_")}, model
    files = [published.of_timm(model, tag).file for model, tag in papers.weights().items()]
    assert len(set(files)) == len(files)


def test_a_run_starts_from_the_authors_weights(served):
    publish(served, "pvt_v2_b0.in1k", PVT)
    publish(served, "vimf_v1_tiny")
    assert Start.named("authors", "pvt_v2_b0").file.name == PVT
    assert Start.named("authors", "vimf_v1_tiny").file.name == "Ti_pre_checkpoint.pth"
    for model, said in (
        ("vimf_tiny_h", "use vimf_v1_tiny.in1k or vimf_v2_tiny.in1k"),
        ("gfnet_ti", "cloud drives"),
        ("resnet18", "no weights of resnet18"),
        ("dfformer_s18", "cannot be downloaded"),
    ):
        with pytest.raises(FreproError, match=said):
            Start.named("authors", model)


def test_timm_s_weights_are_fetched_for_a_machine_without_network(served, tmp_path, frepro_command):
    publish(served, "pvt_v2_b0.in1k", PVT)
    listed = frepro_command("weights").stdout
    assert re.search(rf"PVTv2-B0 .* 70.5 +pvt_v2_b0.in1k +{published.of_timm('pvt_v2_b0', 'in1k').url}", listed)
    done = frepro_command("weights", "fetch", "pvt_v2_b0", "--to", str(tmp_path / "fetched"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fetched" / PVT).read_bytes() == (served.folder / PVT).read_bytes()


def test_a_folder_with_timm_s_files_is_found_by_model(served):
    publish(served, "pvt_v2_b0.in1k", PVT)
    assert [each.model for each in table(served, checkpoints=str(served.folder)).evaluated] == ["pvt_v2_b0"]


def test_a_figure_downloads_its_weights(served):
    plan = reproduce.plan(Artefact("dfformer", "figure", 8), {"profile": "smoke", "checkpoints": "authors"})
    assert plan.checkpoints.keys() == {"caformer_s18", "cdfformer_s18"}
    assert "caformer_s18.sail_in1k.safetensors from 127.0.0.1" in plan.describe(1)
    with pytest.raises(FreproError, match="cannot be downloaded"):
        plan.fetch()
