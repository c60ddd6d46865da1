"""Authors' checkpoints: every wrapper is understood, nothing in a file is run, and what does not fit is named."""

import argparse
import os

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import frepro
from frepro.errors import FreproError
from frepro.models.official import read

TINY = {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16)}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model("dfformer_s18", num_classes=7, **TINY).state_dict()


def doubled(state):
    return {name: 2 * tensor for name, tensor in state.items()}


def load(checkpoint, **arguments):
    return frepro.load_official("dfformer_s18", checkpoint, **{**TINY, **arguments})


def same(model, state) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": s},
        lambda s: {"module." + name: tensor for name, tensor in s.items()},
        lambda s: {
            "model": s,
            "args": argparse.Namespace(lr=1e-3, data="/x"),
            "epoch": 299,
            "optimizer": {"state": {}},
        },
        lambda s: {"state_dict": {"module." + n: t for n, t in s.items()}, "metric": np.float64(83.2)},
        lambda s: {"model": s, "model_ema": doubled(s)},
        lambda s: {"state_dict": s, "state_dict_ema": doubled(s)},
    ],
)
def test_wrappers(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "x.pth")
    model = load(tmp_path / "x.pth")
    assert same(model, state)
    assert not model.training
    assert model.num_classes == 7  # the checkpoint's


@pytest.mark.parametrize("keys", [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_moving_average(tmp_path, state, keys):
    torch.save({keys[0]: state, keys[1]: doubled(state)}, tmp_path / "x.pth")
    assert same(load(tmp_path / "x.pth", ema=True), doubled(state))
    with pytest.raises(FreproError, match="no moving average"):
        load(state, ema=True)


def test_only_a_moving_average(state):
    assert same(load({"model_ema": state}), state)


def test_safetensors_and_state_dicts(tmp_path, state):
    save_file(state, tmp_path / "x.safetensors")
    assert same(load(str(tmp_path / "x.safetensors")), state)
    assert same(load(state), state)


def test_other_size_after_loading(state):
    model = load(state, img_size=96)
    assert model.stages[0][0].token_mixer.complex_weights.shape == (24, 13, 4, 2)


def test_what_does_not_fit_is_named(state):
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["stages.0.0.norm1.weight"] = torch.zeros(3)
    with pytest.raises(FreproError) as error:
        load(state)
    for part in ("1 missing: norm.weight", "1 left over: extra.weight", "stages.0.0.norm1.weight (3 for 16)"):
        assert part in str(error.value)


def test_fixed_masks_may_be_missing():
    """The authors deleted SPANet's fixed masks from their detection checkpoints."""
    model = timm.create_model("spanet_small")
    state = {name: tensor for name, tensor in model.state_dict().items() if ".sps." not in name}
    assert len(state) < len(model.state_dict())
    assert same(frepro.load_official("spanet_small", state), model.state_dict())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, state):
    trap = tmp_path / "trap"
    torch.save({"model": state, "args": Hostile(str(trap))}, tmp_path / "x.pth")
    with pytest.raises(FreproError, match="is refused: it holds python objects that loading would run"):
        read(tmp_path / "x.pth")
    assert not trap.exists()


@pytest.mark.parametrize("keep", [0, 10, 500, 20_000])
def test_a_truncated_file(tmp_path, state, keep):
    torch.save({"model": state}, tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:keep])
    with pytest.raises(FreproError, match="damaged, or no checkpoint"):
        read(tmp_path / "x.pth")


def test_other_faults(tmp_path, state):
    with pytest.raises(FreproError, match="no checkpoint at"):
        load(tmp_path / "none.pth")
    with pytest.raises(FreproError, match="holds no weights: its keys are epoch"):
        load({"epoch": 3})
    with pytest.raises(FreproError, match="did you mean dfformer_s18"):
        frepro.load_official("dfformer_s81", state)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(FreproError, match="holds a list"):
        load(tmp_path / "list.pth")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(FreproError, match="not a safetensors file"):
        load(tmp_path / "x.safetensors")
