"""Weights by name: downloaded once, checked, read as data, and fitted to the model that is asked for."""

import argparse
import os
import pickle
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import frepro
from frepro.errors import FreproError
from frepro.models import published
from tests import golden
from tests.servers import serve

TINY = {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16)}


class Numpy1Pickler(pickle._Pickler):
    """Writes NumPy's scalars under the name that NumPy 1.x gives them."""

    def save_global(self, obj, name=None):
        if obj is np.float64().__reduce__()[0]:
            self.write(b"cnumpy.core.multiarray\nscalar\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def save(content, file: Path) -> None:
    torch.save(content, file, pickle_module=SimpleNamespace(Pickler=Numpy1Pickler, __name__="pickle"))


def training_state(weights):
    """What Vim's and Vim-F's training script stores."""
    return {
        "model": weights,
        "model_ema": {name: 2 * tensor for name, tensor in weights.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 299,
        "args": argparse.Namespace(data_path=Path("/data/imagenet"), lr=1e-3),
        "max_accuracy": np.float64(76.03),
    }


OFFICIAL = {
    "dfformer_s18": lambda weights: weights,
    "cdfformer_s18": lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
    "spanet_small": lambda weights: {"state_dict": {f"_orig_mod.{n}": t for n, t in weights.items()}, "epoch": 309},
    "vimf_v1_tiny": training_state,
    "vimf_v2_tiny": training_state,
    "vim_tiny": training_state,
}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Folder of a server that downloads are redirected to; timm's folder of weights is empty."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with serve(folder) as (address, faults):
        monkeypatch.setenv(published.MIRROR, address)
        yield SimpleNamespace(folder=folder, faults=faults, address=address)


@pytest.fixture
def small(mirror, monkeypatch):
    """Weights of a small DFFormer, at dfformer_s18's address; images of 64 pixels."""
    torch.manual_seed(0)
    model = timm.create_model("dfformer_s18", **TINY).eval()
    torch.save(model.state_dict(), mirror.folder / "dfformer_s18.pth")
    return model


def cached(name: str = "dfformer_s18.pth") -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


@pytest.mark.parametrize("name", OFFICIAL)
def test_pretrained_gives_the_official_logits(mirror, name):
    save(OFFICIAL[name](golden.state_dict(name)), mirror.folder / published.file_name(published.URLS[name]))
    record = golden.records()[name]
    for model in (f"{name}.in1k", name):
        network = timm.create_model(model, pretrained=True).eval()
        shutil.rmtree(mirror.folder)  # the second time, the file is there
        mirror.folder.mkdir()
    with torch.no_grad():
        logits = network(golden.images())
    torch.testing.assert_close(logits[:, :16], torch.tensor(record["logits_0_to_15"]), rtol=0, atol=2e-4)
    assert logits.argmax(dim=1).tolist() == record["argmax"]


def test_timm_knows_which_models_have_weights():
    names = set(timm.list_models(pretrained=True))
    assert {f"{name}.{published.TAG}" for name in published.URLS} <= names
    assert not names & {f"{name}.untrained" for name in frepro.list_models()}
    assert len({published.file_name(url) for url in published.URLS.values()}) == len(published.URLS)
    assert published.URLS.keys() <= set(frepro.list_models())
    assert {name for names in published.RELEASES.values() for name in names} <= published.URLS.keys()


def test_other_image_sizes_are_what_resizing_gives(small):
    for size in (96, (64, 96)):
        model = timm.create_model("dfformer_s18", pretrained=True, img_size=size, **TINY).eval()
        assert model.img_size == ((size, size) if isinstance(size, int) else size)
        images = torch.randn(2, 3, *model.img_size)
        with torch.no_grad():
            torch.testing.assert_close(model(images), small(images))


def test_a_file_of_another_image_size_is_resized(small, tmp_path):
    small.set_input_size(160)
    torch.save(small.state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    model = timm.create_model("dfformer_s18", pretrained=True, pretrained_cfg_overlay=overlay, img_size=160, **TINY)
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_other_classes_get_a_new_head(small):
    for classes in (3, 0):
        model = timm.create_model("dfformer_s18", pretrained=True, num_classes=classes, **TINY)
        state = model.state_dict()
        assert ("head.fc2.weight" in state) == (classes > 0)
        for name, tensor in small.state_dict().items():
            if name.startswith("head.fc2.") or (classes == 0 and name.startswith("head.")):
                continue
            assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_other_channels_are_adapted_as_in_timm(small, channels):
    model = timm.create_model("dfformer_s18", pretrained=True, in_chans=channels, **TINY)
    first = small.state_dict()["downsample_layers.0.conv.weight"]
    adapted = timm.models.adapt_input_conv(channels, first)
    torch.testing.assert_close(model.state_dict()["downsample_layers.0.conv.weight"], adapted)


def test_feature_maps(small):
    backbone = timm.create_model("dfformer_s18", pretrained=True, features_only=True, **TINY).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), small.forward_intermediates(images, intermediates_only=True))


def test_what_does_not_fit_is_named(small):
    with pytest.raises(FreproError, match=r"dfformer_s18.pth does not fit DFFormer: .* of another shape: ") as error:
        timm.create_model("dfformer_s18", pretrained=True, **{**TINY, "dims": (16, 16, 32, 16)})
    assert "\n" not in str(error.value)
    with pytest.raises(FreproError, match=r"does not fit DFFormer: .*downsample_layers.0.conv.weight"):
        timm.create_model("dfformer_s18", pretrained=True, **{**TINY, "dims": (24, 16, 16, 16)})


@pytest.mark.parametrize("name", ["spanetv2_s18_pure", "gfnet_ti", "gfformer_s18"])
def test_weights_that_nobody_published(mirror, name):
    with pytest.raises(FreproError, match=rf"no weights of {name} can be downloaded.*load_official\(\"{name}\""):
        timm.create_model(name, pretrained=True)


def test_a_paper_s_model_names_the_released_ones():
    with pytest.raises(FreproError, match=r"use vimf_v1_tiny.in1k or vimf_v2_tiny.in1k"):
        timm.create_model("vimf_tiny_h", pretrained=True)


@pytest.mark.parametrize("fault", ["short", "longer", "less", "chunks", "no length"])
def test_a_broken_transfer_is_one_line_and_leaves_nothing(small, mirror, fault):
    mirror.faults["dfformer_s18.pth"] = fault
    with pytest.raises(FreproError) as error:
        timm.create_model("dfformer_s18", pretrained=True, **TINY)
    said = str(error.value)
    assert "\n" not in said
    for part in ("dfformer_s18.pth", f"{mirror.address}/dfformer_s18.pth", "load_official", published.MIRROR):
        assert part in said
    assert list(cached().parent.iterdir()) == []
    mirror.faults.clear()
    timm.create_model("dfformer_s18", pretrained=True, **TINY)


def test_no_network(mirror, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"http://127.0.0.1:{port}", mirror.address, "http://", "/no/such/folder"):
        monkeypatch.setenv(published.MIRROR, address)
        with pytest.raises(FreproError, match=r"dfformer_s18.pth cannot be downloaded from .*load_official") as error:
            timm.create_model("dfformer_s18", pretrained=True, **TINY)
        assert "\n" not in str(error.value)
    monkeypatch.delenv(published.MIRROR)
    with pytest.raises(FreproError, match=r"cannot be downloaded from https://github.com/okojoalg/dfformer/releases"):
        timm.create_model("dfformer_s18", pretrained=True, **TINY)


def test_a_mirror_may_be_a_folder(small, mirror, monkeypatch):
    monkeypatch.setenv(published.MIRROR, str(mirror.folder))
    timm.create_model("dfformer_s18", pretrained=True, **TINY)
    assert cached().exists()


def test_the_checksum_is_recorded_and_compared(small, mirror):
    timm.create_model("dfformer_s18", pretrained=True, **TINY)
    record = cached("dfformer_s18.pth.sha256")
    digest, name = record.read_text().split()
    assert (len(digest), name) == (64, "dfformer_s18.pth")
    torch.save({n: t + 1 for n, t in small.state_dict().items()}, cached())
    with pytest.raises(FreproError, match=r"has SHA-256 \w+\.\.\., not the recorded") as error:
        timm.create_model("dfformer_s18", pretrained=True, **TINY)
    assert mirror.address in str(error.value)
    cached().unlink()  # as the message says
    timm.create_model("dfformer_s18", pretrained=True, **TINY)
    cached().unlink()
    torch.save({n: t + 1 for n, t in small.state_dict().items()}, mirror.folder / "dfformer_s18.pth")
    with pytest.raises(FreproError, match="not the recorded"):  # the address holds another file now
        timm.create_model("dfformer_s18", pretrained=True, **TINY)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_hostile_file_runs_nothing(small, mirror, tmp_path):
    content = {"model": small.state_dict(), "args": Hostile(str(tmp_path / "trap"))}
    torch.save(content, mirror.folder / "dfformer_s18.pth")
    with pytest.raises(FreproError, match=r"dfformer_s18.pth from .* is unusable \(the file is refused"):
        timm.create_model("dfformer_s18", pretrained=True, **TINY)
    overlay = {"file": str(mirror.folder / "dfformer_s18.pth")}
    with pytest.raises(FreproError, match=r"dfformer_s18.pth is refused"):
        timm.create_model("dfformer_s18", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
    assert not (tmp_path / "trap").exists()
    assert list(cached().parent.iterdir()) == []


def test_a_hub_s_folder_goes_through_timm(small, tmp_path):
    """A model that timm's own functions saved is loaded by them."""
    timm.models.save_for_hf(small, tmp_path / "hub", model_config={"model_args": {**TINY}})
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_safetensors_file_by_timm_s_overlay(small, tmp_path):
    save_file(small.state_dict(), tmp_path / "x.safetensors")
    overlay = {"file": str(tmp_path / "x.safetensors")}
    model = timm.create_model("dfformer_s18", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in model.state_dict().items())
