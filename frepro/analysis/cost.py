"""Parameters, multiply-accumulates and throughput.

The papers print what fvcore counts and call it FLOPs. ``count`` returns that number and, separately, the cost of the
operations that no counter sees. The latter is computed in operations on real numbers by the formulas below; two of them
count as one multiply-accumulate::

    FFT of n complex points           5 n log2(n), half of it where the points are real
    product of two complex numbers    6; with a real one 2; a modulus 4
    scan of L steps, D channels, N    9 L D N + 2 L D, the first term as Mamba's authors count it
"""

import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

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
from frepro import tasks
from frepro.analysis.operations import replaced
from frepro.analysis.timing import interleaved
from frepro.errors import FreproError, one_line, unknown
from frepro.models.create import fitting, sized
from frepro.store import provenance
from frepro.training.runs import Throughput

if TYPE_CHECKING:  # or an edit of Vim would make the tables of all other families stale
    from frepro.models.vim import BidirectionalMamba, VisionMamba


def count(model: str, img_size: int | tuple[int, int] = 224, /, **model_args: Any) -> dict[str, int]:
    """Return parameters, and multiply-accumulates for one image.

    By the papers' convention, which is fvcore's, these are the products in convolutions, linear maps and attention
    (written out), with a complex product as one, and 5 for each output element of torch's norms. The model is created
    on the meta device and its ``frepro.ops`` are not run, so nothing is computed.

    Args:
        img_size: Height and width of the image, or one number for both.

    Returns:
        ``params``; ``macs`` by the papers' convention; ``batched``, the part of them in batched matrix products, such
        as those of attention; and what the convention leaves out, ``spectral`` (FFTs, products with filters, moduli)
        and ``scan``.
    """
    if not timm.is_model(model):
        raise unknown("model", model, timm.list_models())
    with attention_written_out(), ShapesAlone():
        with torch.device("meta"):
            network = timm.create_model(model, **model_args).eval()
            image = torch.empty(1, 3, *to_2tuple(img_size))
        named = network.model if isinstance(network, FeatureGetterNet) else network  # with its family's module names
        return count_network(named, partial(network, image))


def obstacle(
    model: str, model_args: dict[str, Any], small: tuple[str, int, dict[str, Any]] | None = None
) -> str | None:
    """Return in one line why a model cannot be built or run with these arguments; ``None`` if it can.

    The model is built on the meta device, which allocates nothing, and run on the shape of an image of its size.

    Args:
        small: Model, pixels per side and arguments of the small form that is trained.
    """
    forms = [(model, None, model_args), *([small] if small else [])]
    for name, img_size, args in forms:
        size = {} if img_size is None else sized(name, img_size)
        try:
            with fitting(name, args):
                count(name, *([img_size] if img_size else []), **size, **args)
        except FreproError as error:
            return one_line(error)
    return None


@contextmanager
def attention_written_out() -> Iterator[None]:
    """Disable fused attention, which hides its products from the counter, in timm models created in this context."""
    fused = use_fused_attn()
    set_fused_attn(False)
    try:
        yield
    finally:
        set_fused_attn(fused)


