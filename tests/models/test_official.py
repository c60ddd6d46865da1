"""Authors' checkpoints: every wrapper is understood, nothing in a file is run, and what does not fit is named."""

import argparse
import base64
import collections
import datetime
import decimal
import os
import pathlib
import types
import zipfile
import zlib

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
    with pytest.raises(FreproError, match=rf"is refused: it holds Python objects \({os.mkdir.__module__}.mkdir\)"):
        read(tmp_path / "x.pth")
    assert not trap.exists()


class Called:
    """An object whose pickle calls something with arguments."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, open, os.system, pathlib.Path.unlink, type])
def test_no_function_is_called(tmp_path, state, function):
    trap = tmp_path / "trap"
    trap.write_text("")
    argument = trap if function is pathlib.Path.unlink else f"open({str(tmp_path / 'made')!r}, 'w')"
    torch.save({"model": state, "args": argparse.Namespace(x=[Called(function, argument)])}, tmp_path / "x.pth")
    with pytest.raises(FreproError, match="is refused: it holds Python objects"):
        read(tmp_path / "x.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"trap", "x.pth"}


# torch.save({"model": {"weight": torch.arange(3.0)}, "metric": numpy.float64(83.25),
#             "curve": numpy.arange(3, dtype="float32"), "names": numpy.array(["a", "b"]),
#             "any": numpy.array([None, "x"], dtype=object)}, ...) with numpy 1.26.4, by zlib and in base 85
NUMPY_1 = (
    "c-o~^OOMl56ux;(63o1zonbm19(@@KnK-Y>@X9pMw8hfQ)PRVPs>pUOV++U5v2O-~IucS9=<M1qkl64mkl3)Io9-(1>{xZxWfv^kd+j7+JIs"
    "s<H?nVR-|u|iIrlsEx)_TiluDtYF^Q&;Y^$2Si5D9(k<+c)Mzu1IZU)Bv=oTQpHbMbStAP!OY(cb^pqF>BzM&C_sl=jD()Bjc4Tr1SSZV7<q"
    "fW5tSay9g%R!vyYe|Z5=t_A5!-xmrs)i+#tKLlx6150jlYwL{MrXCvhLjj1aNv6piLowlVx$WPw^h|L46G8}G97NsZeSZXF6%1cVDzK}V+6("
    "}m~dQyO-yWEg-O+HH(Q;wYS}p5Y#T(EZCmbejw&0n&B2uSoNJIyi^`a;MJe`H2@Y-l{16UH@BuHzTxsXw!`0Q*EC15ro<u}oMp5f3t&8e#*k"
    "pe=n5`Y?m-zQzuC2fkSBxPO-4tN%0emFE`~&z{f(5s#YTMq#aC8@uw45r<l-O;S;<27ov*A63<09(932oNZr@$u~jsK|xpFM=nCHR6DBdl_~"
    "*2^gmCs|IXB>0l%qzz|tTG^(t#s(I7alcH@D{zLzO-ryyAfvddO}U935VT{OD<P{<%A5pwMj7owp+|XLfFh$@lAzS56yx-lBCza|F=NV1JU!"
    "qn<2fh6c>)&{*9NlLfs1{XGGkeh;Hw@>rN^>Xf=i6$vIJlEH|s~J2Gc7O_(s|O0lwu|-352yJ51n;(oV07$<&R<|46TCEOxB#+A=d}cF;2ET"
    "bA9FNqrOB4mD%7ayZmE-Vj*yXMex?iE*-H_vmwIX(xKGSL(8%Z<tMNl4>RQR)T#-G0y~)@4#QIQqesHOri2XfYKq@V(nF}oO>7E{xEbx49ql"
    "iFT6g&Iw7&AhH-Q;@K##PR4ZrSLx306^D$G=dj3adlwOSPsba#n6@v|ar~2nO#`^Nf#`XQ{zksqk25^&iu&q-E+>_b+uC6z#mGu7<ArzLfC1"
    "H8FAPA*GzL?Ktvc*h3pUo7Pb47M*sZ`7tvaU;r@a8E`b?~mr2opQd>2Hw9A?4xkNEq#JfSCX?7el+XR5*y=#B+flzxsm=bxt^r--uIzIMZ=7"
    "+yG&?-$CO6_@g)qc{hyp`(Pq~ogYDA$A!WE?O6zbfAfLgZk%;7kvQGAS?tUJnGDT;M!dO{@Mem0A0>Mlyf@fL!owup_1@b50Cw358v"
)


def test_a_checkpoint_written_with_numpy_1(tmp_path):
    file = tmp_path / "x.pth"
    file.write_bytes(zlib.decompress(base64.b85decode(NUMPY_1)))
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert b"cnumpy.core.multiarray\nscalar\n" in pickled
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in pickled
    content = read(file)
    assert torch.equal(content["model"]["weight"], torch.arange(3.0))
    assert content["metric"] == 83.25
    assert [content[name].tolist() for name in ("curve", "names", "any")] == [[0, 1, 2], ["a", "b"], [None, "x"]]


PLAIN = [
    pathlib.PurePosixPath("/data/x"),
    pathlib.PureWindowsPath("C:/data"),
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.array(["2020-01-01"], dtype="datetime64[D]"),
    np.float16(0.5),
    np.bool_(True),
    np.dtype("complex64"),
    range(3, 9, 2),
    slice(1, None),
    {1, 2},
    frozenset({3}),
    b"bytes",
    bytearray(b"more"),
    1 + 2j,
    collections.OrderedDict(a=1),
    collections.Counter("aab"),
    types.SimpleNamespace(lr=0.1),
    decimal.Decimal("1.5"),
    datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    datetime.timedelta(hours=1),
    torch.float16,
    torch.Size((2, 3)),
    torch.device("cpu"),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_beside_the_weights_are_read(tmp_path, state, value):
    torch.save({"model": state, "args": argparse.Namespace(value=value)}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")["args"].value
    assert type(found) is type(value)
    assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


def test_a_path_is_read_as_a_pure_one(tmp_path, state):
    torch.save({"model": state, "args": argparse.Namespace(data=pathlib.Path("/data"))}, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth")["args"].data == pathlib.PurePosixPath("/data")


class Custom:
    pass


def test_what_is_refused_is_refused_in_true_words(tmp_path, state):
    for value, said in (
        (Custom(), r"\(tests\.models\.test_official\.Custom\) that are not plain data"),
        (collections.deque([1]), r"\(collections\.deque\) that are not plain data"),
        (collections.defaultdict(list, a=[1]), r"\(collections\.defaultdict\) that are not plain data"),
    ):
        torch.save({"model": state, "args": value}, tmp_path / "x.pth")
        with pytest.raises(FreproError, match=f"is refused: it holds Python objects {said}"):
            read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "backbone.module."]
)
def test_prefixes_in_any_order(state, prefix):
    assert same(load({prefix + name: tensor for name, tensor in state.items()}), state)


NO_WEIGHTS = {
    "not finite": lambda t: torch.full_like(t, float("nan")),
    "not finite, 1 in all": lambda t: t.index_fill(0, torch.tensor([0]), float("inf")),
    "of type bool instead of float32": lambda t: t > 0,
    "of type int64 instead of float32": lambda t: t.long(),
    "of type complex64 instead of float32": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize(("said", "spoil"), NO_WEIGHTS.items(), ids=NO_WEIGHTS)
def test_what_is_no_weight_is_named(state, said, spoil):
    name = "stages.0.0.norm1.weight"
    with pytest.raises(FreproError, match=f"has weights that are {said}.* first {name}"):
        load({**state, name: spoil(state[name])})


def test_other_precisions_are_weights(state):
    assert load({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()})
    with pytest.raises(FreproError, match="not finite"):  # in the precision that the model computes in
        load({name: tensor.double() * 1e300 for name, tensor in state.items()})


@pytest.mark.parametrize("keep", [0, 10, 500, 20_000])
def test_a_truncated_file(tmp_path, state, keep):
    torch.save({"model": state}, tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:keep])
    with pytest.raises(FreproError, match="damaged or not a checkpoint"):
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
    with pytest.raises(FreproError, match="not a readable safetensors file"):
        load(tmp_path / "x.safetensors")
