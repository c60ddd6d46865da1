"""Parameters, multiply-accumulates and throughput.

The papers print what fvcore counts and call it FLOPs. ``count`` gives that number, and apart from it what no counter
sees, by these formulas, in operations on real numbers; two are taken as one multiply-accumulate:

    FFT of n complex points           5 n log2(n), half of it where the points are real
    product of two complex numbers    6; with a real one 2; a modulus 4
    scan of L steps, D channels, N    9 L D N + 2 L D, the first term as Mamba's authors count it
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import timm
import torch
from timm.layers import set_fused_attn, to_2tuple, use_fused_attn
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

import frepro.models  # noqa: F401 - registers them with timm
from frepro import provenance
from frepro.analysis.operations import replaced
from frepro.analysis.timing import in_turn
from frepro.errors import FreproError, unknown
from frepro.models.create import sized
from frepro.runs import Throughput

# Where official code writes a norm out in elementwise operations, which fvcore does not count: module names by family.
WRITTEN_OUT = {
    "dfformer": ("downsample_layers.", "stages."),
    "spanetv2": ("downsample_layers.",),
    "vimf": ("patch_embed.",),
}


def count(model: str, img_size: int | tuple[int, int] = 224, /, **model_args: Any) -> dict[str, int]:
    """Parameters, and multiply-accumulates of one image.

    By the papers' convention these are the products of convolutions, linear maps and attention (written out), a complex
    product as one, and 5 for each element that a norm of torch gives, as fvcore has it. The model is made on the meta
    device and its ``frepro.ops`` are not run, so that nothing is computed.

    Args:
        img_size: Height and width of the image, or one number for both.

    Returns:
        ``params``; ``macs`` by the papers' convention, and ``batched``, the part of it in products of batches of
        matrices, as attention's are; what that leaves out, ``spectral`` (FFTs, products with filters, moduli) and
        ``scan``.
    """
    if not timm.is_model(model):
        raise unknown("model", model, timm.list_models())
    with attention_written_out(), ShapesAlone():
        with torch.device("meta"):
            network = timm.create_model(model, **model_args).eval()
            image = torch.empty(1, 3, *to_2tuple(img_size))
        named = network.model if isinstance(network, FeatureGetterNet) else network  # as its family names its parts
        return count_network(named, partial(network, image))


@contextmanager
def attention_written_out() -> Iterator[None]:
    """timm's models made inside have no fused attention, which would hide its products from the counter."""
    fused = use_fused_attn()
    set_fused_attn(False)
    try:
        yield
    finally:
        set_fused_attn(fused)


class ShapesAlone(TorchDispatchMode):
    """Gives empty tensors where the meta device works a shape out in hundreds of small steps, which takes seconds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.clamp_.default:  # the end of a truncated normal distribution
            return args[0]
        if func is torch.ops.aten.upsample_bicubic2d.default:  # of filters and position embeddings
            x, size = args[:2]
            return x.new_empty(*x.shape[:2], *size)
        return func(*args, **(kwargs or {}))


class _Counter(FlopCounterMode):
    """Counts of a network as a whole.

    torch tells modules apart by hooks on all of them, for which a model would call the layers that it otherwise lends
    to an operation.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mod_tracker = _NoModules()


class _NoModules(ModuleTracker):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


