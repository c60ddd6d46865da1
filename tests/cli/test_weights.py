"""`frepro weights`: what is published for which row, and its download."""

import re

import pytest
import timm
import torch

from frepro.models import published
from tests.servers import serve

TINY = {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16)}


def test_the_list_names_rows_and_weights(frepro_command):
    done = frepro_command("weights")
    assert done.returncode == 0, done.stderr
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines() if line.strip()]
    assert ["dfformer table 2", "DFFormer-S18", "dfformer_s18", "83.2", "dfformer_s18.in1k"] in [x[:5] for x in lines]
    assert [x[4] for x in lines if x[:3] == ["vim-f table 2", "Vim-Ti-F(H)", "vimf_tiny_h"]] == [
        "vimf_v1_tiny.in1k",
        "vimf_v2_tiny.in1k",
    ]
    assert [x[4:] for x in lines if x[2:3] == ["spanetv2_s18_pure"]] == [["none", "not published"]]
    assert all(f"{name}.in1k" in done.stdout and url in done.stdout for name, url in published.URLS.items())


def test_fetch_on_one_machine_and_load_on_another(tmp_path, monkeypatch, frepro_command):
    served, folder = tmp_path / "served", tmp_path / "fetched"
    served.mkdir()
    model = timm.create_model("dfformer_s18", **TINY)
    for name in ("dfformer_s18.pth", "Ti_pre_checkpoint.pth"):
        torch.save({"model": model.state_dict()}, served / name)
    with serve(served) as (address, faults):
        monkeypatch.setenv(published.MIRROR, address)
        done = frepro_command("weights", "fetch", "dfformer_s18.in1k", "vimf_v1_tiny", "--to", str(folder))
        assert done.returncode == 0, done.stderr
        assert {path.name for path in folder.iterdir()} == {
            f"{name}{end}" for name in ("dfformer_s18.pth", "Ti_pre_checkpoint.pth") for end in ("", ".sha256")
        }
        faults["dfformer_s36.pth"] = "short"
        (served / "dfformer_s36.pth").write_bytes((served / "dfformer_s18.pth").read_bytes())
        done = frepro_command("weights", "fetch", "dfformer_s36", "dfformer_s18", "--to", str(folder))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "frepro: error: dfformer_s36.pth cannot be downloaded" in done.stderr
        assert done.stdout.startswith("dfformer_s18: ")
        (folder / "dfformer_s18.pth").write_bytes((folder / "dfformer_s18.pth").read_bytes() + b"0")
        done = frepro_command("weights", "fetch", "dfformer_s18", "--to", str(folder))
        assert "not the recorded" in done.stderr
        (folder / "dfformer_s18.pth").unlink()
        assert frepro_command("weights", "fetch", "dfformer_s18", "--to", str(folder)).returncode == 0
    monkeypatch.setenv(published.MIRROR, str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    loaded = timm.create_model("dfformer_s18", pretrained=True, **TINY)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("model", "said"), [("gfnet_ti", "cloud drives"), ("dfformer_s81", "did you mean"), ("resnet18", "unknown model")]
)
def test_fetch_of_what_is_not_there(tmp_path, frepro_command, model, said):
    done = frepro_command("weights", "fetch", model, "--to", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