class ShapesAlone(TorchDispatchMode):
    """Returns empty tensors for operations whose shapes take the meta device hundreds of small steps, and seconds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.clamp_.default:  # the end of a truncated normal distribution
            return args[0]
        if func is torch.ops.aten.upsample_bicubic2d.default:  # resizes filters and position embeddings
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
    """Return ``count`` of any network on the meta device in evaluation mode; ``run`` calls it, or parts of it."""
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


def matrix_products(model: str, img_size: int) -> int:
    """Return the multiply-accumulates of a model's matrix products for one image.

    These are linear layers, 1 × 1 convolutions and the two products of attention. Everything else is left out, as are
    the products in ``frepro.ops`` except for that of ``pooled_linear``, which stands for a linear layer.
    """
    tally = _Tally()
    pointwise = {torch.ops.aten.convolution: _pointwise_convolution}
    with attention_written_out(), ShapesAlone():
        with torch.device("meta"):
            network = timm.create_model(model, **sized(model, img_size)).eval()
            image = torch.empty(1, 3, img_size, img_size)
        with (
            replaced(FORMULAS, tally.stand_in, network),
            torch.no_grad(),
            _Counter(display=False, custom_mapping=pointwise) as counter,
        ):
            network(image)
    return counter.get_total_flops() // 2 + tally.products


def _pointwise_convolution(x: torch.Size, weight: torch.Size, *args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    is_product = math.prod(weight[2:]) == 1 and weight[1] == x[1]  # not grouped
    return 2 * math.prod(out_shape) * weight[1] if is_product else 0


def count_backbone(
    model: str, img_size: tuple[int, int], native_size: int | None = None, /, **model_args: Any
) -> dict[str, int]:
    """Return ``count`` of a model without its head, as in a detector or a segmenter.

    Args:
        img_size: Height and width of the image.
        native_size: Pixels per side for which filters, masks and position embeddings of our models are created;
            ``None`` means those of the image. They count as parameters, and are resized for the image. A timm model is
            always created for the image.
    """
    is_ours = model in provenance.own_models()
    own_size = native_size if native_size and is_ours else img_size
    return count(model, img_size, features_only=True, **sized(model, own_size), **model_args)


def count_whole(
    network: str, model: str, img_size: tuple[int, int], native_size: int | None = None, /, **model_args: Any
) -> dict[str, int]:
    """Return ``count`` of a complete detector or segmenter, as mmdetection and mmsegmentation count.

    Parameters are the trainable ones. Multiply-accumulates cover what does not depend on the content of the image
    (see ``counted_forward`` of each task). A ResNet in a segmenter has a stem of three convolutions, as in
    mmsegmentation.

    Args:
        network: A name in ``recipes.NETWORKS``.
        img_size, native_size: As for ``count_backbone``.
    """
    task = tasks.of_network(network)
    model = task.counted_backbone(model)
    own_size = native_size if native_size and model in provenance.own_models() else img_size
    with attention_written_out(), ShapesAlone():
        with torch.device("meta"):
            made = task.create(network, model, **sized(model, own_size), **model_args).eval()
            image = torch.empty(1, 3, *img_size)
        counted = count_network(made, lambda: task.counted_forward(made, image))
    trainable = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    return {**counted, "params": trainable}


def real_fft(elements: int, points: int) -> float:
    """Return the operations of real FFTs of ``points`` points each, with ``elements`` points in total."""
    return 2.5 * elements * math.log2(points)


class _Tally:
    """Cost that ``FlopCounterMode`` does not see in a forward pass: norms in ``macs``, the rest in real operations.

    ``products`` is the part of ``macs`` that stands for linear layers.
    """

    def __init__(self) -> None:
        self.macs = 0
        self.products = 0
        self.spectral = 0.0
        self.scan = 0.0

    def stand_in(self, name: str, operation: Callable) -> Callable:
        """Return a replacement for an operation that counts it and returns an empty tensor of the same shape."""

        def counted(x: Tensor, *args: Any, inplace: bool = False, backend: str | None = None, **kwargs: Any) -> Tensor:
            FORMULAS[name](self, x, *args, **kwargs)
            return x.new_empty(*x.shape[:3], len(args[3])) if name == "pooled_linear" else torch.empty_like(x)

        return counted

    def filter(self, x: Tensor, height: int, width: int, product: int) -> None:
        """Add a transform, its inverse, and a product of ``product`` operations at each point of the half spectrum."""
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
        self.products += x.numel() * len(bias)

    def amplitude(self, x: Tensor) -> None:
        self.spectral += 2 * real_fft(x.numel(), x.shape[1] * x.shape[2]) + 4 * x.numel()

    def causal_conv(self, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
        self.macs += x.numel() * weight.shape[-1]

    def selective_scan(self, u: Tensor, delta: Tensor, A: Tensor, *args: Any, **kwargs: Any) -> None:
        self.scan += u.numel() * (9 * A.shape[1] + 2)

    def watch_norms(self, network: nn.Module) -> list[RemovableHandle]:
        """Count the output of norms, except in backbones whose official code writes them out."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.macs += 5 * output.numel()

        written_out = tuple(
            f"{path}.{name}".lstrip(".")
            for path, module in network.named_modules()
            for name in getattr(module, "hand_written_norms", ())
        )
        return [
            module.register_forward_hook(hook)
            for name, module in network.named_modules()
            if isinstance(module, nn.LayerNorm | nn.GroupNorm) and not name.startswith(written_out)
        ]


