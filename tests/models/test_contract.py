"""What every registered model owes its users and timm, whatever its family: one test for each clause.

Every test takes its models from the registry (``tests.registry``). What costs little is asked of each name. The rest is
asked of each variant: of names that differ in size alone, one is built at a size for tests, with nothing in it zero or
one by initialisation.
"""

import contextlib
import copy
from functools import cache

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from frepro.analysis import cost
from frepro.models.metaformer import Pyramid
from frepro.models.vim import VisionMamba, split_middle
from frepro.ops import backends, pointwise
from tests.dtypes import Transforms
from tests.golden import official_sizes
from tests.registry import NAMES, create, kinds, small, variants

VARIANTS = list(variants())
KINDS = kinds()  # for what takes seconds


def make(name: str, **kwargs) -> nn.Module:
    """The same, for evaluation, every trainable number moved; the same numbers at each call."""
    torch.manual_seed(0)
    model = create(name, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def images(height: int = 64, width: int = 64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def numbers(model: nn.Module) -> set[torch.dtype]:
    """Return the dtypes of a model's tensors, but for counters such as those of batch norms."""
    return {tensor.dtype for tensor in model.state_dict().values() if tensor.dtype != torch.int64}


def unfrozen(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_near(rough: Tensor, exact: Tensor) -> None:
    """Finite, and within a tenth of the spread of the exact logits."""
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * exact.std().item())


# Each name


def test_no_official_model_is_gone():
    assert official_sizes().keys() <= set(NAMES)


@cache
def blueprint(name: str) -> nn.Module:
    """The model as registered, without memory."""
    return timm.create_model(name, device="meta")


@pytest.mark.parametrize("name", NAMES)
def test_name(name):
    """Its size is the official one; ``feature_info`` and ``default_cfg`` say what it is."""
    model = blueprint(name)
    tensors = model.state_dict()
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}

    params, official = sum(p.numel() for p in model.parameters()), official_sizes().get(name, {})
    assert params == official.get("params", params)
    assert round(params / 1e6, 2) == official.get("params_m", round(params / 1e6, 2))

    modules = dict(model.named_modules())
    assert all(info["module"] in modules for info in model.feature_info)
    cfg = model.default_cfg
    assert tensors[f"{cfg['classifier']}.weight"].shape[0] == cfg["num_classes"] == model.num_classes == 1000
    assert tensors[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0]
    assert cfg["paper_ids"].startswith("arXiv:")
    assert cfg["origin_url"].startswith("https://github.com/")

    if not isinstance(model, VisionMamba):  # whose scan is slow on 785 tokens; see its variants below
        x = torch.empty(1, *cfg["input_size"], device="meta")
        last, maps = model.forward_intermediates(x)
        assert last.shape == (1, model.num_features, *cfg["pool_size"])
        for info, each in zip(model.feature_info, maps, strict=True):
            side = cfg["input_size"][1] // info["reduction"]
            assert each.shape == (1, info["num_chs"], side, side)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups(name):
    """No weight decay and layers by depth are for tensors that exist, and each tensor has its layer."""
    model = blueprint(name)
    names = {key for key, _ in model.named_parameters()}
    assert set(model.no_weight_decay()) <= names
    for coarse in (False, True):
        layers = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(key for layer in layers.values() for key in layer) == sorted(names)
        assert f"{model.default_cfg['first_conv']}.weight" in layers[0]
        assert f"{model.default_cfg['classifier']}.weight" in layers[max(layers)]


# Each variant


@pytest.mark.parametrize("name", VARIANTS)
def test_any_input_size(name):
    """Square or not, smaller or larger than 64; refitting once and for good is what each forward pass does."""
    sizes = [(32, 32), (37, 61), (96, 64), (97, 131)]
    if isinstance(create(name), Pyramid):  # which need no whole patch
        sizes.append((7, 3))
    for size in sizes:
        model, x = make(name), images(*size)
        with torch.no_grad():
            logits = model(x)
            assert logits.shape == (2, 5)
            assert logits.isfinite().all()
            model.set_input_size(size)
            torch.testing.assert_close(model(x), logits)
            native = create(name, img_size=size).eval()
            native.load_state_dict(model.state_dict())
            torch.testing.assert_close(native(x), logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_with_and_without_checkpointing(name):
    """Every trainable tensor gets a gradient that is finite and not zero, the same with checkpointing."""
    results, gradients, runs = [], [], []
    for checkpointing in (False, True):
        model = make(name).train()
        model.set_grad_checkpointing(checkpointing)
        maps = model.forward_intermediates(images(), intermediates_only=True)
        for module in model.modules():
            if type(module).__name__.endswith("Block"):
                module.register_forward_pre_hook(lambda *_, key=checkpointing: runs.append(key))
        logits = model(images())
        logits.square().sum().backward()
        gradients.append({key: parameter.grad for key, parameter in unfrozen(model).items()})
        results.append([logits, *maps])
    assert runs.count(True) == 2 * runs.count(False) > 0  # each block is run again for its gradient
    frozen = {key for key, _ in model.named_parameters()} - gradients[0].keys()
    assert all(".sps." in key for key in frozen)  # SPANet's fixed masks
    for key, gradient in gradients[0].items():
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        assert gradient.any(), key
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_features(name):
    """The maps are (B, C, h, w), a row for each ``reduction`` pixels, however one asks for them."""
    model, x, taller = make(name), images(64, 96), images(96, 96)
    plain = isinstance(model, VisionMamba)
    with torch.no_grad():
        hooked = []
        for info in model.feature_info:
            model.get_submodule(info["module"]).register_forward_hook(
                lambda module, args, output: hooked.append(output)
            )
        last, maps = model.forward_intermediates(x)
        for each, output in zip(maps, hooked, strict=True):  # the same numbers, in a layout of the module's own
            output = split_middle(output)[0] if plain else output
            torch.testing.assert_close(output.flatten().sort().values, each.flatten().sort().values)
        torch.testing.assert_close(last, model.forward_features(x))
        for info, low, high in zip(
            model.feature_info, maps, model.forward_intermediates(taller, intermediates_only=True), strict=True
        ):
            assert low.shape[:2] == (2, info["num_chs"])
            assert (high.shape[2] - low.shape[2], high.shape[3] - low.shape[3]) == (32 // info["reduction"], 0)

        normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        channels_last = model.forward_intermediates(
            x, indices=1, norm=True, intermediates_only=True, output_fmt="NLC" if plain else "NHWC"
        )[0]
        if plain:  # the patches, without the class token
            torch.testing.assert_close(channels_last, split_middle(last)[0])
            torch.testing.assert_close(normed.flatten(2).mT, channels_last)
        else:
            torch.testing.assert_close(normed, last)
            torch.testing.assert_close(normed.permute(0, 2, 3, 1), channels_last)
        with pytest.raises(ValueError, match="output_fmt must be"):
            model.forward_intermediates(x, output_fmt="CHWN")

        early = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early, [maps[0], maps[2]])
        for indices, options in (((0, 1, 2, 3), {}), ((0, 2), {"out_indices": (0, 2)})):
            backbone = create(name, features_only=True, **options).eval()
            fewer = backbone.model.load_state_dict(model.state_dict(), strict=False)
            assert fewer.missing_keys == []
            torch.testing.assert_close(backbone(x), [maps[i] for i in indices])
            assert backbone.feature_info.channels() == [maps[i].shape[1] for i in indices]
            assert backbone.feature_info.reduction() == [model.feature_info[i]["reduction"] for i in indices]
        backbone.model.set_input_size((64, 96))
        torch.testing.assert_close(backbone(x)[1], maps[2])


@pytest.mark.parametrize("name", VARIANTS)
def test_classifier(name):
    """Replaced and taken away, and the rest of the model is the same function."""
    model, x = make(name, drop_rate=0.1), images()
    width = model.num_features
    assert model.head_hidden_size == width == model.feature_info[-1]["num_chs"]
    with torch.no_grad():
        features = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(features), model(x))
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, width)
        assert model.get_classifier() is model.get_submodule(model.default_cfg["classifier"].split(".")[0])

        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(x).shape == (2, 7)
        assert not model.get_classifier().training
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
        for without in (model, create(name, num_classes=0).eval()):
            without.reset_classifier(0)
            assert isinstance(without.get_classifier(), nn.Identity)
            assert without(x).shape == (2, width)
        torch.testing.assert_close(model(x), pooled)

        model.reset_classifier(0, "")  # timm: unpooled, in the layout of forward_features
        assert model(x).shape == features.shape
        model.reset_classifier(3)
        unpooled = (2, features.shape[1], 3) if features.ndim == 3 else (2, 3, *features.shape[2:])
        assert model(x).shape == unpooled
    with pytest.raises(ValueError, match="global_pool must be"):
        create(name, global_pool="max")


