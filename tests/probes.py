"""Small probes of every behaviour that decides about a measured number, and the committed table of their values.

    python -m tests.probes            what differs from ``tests/data/probes.json``
    python -m tests.probes --record   writes it anew, after a REVISION was raised

Inputs and weights are integer arithmetic on names (``tests.golden``), seeds are fixed, and values are few and rounded,
so that they are the same within ``TOLERANCE`` on every processor and with every backend.
"""

import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from frepro import ops, paths, recipes, tasks
from frepro.data import lists, locate
from frepro.data.dense import Detection, Segmentation, dense_samples
from frepro.data.export import export
from frepro.data.listing import Split
from frepro.data.loading import IdxImages, samples, seed_all
from frepro.store import provenance, revisions
from frepro.training import loop
from frepro.training.runs import Run
from tests import idx_files, registry
from tests.golden import uniform, weight
from tests.small import whole

FILE = Path(__file__).parent / "data" / "probes.json"
TOLERANCE = 2e-3
PROBES: dict[str, Callable[[], list[float]]] = {}


def probe(behaviour: str) -> Callable[[Callable], Callable]:
    """Register a function that computes the values of a behaviour."""

    def register(function: Callable[[], list[float]]) -> Callable[[], list[float]]:
        PROBES[behaviour] = function
        return function

    return register


def declared() -> dict[str, tuple[str, int]]:
    """Return behaviour -> the module that declares it, and its revision, of the whole package."""
    modules = [
        ".".join(path.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(paths.PACKAGE.rglob("*.py"))
    ]
    return {name: (module, number) for module in modules for name, number in revisions.declared([module]).items()}


def probe_of(behaviour: str) -> Callable[[], list[float]]:
    """Return the probe of a behaviour; that of a family without one of its own is each of its variants, small."""
    if behaviour in PROBES:
        return PROBES[behaviour]
    module, _ = declared()[behaviour]
    models = [name for name in registry.variants() if provenance.own_models()[name] == module]
    if not models:
        raise KeyError(f"{behaviour!r} of {module} has no probe: add a function with @probe({behaviour!r})")
    return lambda: model_values(*((name, registry.small(name)) for name in models))


def tensor(name: str, *shape: int, grad: bool = True) -> Tensor:
    return torch.from_numpy(uniform(name, shape)).requires_grad_(grad)


def of(*tensors: Tensor) -> list[float]:
    """A weighted sum and the size of each tensor: both change with values and with their order."""
    values = []
    for each in tensors:
        flat = each.detach().double().flatten()
        wave = torch.cos(torch.arange(len(flat), dtype=torch.float64) * 0.7)
        values += [float(flat @ wave) / math.sqrt(len(flat)), float(flat.square().mean().sqrt())]
    return values


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[float]:
    """The probe of an operation: its output, and its gradients for a fixed one behind it."""
    output = function(*inputs)
    output.backward(torch.from_numpy(uniform("behind", tuple(output.shape))))
    return of(output, *(each.grad for each in inputs))


# Operations: (B, H, W, C) maps, (B, C, L) sequences.


@probe("spectral filters")
def spectral_filters() -> list[float]:
    x, mask = tensor("x", 2, 6, 7, 8), ops.spectral_pooling_mask(6, 7, 1, 0.7)
    return [
        *with_gradients(ops.global_filter, tensor("x", 2, 6, 7, 8), tensor("f", 6, 4, 8, 2)),
        *with_gradients(ops.dynamic_filter, tensor("x", 2, 6, 7, 8), tensor("c", 2, 3, 8), tensor("b", 6, 4, 3, 2)),
        *with_gradients(ops.spectral_rescale, tensor("x", 2, 6, 7, 8), tensor("g", 6, 4, 8)),
        *with_gradients(lambda maps: ops.spectral_pool(maps, mask), tensor("n", 2, 6, 7, 8)),
        *of(ops.amplitude_spectrum(x), ops.resize_filter(tensor("f", 6, 4, 8, 2), 9, 5), mask),
    ]


@probe("selective scan")
def selective_scan() -> list[float]:
    u, delta, z = (tensor(name, 2, 6, 20) for name in ("u", "delta", "z"))
    a = (-torch.exp(tensor("A", 6, 4, grad=False))).requires_grad_()
    b, c, d, bias = tensor("B", 2, 4, 20), tensor("C", 2, 4, 20), tensor("D", 6), tensor("bias", 6)
    values = []
    for reverse in (False, True):
        inputs = [each.detach().clone().requires_grad_() for each in (u, delta, a, b, c, d, z, bias)]

        def scan(*given: Tensor, reverse: bool = reverse) -> Tensor:
            u, delta, a, b, c, d, z, bias = given
            return ops.selective_scan(u, delta, a, b, c, d, z, bias, delta_softplus=True, reverse=reverse)

        values += with_gradients(scan, *inputs)
    return values


@probe("causal convolution")
def causal_convolution() -> list[float]:
    return with_gradients(ops.causal_conv, tensor("x", 2, 8, 12), tensor("w", 8, 4), tensor("b", 8))


@probe("depthwise convolution")
def depthwise_convolution() -> list[float]:
    return with_gradients(ops.depthwise_conv, tensor("x", 2, 8, 9, 7), tensor("w", 8, 1, 3, 5), tensor("b", 8))


@probe("pointwise operations")
def pointwise() -> list[float]:
    return [
        *with_gradients(ops.linear, tensor("x", 3, 5, 16), tensor("w", 24, 16), tensor("b", 24)),
        *with_gradients(ops.gelu, tensor("x", 3, 40)),
        *with_gradients(ops.star_relu, tensor("x", 3, 40), tensor("s", 1), tensor("b", 1)),
    ]


# Models: small, with weights by name; the values of fresh weights too.


def model_values(*models: tuple[str, dict]) -> list[float]:
    values = []
    for name, arguments in models:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=6, img_size=32, drop_path_rate=0.2, **arguments)
        values.append(sum(p.detach().double().abs().sum().item() for p in model.parameters()) / 1000)
        filled = {key: weight(key, tuple(each.shape)) for key, each in model.state_dict().items() if each.ndim}
        model.load_state_dict({**model.state_dict(), **{k: v for k, v in filled.items() if ".sps." not in k}})
        images = torch.from_numpy(uniform("probe", (2, 3, 32, 32)))
        values += of(model.eval()(images))
        torch.manual_seed(0)
        logits = model.train()(images)  # stochastic depth
        logits.square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        values += [*of(logits), float(torch.stack([each.double().norm() for each in gradients]).norm())]
    return values