FORMULAS: dict[str, Callable[..., None]] = {
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
    """Return multiply-accumulates of a Vision Mamba by each way of counting that may explain the printed 1.5 and 5.1 G.

    The paper of Vim prints none. Vim-F cites those of LocalMamba's tables, whose released code counts a layer of one
    direction (convolution, projections) with two scans of 5 N + 2 operations for each token and channel. It takes each
    operation as one multiply-accumulate, and has no class token.
    """
    counted = count(model, img_size)
    with torch.device("meta"):
        network = cast("VisionMamba", timm.create_model(model))
    tokens, mixer = math.prod(network.grid_size), cast("BidirectionalMamba", network.get_submodule("layers.0.mixer"))
    inner, state = mixer.A_log.shape
    kernel = mixer.conv1d.kernel_size[0]
    once = (
        tokens * (mixer.x_proj.weight.numel() + mixer.dt_proj.weight.numel()) + (tokens + kernel - 1) * inner * kernel
    )
    shared = tokens * (mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel() + network.embed_dim)
    scans = 2 * tokens * inner * (5 * state + 2)
    stem, head = count_stem(network, img_size), network.get_parameter("head.weight").numel()
    return {
        "without the scans": counted["macs"],
        "9 L D N + 2 L D a scan, two as one": counted["macs"] + counted["scan"],
        "9 L D N + 2 L D a scan, one as one": counted["macs"] + 2 * counted["scan"],
        "as LocalMamba's code": stem + len(network.layers) * (shared + once + scans) + head,
    }


def count_stem(network: nn.Module, img_size: int) -> int:
    """Return the multiply-accumulates of the convolutions that create the patches."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.get_submodule("patch_embed")(torch.empty(1, 3, img_size, img_size, device="meta"))
    return counter.get_total_flops() // 2


def throughput(jobs: Sequence[Throughput]) -> list[dict[str, Any]]:
    """Time models of one benchmark on one device in interleaved rounds, and return a record of each.

    Every round times all models (``timing.interleaved``); float32, eager, inference. A record holds images per second
    of every round, and the session: only rounds of the same session can be paired. The caller holds their locks.
    """
    started = time.perf_counter()
    rates = measure_throughput(jobs)
    seconds = (time.perf_counter() - started) / len(jobs)
    session = uuid.uuid4().hex[:16]
    records = []
    for job, of_model in zip(jobs, rates, strict=True):
        values = {"images_per_second": of_model, "session": session}
        records.append(job.measurement.write(values, seconds, job.device))
    return records


def measure_throughput(jobs: Sequence[Throughput]) -> list[list[float]]:
    """Return images per second, (models, rounds)."""
    benchmark, name, device = jobs[0].benchmark, jobs[0].name, torch.device(jobs[0].device)
    try:
        images = torch.randn(benchmark.batch_size, 3, benchmark.img_size, benchmark.img_size, device=device)
        networks = [timm.create_model(job.model, **job.model_args).to(device).eval() for job in jobs]
    except torch.OutOfMemoryError as error:
        raise FreproError(f"{len(jobs)} models do not fit on {name} together: time fewer") from error
    with torch.inference_mode():
        sides = {i: partial(network, images) for i, network in enumerate(networks)}
        times, failures = interleaved(sides, benchmark.rounds, device)
    for i, reason in failures.items():
        raise FreproError(f"{jobs[i].model} could not be timed on {name}: {reason}")
    return [[len(images) / seconds for seconds in values] for values in times.values()]
