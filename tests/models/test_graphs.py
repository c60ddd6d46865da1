"""Graphs of each kind of model, for any number of images of any size: torch.export, ONNX, torch.compile, torch.fx."""

import pytest
import timm
import torch
from packaging.version import Version
from timm.models._features_fx import create_feature_extractor
from torch import nn

from frepro.errors import FreproError
from tests.models.test_contract import KINDS, VARIANTS, create, images, make

# Height, width and number of images; models are made for the first.
NATIVE, OTHER, WIDE = (64, 64, 2), (96, 64, 3), (128, 160, 2)
OPEN = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)

# torch traces Python code itself here, and coverage would make that several times slower.
pytestmark = pytest.mark.no_cover

needs_recent_timm = pytest.mark.skipif(
    Version(timm.__version__) < Version("1.0.31"), reason="its classes of feature extractors differ in layout"
)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield
    torch.compiler.reset()


def assert_same(run, model: nn.Module, sizes=(NATIVE, OTHER, WIDE)) -> None:
    for size in sizes:
        x = images(*size)
        torch.testing.assert_close(run(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_exported(name):
    """By torch's own operators; the size that the model is made for is one of many."""
    model = make(name)
    if Version(torch.__version__) < Version("2.15") and getattr(model, "pos_embed", None) is not None:
        pytest.skip("torch.export of older versions ties position embeddings to one size")
    program = torch.export.export(model, (images(*OTHER),), dynamic_shapes=OPEN)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if target.startswith(("frepro", "mkldnn"))]
    assert_same(program.module(), model)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(name, tmp_path):
    """Without transforms, which ONNX has for few sizes and its runtimes for fewer."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = make(name)
    program = torch.onnx.export(model, (images(*OTHER),), dynamo=True, dynamic_shapes=OPEN, verbose=False)
    assert "DFT" not in {node.op_type for node in program.model.graph}
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    key = session.get_inputs()[0].name
    assert_same(lambda x: torch.from_numpy(session.run(None, {key: x.numpy()})[0]), model)


@pytest.mark.parametrize("name", KINDS)
def test_compiled(name):
    """As one graph for one size after the other, and as one for all."""
    model = make(name)
    for dynamic, sizes in ((None, (NATIVE, OTHER)), (True, (OTHER, WIDE))):
        torch.compiler.reset()
        assert_same(torch.compile(model, backend="eager", fullgraph=True, dynamic=dynamic), model, sizes)


@pytest.mark.parametrize("name", VARIANTS)
def test_symbolic_traces(name):
    """For any size; and the maps between are what they are, whatever comes after them."""
    model = make(name)
    assert_same(torch.fx.symbolic_trace(model), model)
    modules = [info["module"] for info in model.feature_info]
    seen = []
    for module in modules:
        model.get_submodule(module).register_forward_hook(lambda module, given, y: seen.append(y.clone()))
    model(images(*OTHER))
    found = create_feature_extractor(make(name), dict(zip(modules, modules, strict=True)))(images(*OTHER))
    torch.testing.assert_close(list(found.values()), seen, rtol=1e-4, atol=1e-5)


@needs_recent_timm
@pytest.mark.parametrize("name", VARIANTS)
def test_classes_of_feature_extractors(name):
    """Lists and dictionaries hold (B, C, h, w); hooks and torch.fx see what modules give, in the layout they name."""
    x, maps = images(), {}
    for feature_cls in ("getter", "list", "dict", "hook", "fx"):
        torch.manual_seed(0)
        backbone = create(name, features_only=True, feature_cls=feature_cls).eval()
        found = backbone(x)
        if feature_cls == "dict":
            assert list(found) == [str(index) for index in backbone.feature_info.out_indices]
            found = list(found.values())
        maps[feature_cls] = found
        layout = str(getattr(backbone.output_fmt, "value", backbone.output_fmt))
        for each, channels in zip(found, backbone.feature_info.channels(), strict=True):
            assert each.shape[layout.index("C")] == channels
    torch.testing.assert_close(maps["list"], maps["getter"])
    torch.testing.assert_close(maps["dict"], maps["getter"])
    torch.testing.assert_close(maps["fx"], maps["hook"])


def test_torchscript_says_what_to_use_instead():
    with pytest.raises(FreproError, match=r"does not compile GFNet: use torch\.export or torch\.jit\.trace"):
        torch.jit.script(timm.create_model("gfnet_ti", device="meta"))