SMALL = {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 24)}
TOKENS = {"depth": 2, "embed_dim": 24, "stride": 8}
STEM = {"depth": 2, "stride": 8}


@probe("dfformer")
def dfformer() -> list[float]:
    return model_values(*((name, SMALL) for name in ("dfformer_s18", "gfformer_s18", "dfformer_s18_afno")))


@probe("metaformer")
def metaformer() -> list[float]:
    return model_values(("dfformer_s18", {**SMALL, "mixers": ("conv",) * 4}))


@probe("gfnet")
def gfnet() -> list[float]:
    return model_values(("gfnet_h_s", SMALL))


@probe("spanet")
def spanet() -> list[float]:
    return model_values(("spanet_small", SMALL), ("spanet_small_k3_hp", SMALL))


@probe("spanetv2")
def spanetv2() -> list[float]:
    hybrid = {**SMALL, "dims": (32, 32, 32, 32)}
    return model_values(("spanetv2_s18_pure", SMALL), ("spanetv2_s18_hybrid", hybrid))


@probe("vim")
def vim() -> list[float]:
    return model_values(("vim_tiny", TOKENS))


@probe("vimf")
def vimf() -> list[float]:
    return model_values(("vimf_tiny", TOKENS), ("vimf_v1_tiny", STEM), ("vimf_tiny_h", STEM))


# Data: a few samples of each reader, augmented and not.


def sample_values(found, count: int = 3) -> list[float]:
    values = []
    for index in range(count):
        image, target = found[1, index]
        tensors = target.values() if isinstance(target, dict) else [torch.as_tensor(target)]
        values += of(image, *(each.float() for each in tensors if each.numel()))
    return values


@probe("composed pictures")
def composed_pictures() -> list[float]:
    recipe, values = recipes.load("dfformer", "smoke"), []
    for name in ("textured", "cues"):
        found = samples(locate(name), "test", recipe, (0.0,) * 3, (1.0,) * 3, seed=0)
        values += sample_values(found)
    return values


