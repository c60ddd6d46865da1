"""The configuration of a model, read off the model in the notation of the papers' configuration tables."""

from collections.abc import Iterable
from typing import Any

import timm
import torch
from timm.models.metaformer import MlpHead
from torch import nn

import frepro.models  # noqa: F401 - registers them with timm
from frepro.models.backbone import Backbone
from frepro.models.dfformer import DynamicFilter
from frepro.models.metaformer import MetaFormer, SepConv
from frepro.models.spanet import SPANet, SpectralPooling
from frepro.models.spanetv2 import Attention, SpectralAdaptiveModulation

MIXERS = {DynamicFilter: "DF", SepConv: "CF", SpectralAdaptiveModulation: "SPAM"}

SIZES = ("s18", "s36", "m36", "b36")


def cells(paper: str) -> list[list[str]]:
    """Return Table 1 of a paper in its own rows and columns; all cells but the row labels are read off the models."""
    return READERS[paper]()


def create(model: str, **model_args: Any) -> Backbone:
    with torch.device("meta"):
        network = timm.create_model(model, **model_args)
    assert isinstance(network, Backbone)  # the tables are about our models
    return network


def dims(network: Backbone) -> str:
    """Return the number of channels of the blocks in each stage."""
    return dashed(one({block.get_parameter("norm1.weight").numel() for block in stage}) for stage in _stages(network))


def depths(network: Backbone) -> str:
    """Return the number of blocks in each stage."""
    return dashed(len(stage) for stage in _stages(network))


def radii(network: Backbone) -> str:
    """Return the radius of spectral pooling in each stage of a SPANet."""
    return dashed(
        one({pool.radius for block in stage for pool in block.modules() if isinstance(pool, SpectralPooling)})
        for stage in _stages(network)
    )


def mixers(network: Backbone) -> str:
    """Return the token mixers of the blocks in each stage."""
    return ", ".join(one({_mixer(block.get_submodule("token_mixer")) for block in stage}) for stage in _stages(network))


def _stages(network: Backbone) -> list[list[nn.Module]]:
    """Return the blocks of each stage."""
    assert isinstance(network, MetaFormer | SPANet)
    return [list(stage.children()) for stage in network.stages]


def _mixer(mixer: nn.Module) -> str:
    if isinstance(mixer, Attention):
        return "attention" if mixer.local_conv is None else "attention + convolution"
    return MIXERS.get(type(mixer), type(mixer).__name__)


def downsampling(network: Backbone) -> str:
    """Return kernel size, stride and padding of the convolution before each stage."""
    convs = [embed.get_submodule("conv") for embed in network.get_submodule("downsample_layers").children()]
    sizes, strides, paddings = (
        dashed(one(set(getattr(conv, name))) for conv in convs) for name in ("kernel_size", "stride", "padding")
    )
    return f"K = {sizes}, S = {strides}, P = {paddings}"


def classifier(network: Backbone) -> str:
    """Return pooling, norm and head."""
    pooling = {"avg": "GAP"}.get(network.global_pool, "no pooling")
    norm = "Layer Norm." if isinstance(network.norm, nn.LayerNorm) else type(network.norm).__name__
    return f"{pooling}, {norm}, {'MLP' if isinstance(network.head, MlpHead) else type(network.head).__name__}"


def stem(network: Backbone, img_size: int = 224) -> list[tuple[str, str]]:
    """Return the output size of each block of a convolutional stem, and its convolutions."""
    x = torch.empty(1, 3, img_size, img_size, device="meta")
    found = []
    for block in network.get_submodule("patch_embed.cnn_downsample_layers").children():
        x = block(x)
        convs = [convolution(layer) for layer in block.children() if isinstance(layer, nn.Conv2d)]
        found.append((f"{x.shape[2]} × {x.shape[3]}", "; ".join(convs)))
    return found


def convolution(conv: nn.Conv2d) -> str:
    stride, padding = one(set(conv.stride)), one(set(conv.padding))
    text = f"{conv.kernel_size[0]} × {conv.kernel_size[1]}, {conv.out_channels}"
    return text + (f", stride {stride}" if stride > 1 else "") + (f", padding {padding}" if padding else "")


def dashed(values: Iterable[Any]) -> str:
    return "-".join(map(str, values))


def one(values: set[Any]) -> Any:
    """Return the only value of a set; if there are several, return all of them, so that the difference shows."""
    return next(iter(values)) if len(values) == 1 else "/".join(sorted(map(str, values)))


def _dfformer() -> list[list[str]]:
    families = ("dfformer", "cdfformer")
    networks = {(family, size): create(f"{family}_{size}") for family in families for size in SIZES}

    def shared(title: str, read: Any) -> list[str]:
        return [title, *(one({read(networks[family, size]) for size in SIZES}) for family in families)]

    sizes = [
        [f"Size {size.upper()}", *(f"L = {depths(networks[f, size])}, C = {dims(networks[f, size])}" for f in families)]
        for size in SIZES
    ]
    return [
        shared("TokenMixer", mixers),
        shared("Down Smp.", downsampling),
        *sizes,
        shared("Classifier", classifier),
    ]


def _spanet() -> list[list[str]]:
    networks = {f"SPANet-{size[0].upper()}": create(f"spanet_{size}") for size in ("small", "medium", "base")}
    return [[label, dims(network), depths(network), radii(network)] for label, network in networks.items()]


def _spanetv2() -> list[list[str]]:
    rows = []
    for size in SIZES:
        pure, hybrid = (create(f"spanetv2_{size}_{kind}") for kind in ("pure", "hybrid"))
        shared = [one({read(pure), read(hybrid)}) for read in (depths, dims)]
        rows.append([size.upper(), *shared, mixers(pure), mixers(hybrid)])
    return rows


def _vimf() -> list[list[str]]:
    tiny, small = (stem(create(f"vimf_{size}_h")) for size in ("tiny", "small"))
    return [
        [f"Block{i}", one({size, other_size}), convs, other_convs]
        for i, ((size, convs), (other_size, other_convs)) in enumerate(zip(tiny, small, strict=True), start=1)
    ]


READERS = {"dfformer": _dfformer, "spanet": _spanet, "spanetv2": _spanetv2, "vim-f": _vimf}