def count_network(network: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """``count`` for any network on the meta device, in evaluation mode; ``run`` calls it, or parts of it."""
    tally = _Tally()
    hooks = tally.watch_norms(network)
    with (
        replaced(FORMULAS, tally.stand_in, network),
        torch.no_grad(),
        _Counter(display=False, custom_mapping=FFT_FORMULAS) as counter,
    ):
        run()
    for hook in hooks:
        hook.remove()
    by_operator = counter.get_flop_counts()["Global"]
    ffts = sum(by_operator.get(operator, 0) for operator in FFT_FORMULAS)
    return {
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": (counter.get_total_flops() - ffts) // 2 + tally.macs,
        "batched": by_operator.get(torch.ops.aten.bmm, 0) // 2,
        "spectral": round((tally.spectral + ffts) / 2),
        "scan": round(tally.scan / 2),
    }


def count_backbone(
    model: str, img_size: tuple[int, int], made_for: int | None = None, /, **model_args: Any
) -> dict[str, int]:
    """``count`` of a model without its head, as it stands in a detector or a segmentation model.

    Args:
        img_size: Height and width of the image.
        made_for: Pixels a side that filters, masks and position embeddings of a model of ours are made for; none for
            those of the image. They count as parameters, and are resized for the image. A model of timm's is made for
            the image.
    """
    is_ours = model in provenance.own_models()
    own_size = made_for if made_for and is_ours else img_size
    return count(model, img_size, features_only=True, **sized(model, own_size), **model_args)


def count_whole(
    network: str, model: str, img_size: tuple[int, int], made_for: int | None = None, /, **model_args: Any
) -> dict[str, int]:
    """``count`` of a detector or segmenter on a backbone, as mmdetection and mmsegmentation count.

    Parameters are the trainable ones. Of an R-CNN, multiply-accumulates are those of what does not depend on the image:
    backbone, pyramid, region proposals, and the heads of 1000 boxes, 100 of which have masks. A ResNet in a segmenter
    has a stem of three convolutions, as mmsegmentation's.

    Args:
        network: A name of ``tasks.detectors`` or ``tasks.segmenters``.
        img_size, made_for: As for ``count_backbone``.
    """
    from frepro.tasks import detectors, segmenters  # detectors take seconds to import

    task = segmenters if network in segmenters.SEGMENTERS else detectors
    if task is segmenters and model.startswith("resnet"):
        model += "c"
    own_size = made_for if made_for and model in provenance.own_models() else img_size
    with attention_written_out(), ShapesAlone():
        with torch.device("meta"):
            made = task.create(network, model, **sized(model, own_size), **model_args).eval()
            image = torch.empty(1, 3, *img_size)

        def run() -> None:
            if task is segmenters:
                made(image)
                return
            maps = list(made.backbone(image).values())
            if network == "retinanet":
                made.head(maps)
                return
            made.rpn.head(maps)
            channels = maps[0].shape[1]
            for stage in made.roi_heads.stages:
                stage.box_predictor(stage.box_head(torch.empty(1000, channels, 7, 7, device="meta")))
                stage.mask_predictor(stage.mask_head(torch.empty(100, channels, 14, 14, device="meta")))

        counted = count_network(made, run)
    trainable = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    return {**counted, "params": trainable}


def real_fft(elements: int, points: int) -> float:
    """Operations of real FFTs of so many points each, with so many points altogether."""
    return 2.5 * elements * math.log2(points)


class _Tally:
    """What ``FlopCounterMode`` does not see of one forward pass: norms in ``macs``, the rest in real operations."""

    def __init__(self) -> None:
        self.macs = 0
        self.spectral = 0.0
        self.scan = 0.0

    def stand_in(self, name: str, operation: Callable) -> Callable:
        """Instead of an operation: counts it, and gives an empty tensor of the shape that it would give."""

        def counted(x: Tensor, *args: Any, inplace: bool = False, backend: str | None = None, **kwargs: Any) -> Tensor:
            FORMULAS[name](self, x, *args, **kwargs)
            return x.new_empty(*x.shape[:3], len(args[3])) if name == "pooled_linear" else torch.empty_like(x)

        return counted

    def filter(self, x: Tensor, height: int, width: int, product: int) -> None:
        """Transform there and back, and a product of so many operations at each point of the half spectrum."""
        self.spectral += 2 * real_fft(x.numel(), height * width) + product * x.numel() // width * (width // 2 + 1)

    def global_filter(self, x: Tensor, weight: Tensor) -> None:
        self.filter(x, x.shape[1], x.shape[2], product=6)

    def dynamic_filter(self, x: Tensor, coefficients: Tensor, basis: Tensor) -> None:
        self.filter(x, x.shape[1], x.shape[2], product=6)
        self.macs += basis.shape[:2].numel() * coefficients.numel()  # the mixing, a matrix product

    def rescale(self, x: Tensor, gain: Any) -> None:
        self.filter(x, x.shape[1], x.shape[2], product=2)

    def pooled_linear(self, x: Tensor, masks: Any, radius: float, weights: Any, bias: Tensor) -> None:
        self.rescale(x, masks)
        self.macs += x.numel() * len(bias)

    def amplitude(self, x: Tensor) -> None:
        self.spectral += 2 * real_fft(x.numel(), x.shape[1] * x.shape[2]) + 4 * x.numel()

    def causal_conv(self, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
        self.macs += x.numel() * weight.shape[-1]

    def selective_scan(self, u: Tensor, delta: Tensor, A: Tensor, *args: Any, **kwargs: Any) -> None:
        self.scan += u.numel() * (9 * A.shape[1] + 2)

    def watch_norms(self, network: nn.Module) -> list[RemovableHandle]:
        """Count what norms give, in ``network`` and whatever backbone stands in it, as its own code writes them."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.macs += 5 * output.numel()

        written_out = tuple(
            f"{path}.{name}".lstrip(".")
            for path, module in network.named_modules()
            for name in WRITTEN_OUT.get(type(module).__module__.rpartition(".")[2], ())
        )
        return [
            module.register_forward_hook(hook)
            for name, module in network.named_modules()
            if isinstance(module, nn.LayerNorm | nn.GroupNorm) and not name.startswith(written_out)
        ]


FORMULAS = {
    "causal_conv": _Tally.causal_conv,
    "global_filter": _Tally.global_filter,
    "dynamic_filter": _Tally.dynamic_filter,
    "spectral_rescale": _Tally.rescale,
    "spectral_pool": _Tally.rescale,
    "amplitude_spectrum": _Tally.amplitude,
    "pooled_linear": _Tally.pooled_linear,
    "selective_scan": _Tally.selective_scan,
}


def _fft_r2c(shape: torch.Size, dim: list[int], *args: Any, **kwargs: Any) -> int:
    return round(real_fft(math.prod(shape), math.prod(shape[i] for i in dim)))


def _fft_c2r(shape: torch.Size, dim: list[int], *args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    return round(real_fft(math.prod(out_shape), math.prod(out_shape[i] for i in dim)))


# For models that call torch's FFTs themselves (AFNO).
FFT_FORMULAS = {torch.ops.aten._fft_r2c: _fft_r2c, torch.ops.aten._fft_c2r: _fft_c2r}


def vim_flops(model: str, img_size: int = 224) -> dict[str, float]:
    """Multiply-accumulates of a Vision Mamba by the ways of counting that its print (1.5 and 5.1 G) may come from.

    The paper of Vim prints none; Vim-F takes over those of LocalMamba's tables, whose released code counts a layer of
    one direction (convolution, projections) with two scans of 5 N + 2 operations for each token and channel, each taken
    as one multiply-accumulate, and no class token.
    """
    counted = count(model, img_size)
    with torch.device("meta"):
        network = timm.create_model(model)
    tokens, mixer = math.prod(network.grid_size), network.layers[0].mixer
    inner, state = mixer.A_log.shape
    kernel = mixer.conv1d.kernel_size[0]
    once = (
        tokens * (mixer.x_proj.weight.numel() + mixer.dt_proj.weight.numel()) + (tokens + kernel - 1) * inner * kernel
    )
    shared = tokens * (mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel() + network.embed_dim)
    scans = 2 * tokens * inner * (5 * state + 2)
    stem = count_stem(network, img_size)
    return {
        "without the scans": counted["macs"],
        "9 L D N + 2 L D a scan, two as one": counted["macs"] + counted["scan"],
        "9 L D N + 2 L D a scan, one as one": counted["macs"] + 2 * counted["scan"],
        "as LocalMamba's code": stem + len(network.layers) * (shared + once + scans) + network.head.weight.numel(),
    }


def count_stem(network: nn.Module, img_size: int) -> int:
    """Multiply-accumulates of the convolutions that make patches."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.patch_embed(torch.empty(1, 3, img_size, img_size, device="meta"))
    return counter.get_total_flops() // 2


def throughput(job: Throughput) -> dict[str, Any]:
    """The record of a throughput measurement: the stored one if there is one, else it is measured now.

    All models take turns in each round (``timing.in_turn``); float32, eager, inference. The record holds images per
    second of every round, for each model in the order of ``job.models``.
    """
    record = job.measurement.record()
    if record is not None:
        return record
    with job.measurement.lock():
        if record := job.measurement.record():
            return record  # another process finished it in the meantime
        started = time.perf_counter()
        values = {"images_per_second": measure_throughput(job)}
        return job.measurement.write(values, time.perf_counter() - started, job.device)


def measure_throughput(job: Throughput) -> list[list[float]]:
    """Images per second, (models, rounds)."""
    device, size = torch.device(job.device), job.benchmark.img_size
    try:
        images = torch.randn(job.benchmark.batch_size, 3, size, size, device=device)
        networks = [timm.create_model(name, **dict(args)).to(device).eval() for name, args in job.models]
    except torch.OutOfMemoryError as error:
        raise FreproError(f"{len(job.models)} models do not fit on {job.name} together: time fewer") from error
    with torch.inference_mode():
        sides = {i: partial(network, images) for i, network in enumerate(networks)}
        times, failures = in_turn(sides, job.benchmark.rounds, device)
    for i, reason in failures.items():
        raise FreproError(f"{job.models[i][0]} could not be timed on {job.name}: {reason}")
    return [[len(images) / seconds for seconds in values] for values in times.values()]