@probe("scenes")
def scenes() -> list[float]:
    recipe = dataclasses.replace(recipes.load("spanet-mask_rcnn", "smoke"), img_size=64)
    return sample_values(dense_samples(locate("scenes", "detection"), "test", recipe, Detection(False), 0))


@probe("image loading")
def image_loading() -> list[float]:
    recipe = dataclasses.replace(recipes.load("spanet", "paper"), img_size=32, samples=None)
    with tempfile.TemporaryDirectory() as folder:
        export("imagenet", Path(folder) / "pictures", (30, 30))
        source = locate(str(Path(folder) / "pictures"))
        return [
            value
            for split in ("train", "test")
            for value in sample_values(samples(source, split, recipe, (0.0,) * 3, (1.0,) * 3, seed=0), 4)
        ]


def exported(layout: str, task: str, transform: Callable, name: str) -> list[float]:
    recipe = dataclasses.replace(recipes.load(name, "smoke"), img_size=64, samples=None)
    with tempfile.TemporaryDirectory() as folder:
        export(layout, Path(folder) / "pictures", (3, 3), size=64)
        source = locate(str(Path(folder) / "pictures"), task)
        return sample_values(dense_samples(source, "train", recipe, transform, 0))


@probe("image folders")
def image_folders() -> list[float]:
    """The numbers that classes get, of names that sort in several ways, and those of the images."""
    names = ["a", "A", "1", "01", "10", "2", "é", "n02", "n01"]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            for place in (f"{name}/{number}.png", f"{name}/deeper/x.PNG"):
                path = Path(folder) / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"no picture is opened")
        split = Split.read(Path(folder))
        order = [float(split.class_to_idx[name]) for name in names]
        return [*order, *(float(split.class_to_idx[image.label]) for image in split.images), float(len(split.images))]


@probe("image lists")
def image_lists() -> list[float]:
    """The images that are drawn for test from folders of classes."""
    with tempfile.TemporaryDirectory() as folder:
        for label in ("cat", "dog"):
            for number in range(9):
                path = Path(folder) / label / f"{number}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"no picture is opened")
        split = lists.splits(Path(folder), 0.3, seed=1)["test"]
        return [float(Path(image.path).stem) for image in split.images]


@probe("idx files")
def images_of_idx_files() -> list[float]:
    """Images and class numbers of all parts, where labels have gaps and no order."""
    with tempfile.TemporaryDirectory() as folder:
        idx_files.write(Path(folder), {"train": [7, 3, 9, 3, 7, 7, 9, 3, 3, 7, 3, 7, 7, 3, 9], "test": [9, 3]})
        parts = [IdxImages(Path(folder), part) for part in ("train", "test", "fit", "validation")]
        return [
            value for part in parts for image, target in part for value in (*of(pil_to_tensor(image)), float(target))
        ]


@probe("COCO")
def coco() -> list[float]:
    return exported("coco", "detection", Detection(True), "spanet-mask_rcnn")


@probe("ADE20K")
def ade20k() -> list[float]:
    transform = Segmentation(True, 48, (0.5,) * 3, (0.25,) * 3)
    return exported("ade20k", "segmentation", transform, "dfformer-semantic_fpn")


# Tasks and the loop: what they make of fixed networks and images.


def task_values(run: Run) -> list[float]:
    """Losses and gradients of one batch of a task's network."""
    task = tasks.of(run)
    train_set = task.samples("train")
    batch = [train_set[0, index] for index in range(4)]
    collate = task.collate or torch.utils.data.default_collate
    inputs, targets = collate(batch)
    seed_all(1, 0)
    network = task.network(0.0).train()
    seed_all(2, 0)
    loss = task.loss(network, inputs, targets)
    loss.backward()
    norm = torch.stack([p.grad.double().norm() for p in network.parameters() if p.grad is not None]).norm()
    size = sum(p.numel() for p in network.parameters()) / 1e5
    return [loss.item(), norm.item(), size, *scored(task, network.eval(), run)]


@torch.no_grad()
def scored(task: tasks.Task, network: nn.Module, run: Run) -> list[float]:
    """Scores of answers that are the targets themselves would be perfect: these are the network's on four images."""
    accelerator = loop.make_accelerator("cpu", "no")
    test_set, score = task.samples("test"), task.evaluator()
    collate = task.collate or torch.utils.data.default_collate
    inputs, targets = collate([test_set[0, index] for index in range(4)])
    score.update(inputs, targets, task.predict(network, inputs))
    return [value for _, value in sorted(score.values(accelerator).items())]