@pytest.mark.parametrize("name", VARIANTS)
def test_dropout_and_stochastic_depth_act_in_training_alone(name):
    x, plain = images(batch=4), make(name)
    for option in ("drop_rate", "drop_path_rate"):
        model = make(name, **{option: 0.5})
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x))
            model.train()
            assert not torch.allclose(model(x), model(x))
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == 0.5


@pytest.mark.parametrize("name", VARIANTS)
def test_input_channels(name):
    """One channel for three, with the first convolution's weights summed, as timm does."""
    grey = images()[:, :1]
    model, mono = make(name), make(name, in_chans=1)
    first = f"{model.default_cfg['first_conv']}.weight"
    state = model.state_dict()
    state[first] = state[first].sum(dim=1, keepdim=True)
    mono.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(mono(grey), model(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_device_and_dtype(name):
    """Made where and how it is asked, every tensor; a state dict is all that a model without memory lacks."""
    model, x = make(name), images()
    half = create(name, dtype=torch.bfloat16).eval()
    assert numbers(half) == {torch.bfloat16}
    half.load_state_dict(model.state_dict())
    empty = create(name, device="meta").eval()
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        exact, low = model(x), half(x.bfloat16())
        torch.testing.assert_close(empty(x), exact)
    assert low.dtype == torch.bfloat16
    assert_near(low, exact)
    half.reset_classifier(3)
    assert numbers(half) == {torch.bfloat16}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    """Logits and gradients are finite, near those of float32, and transforms stay in float32."""
    model, x = make(name), images()
    with Transforms() as in_float32, backends.forced("torch"), torch.no_grad():  # kernels take transforms out of sight
        exact = model(x)
    with torch.autocast("cpu", dtype):
        rough = model(x)
    rough.float().square().mean().backward()
    assert rough.dtype == dtype
    assert_near(rough.detach(), exact)
    assert all(parameter.grad.isfinite().all() for parameter in unfrozen(model).values())
    with Transforms() as transforms, backends.forced("torch"), torch.autocast("cpu", dtype):
        assert_near(model(x).detach(), exact)
    assert transforms.dtypes <= {torch.float32, torch.complex64}
    assert transforms.dtypes == in_float32.dtypes
    assert bool(transforms.dtypes) == (cost.count(name)["spectral"] > 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_memory_layout_changes_nothing(name):
    model, x = make(name), images(64, 96)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(x.mT.contiguous().mT), logits, rtol=0, atol=1e-5)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*VARIANTS, "vimf_v1_tiny, each image for itself"])