@probe("classification")
def classification() -> list[float]:
    recipe = dataclasses.replace(
        recipes.load("spanet", "paper"), img_size=32, samples=None, model_args=SMALL, by_model={}
    )
    return task_values(Run("spanet_small", recipe, "smoke", locate("digits"), 0))


@probe("detection")
def detection() -> list[float]:
    return task_values(whole("mask_rcnn"))


@probe("segmentation")
def segmentation() -> list[float]:
    return task_values(whole("semantic_fpn"))


def smoke_run(task: str) -> Run:
    """The first recipe for a task, in profile smoke, with the first model of the family that it is for."""
    name = next(name for name in recipes.names() if recipes.load(name, "smoke").task == task)
    paper = name.partition("-")[0]
    models = provenance.own_models()
    model = next(model for model in models if recipes.of_family(models[model].rpartition(".")[2]) == paper)
    return Run(model, recipes.load(name, "smoke"), "smoke", locate(None, task), 0)


for _task in recipes.TASKS:  # those without a probe of their own
    PROBES.setdefault(_task, lambda task=_task: task_values(smoke_run(task)))


@probe("training loop")
def training_loop() -> list[float]:
    """A few steps with warm-up, decay, clipping, accumulation and a moving average."""
    recipe = dataclasses.replace(
        recipes.load("dfformer", "smoke"),
        ema_decay=0.9,
        clip_grad=0.5,
        epochs=2,
        model_args=SMALL,
        mixup=0.0,
        cutmix=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("FREPRO_RESULTS")
        os.environ["FREPRO_RESULTS"] = folder
        try:
            run = Run("dfformer_s18", recipe, "smoke", locate("digits"), 0)
            record = loop.run(run, loop.Execution(device="cpu", per_device=16))
            lines = (run.measurement.folder / "metrics.jsonl").read_text().splitlines()
        finally:
            os.environ.pop("FREPRO_RESULTS")
            if before is not None:
                os.environ["FREPRO_RESULTS"] = before
    epochs = [json.loads(line) for line in lines]
    values = [entry[name] for entry in epochs for name in ("train_loss", "test_loss", "ema_test_loss")]
    return [*values, *(1000 * entry["lr"] for entry in epochs), float(record["values"]["updates"])]


def computed(behaviour: str) -> list[float]:
    """The values of a behaviour now, in one thread, as their sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [float(f"{value:.6g}") for value in probe_of(behaviour)()]
    finally:
        torch.set_num_threads(threads)


def recorded() -> dict[str, dict]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def complaint(behaviour: str) -> str | None:
    """What is wrong with a behaviour and its record, in a sentence; none where nothing is."""
    module, revision = declared()[behaviour]
    again = "`python -m tests.probes --record` records the new values"
    if behaviour not in recorded():
        return f"{behaviour!r} of {module} has no recorded values: {again}"
    record = recorded()[behaviour]
    now, before = computed(behaviour), record["values"]
    scale = [max(abs(value), 0.05) for value in before]
    is_same = len(now) == len(before) and all(
        abs(a - b) <= TOLERANCE * size for a, b, size in zip(now, before, scale, strict=True)
    )
    if record["revision"] != revision:
        return f"{behaviour!r} is at revision {revision}, its recorded values are of {record['revision']}: {again}"
    if not is_same:
        return f"{behaviour!r} computes something else now: raise its REVISION in {module}, and {again}"
    return None


def main(is_recording: bool) -> int:
    if is_recording:
        before = recorded() if FILE.exists() else {}
        table = {}
        for behaviour, (module, revision) in sorted(declared().items()):
            values, old = computed(behaviour), before.get(behaviour)
            if old and old["revision"] == revision and complaint(behaviour):
                print(f"{behaviour!r} changed: raise its REVISION in {module} first", file=sys.stderr)
                return 1
            table[behaviour] = old if old and old["revision"] == revision else {"revision": revision, "values": values}
        FILE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return 0
    found = [text for behaviour in declared() if (text := complaint(behaviour))]
    print("\n".join(found) or "every behaviour computes what its recorded values say")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main("--record" in sys.argv))