def test_an_image_does_not_see_its_companions(name):
    """Except in Vim-F's code as first released, whose published accuracies hold that."""
    name, _, per_image = name.partition(",")
    model, x = make(name, **({"shift_batch": False} if per_image else {})), images(64, 96, batch=3)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    if name.startswith("vimf_v1") and not per_image:
        assert (together - alone).abs().max() > 1e-3
    else:
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded_and_copied(name, tmp_path):
    model, x = make(name), images()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = create(name).eval()
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(loaded(x), logits)
        assert torch.equal(copy.deepcopy(model)(x), logits)  # as a moving average is made


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("prefers_onednn", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
def test_traced_is_the_same(name, prefers_onednn, monkeypatch):
    """By torch's own operators, which fvcore and exporters know; other inputs are right or refused, never wrong."""
    monkeypatch.setattr(pointwise, "PREFERS_ONEDNN", prefers_onednn)
    model, x = make(name, img_size=(64, 96)), images(64, 96)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        assert {node.kind().partition("::")[0] for node in traced.inlined_graph.nodes()} <= {"aten", "prim"}
        for other in (x, 2 * x.flip(3) - 0.1):
            torch.testing.assert_close(traced(other), model(other), rtol=1e-4, atol=1e-5)
        for size in ((64, 64), (96, 64), (96, 96), (32, 192), (64, 96, 3)):
            with contextlib.suppress(RuntimeError):
                torch.testing.assert_close(traced(images(*size)), model(images(*size)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_hook_sees_its_layers_output(name):
    """Once, and it stays as it was; the logits too, and hooks change no gradient."""
    model, x, seen = make(name), images(), []
    with torch.no_grad():
        expected = model(x)
    for key, module in model.named_modules():
        if not isinstance(module, nn.Identity):  # which may be one for many places, and gives what it takes
            module.register_forward_hook(lambda module, given, y, key=key: seen.append((key, y, y.detach().clone())))
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        seen.clear()
        with context():
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        assert [key for key, y, copied in seen if not torch.equal(y, copied)] == []
        assert len({key for key, *_ in seen}) == len(seen)
        called = {key for key, *_ in seen}
        layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.GELU, nn.ReLU)
        assert [key for key, module in model.named_modules() if isinstance(module, layers) and key not in called] == []


class Adapter(nn.Module):
    """A layer, and something learnt beside it that takes the layer's input."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.beside = nn.Parameter(0.1 * torch.randn(base.out_features, base.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.beside.t()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.ao", "ignore:torch.quantize_per_tensor:UserWarning")
def test_what_replaces_a_linear_layer_takes_effect(name):
    """As adapters and quantisers do."""
    model = make(name)
    for module in list(model.modules()):
        for key, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, key, Adapter(child))
    model(images()).square().sum().backward()
    beside = {key: parameter.grad for key, parameter in model.named_parameters() if key.endswith(".beside")}
    assert beside
    assert [key for key, gradient in beside.items() if gradient is None or not gradient.count_nonzero()] == []

    quantised = torch.ao.quantization.quantize_dynamic(make(name), {nn.Linear}, dtype=torch.qint8)
    assert [key for key, module in quantised.named_modules() if type(module) is nn.Linear] == []
    with torch.no_grad():
        assert quantised(images()).isfinite().all()


# Each kind


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_each_image_and_of_gradients(name):
    """By transforms of functions, and twice: those of the plain form."""
    model, x = brief(name), images(32, 32)
    if "v1" in name:
        pytest.skip("an image sees its companions")
    weights = unfrozen(model)

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (image[None],)).square().sum()

    detached = {key: weight.detach() for key, weight in weights.items()}
    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(detached, x)
    for i, image in enumerate(x):
        alone = torch.autograd.grad(loss(weights, image), list(weights.values()))
        for found, expected in zip(together.values(), alone, strict=True):
            torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-4)

    second = {}
    for backend in (None, "torch"):
        # torch has no derivative of its fused attention's gradient.
        with backends.forced(backend) if backend else contextlib.nullcontext(), sdpa_kernel(SDPBackend.MATH):
            image = x[:1].clone().requires_grad_()
            (first,) = torch.autograd.grad(model(image).square().sum(), image, create_graph=True)
            second[backend] = torch.autograd.grad(first.square().sum(), list(weights.values()), allow_unused=True)
    for found, expected in zip(second[None], second["torch"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def brief(name: str) -> nn.Module:
    return make(name, **({"depth": 1} if "depth" in small(name) else {}), img_size=32)


@pytest.mark.parametrize("name", KINDS)
def test_compiled_is_the_same(name):
    """In one graph, forwards and backwards."""
    model, x = brief(name).train(), images(32, 32)
    expected = model(x)
    expected.square().sum().backward()
    gradients = {key: parameter.grad for key, parameter in unfrozen(model).items()}
    model.zero_grad()
    torch.compiler.reset()
    # In the scan without our kernel, aot_eager takes wrong strides for softplus's gradient (torch 2.15).
    backend = "eager" if isinstance(model, VisionMamba) else "aot_eager"
    logits = torch.compile(model, backend=backend, fullgraph=True)(x)
    logits.square().sum().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    compiled = {key: parameter.grad for key, parameter in unfrozen(model).items()}
    torch.testing.assert_close(compiled, gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_exported_is_the_same(name):
    """For any number of images."""
    model, x = brief(name), images(32, 32, batch=5)
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: batch},)).module()
        torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-5)
