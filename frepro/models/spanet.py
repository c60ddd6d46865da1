"""SPANet: a MetaFormer whose token mixer weights low against high frequencies by fixed masks.

"SPANet: Frequency-balancing Token Mixer using Spectral Pooling Aggregation Modulation", Yun et al., ICCV 2023,
https://arxiv.org/abs/2308.11568. Official code: https://github.com/DoranLyong/SPANet-official (read at 886ad24; MIT by
its README). This file is an independent implementation; tensor names are the official ones, so the authors' checkpoints
load unchanged.

BibTeX::

    @inproceedings{yun2023spanet,
      title     = {{SPANet}: Frequency-balancing Token Mixer using Spectral Pooling Aggregation Modulation},
      author    = {Yun, Guhnoo and Yoo, Juhan and Kim, Kijung and Lee, Jeongho and Kim, Dong Hwan},
      booktitle = {ICCV},
      pages     = {6113--6124},
      year      = {2023}
    }

Paper, official code, frepro:

- The mask has two values in the paper (eq. 16) and a third, 1/3, at a distance of exactly r in the code. frepro follows
  the code, because its checkpoints contain the masks. ``ring=None`` gives the paper's mask.
- The code computes the full complex transform and shifts every axis, including the batch, which the inverse shift
  undoes. The masks are even, so half of the spectrum gives the same result; frepro uses that, in float32 even under
  autocast.
- The official classifiers run only at 224 x 224: at other sizes, the code that pads the mask raises an error. The copy
  for detection pads and crops one mask repeatedly, so its disc drifts away from the centre. frepro creates the disc
  for the size of each map, with the same radius in frequency bins.
- The code swaps row and column of the centre, which has no effect on square maps; frepro's mask is centred on any map.
- The masks are frozen parameters in the code and are counted as such (0.05 to 0.11 M). They are frozen parameters here,
  too, and never get a gradient.
- The sizes "mediumx" and "basex" exist only in the code.

Ablations (Table 5). The baseline is SPANet-S with kernel size 3, not the released 7, and each row changes one thing of
that baseline. The columns of parameters and FLOPs have the same values in all rows.

Row and model::

    SPANet-S-baseline                               spanet_small_k3
    SPG with SPF -> without                         spanet_small_k3_nospf
    aggregation with addition -> Hadamard product   spanet_small_k3_hp
    radii [2, 2, 1, 1] -> [1, 1, 1, 1]              spanet_small_k3_r1111
    radii [2, 2, 1, 1] -> [4, 4, 1, 1]              spanet_small_k3_r4411
    kernel 3 -> 5                                   spanet_small_k5
    kernel 3 -> 7                                   spanet_small
    ResScale -> none                                spanet_small_k3_noscale
    ResScale -> LayerScale                          spanet_small_k3_layerscale

Neither paper nor code gives the position and the initial value of LayerScale. frepro has it in place of ResScale, in
the last two stages, with the initial value 1e-5 of CaiT (at this depth) and PoolFormer (on which SPANet is built).
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import accumulate
from typing import Any, ClassVar

import torch
from timm.layers import DropPath, GroupNorm1
from timm.models import register_model
from timm.models.metaformer import Scale
from torch import Tensor, nn

from frepro.models.backbone import create, default_cfg, init_weights, published_cfgs, stage_drop_path_rates
from frepro.models.by_name import activation, norm
from frepro.models.layers import Mlp, Sequential, call, conv1x1, depthwise, is_untouched
from frepro.models.metaformer import Pyramid
from frepro.ops import eager, pooled_linear, spectral_pool, spectral_pooling_mask

__all__ = ["SPAM", "SPANet", "SpectralPooling"]

REVISION = {"spanet": 1}

for _operation in ("channels_last", "fitted", "pooled_linear", "spectral_pool"):
    torch.fx.wrap(_operation)  # one node in graphs of torch.fx, which do not know the sizes it depends on

AGGREGATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "multiply": torch.mul}


def fitted(mask: Tensor, height: int, width: int, radius: float, balance: float, ring: float | None) -> Tensor:
    """The mask where it has this size; else one that has (see ``ops.spectral_pooling_mask``)."""
    if eager.is_same_size(mask.shape, (height, width)):
        return mask
    return spectral_pooling_mask(height, width, radius, balance, ring, device=mask.device)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) as it is, on a CPU in the memory layout that convolutions are fastest at."""
    if x.device.type != "cpu" or eager.obstacle(x, registered=True):
        return x
    return x.contiguous(memory_format=torch.channels_last)


class SpectralPooling(nn.Module):
    """Spectral pooling filter (eq. 17) with a mask for one map size: (B, C, H, W) to (B, C, H, W).

    For a map of another size, each forward pass creates a mask of that size with the same radius and balance.

    Args:
        size: Height and width of the map for which the mask is created.
        radius: r, the radius of the low-frequency disc in frequency bins.
        balance: lambda, the weight of the low frequencies.
        ring: Weight at the radius itself (see ``ops.spectral_pooling_mask``).
    """

    def __init__(
        self, size: tuple[int, int], *, radius: float, balance: float, ring: float | None = 1 / 3, **dd: Any
    ) -> None:
        super().__init__()
        self.radius = radius
        self.balance = balance
        self.ring = ring
        # Fixed, but a parameter, because official checkpoints contain it and official parameter counts include it.
        self.filter = nn.Parameter(torch.empty(1, *size, **dd), requires_grad=False)
        self.set_size(size)

    def set_size(self, size: tuple[int, int]) -> None:
        """Replace the mask permanently by one of another size, (h, w)."""
        mask = spectral_pooling_mask(*size, self.radius, self.balance, self.ring, device=self.filter.device)
        self.filter = nn.Parameter(mask[None].to(self.filter.dtype), requires_grad=False)

    def mask(self, height: int, width: int) -> Tensor:
        """Return the mask for a map, (height, width). It is detached: unfreezing a model must not train it."""
        return fitted(self.filter[0].detach(), height, width, self.radius, self.balance, self.ring)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x.shape[2], x.shape[3])
        return spectral_pool(x.permute(0, 2, 3, 1), mask).permute(0, 3, 1, 2)


class SPAM(nn.Module):
    """Spectral pooling aggregation modulation (Figure 3): (B, C, H, W) to (B, C, H, W).

    A 1x1 and a separable depthwise convolution compute x. Its channels are split among spectral pooling gates (SPG),
    each with its own balance: spectral pooling, then a 1x1 convolution to all channels (eq. 19). The combined outputs
    of the gates are the context that modulates x: proj_out(x * context).

    Args:
        dim: C.
        size: Height and width of the map for which the masks are created.
        kernel_size: K of the separable convolution, 1 x K then K x 1.
        radius: r of the masks.
        balances: lambda of each gate; N is their number.
        ring: Weight at the radius itself; ``None`` for the paper's two-valued mask.
        spectral_pooling: Whether the gates have spectral pooling (Table 5).
        aggregation: How the gates' outputs are combined, "add" or "multiply" (Table 5).

    Raises:
        ValueError: ``aggregation`` is unknown, or the channels cannot be split among the gates.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        kernel_size: int = 7,
        radius: float = 2,
        balances: Sequence[float] = (0.7, 0.8, 0.9),
        ring: float | None = 1 / 3,
        spectral_pooling: bool = True,
        aggregation: str = "add",
        **dd: Any,
    ) -> None:
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, not {aggregation!r}")
        self.radius = radius
        self.spectral_pooling = spectral_pooling
        self.aggregation = aggregation
        # All gates have the same number of channels except the last, which has the remaining ones.
        share = -(-dim // len(balances))
        self.splits = [min(share, dim - start) for start in range(0, dim, share)]
        if len(self.splits) != len(balances):
            raise ValueError(f"{dim} channels cannot be split among {len(balances)} gates")
        self.proj_in = conv1x1(dim, dim, **dd)
        self.conv = Sequential(depthwise(dim, (1, kernel_size), **dd), depthwise(dim, (kernel_size, 1), **dd))
        self.proj_out = conv1x1(dim, dim, **dd)
        pooling = partial(SpectralPooling, size, radius=radius, ring=ring, **dd)
        self.sps = nn.ModuleList(pooling(balance=b) if spectral_pooling else nn.Identity() for b in balances)
        self.pws = nn.ModuleList(conv1x1(split, dim, **dd) for split in self.splits)

    def set_size(self, size: tuple[int, int]) -> None:
        """Replace the masks permanently by those for another map size, (h, w)."""
        for pool in self.sps:
            if isinstance(pool, SpectralPooling):
                pool.set_size(size)

    @property
    def is_pooled_at_once(self) -> bool:
        """Whether one operation can replace all gates, using only the masks and weights of their modules."""
        if not self.spectral_pooling or self.aggregation != "add":
            return False
        kinds = ((self.sps, SpectralPooling), (self.pws, nn.Conv2d))
        return all(is_untouched(module, kind) for modules, kind in kinds for module in modules)

    def context(self, x: Tensor) -> Tensor:
        """Return the context (Figure 4) of the convolved map x: (B, C, H, W) to (B, C, H, W)."""
        if self.is_pooled_at_once:
            masks, weights, biases = [], [], []
            for pool, project in zip(self.sps, self.pws, strict=True):
                assert isinstance(pool, SpectralPooling)
                assert isinstance(project, nn.Conv2d)
                assert project.bias is not None
                masks.append(pool.mask(x.shape[2], x.shape[3]))
                weights.append(project.weight.flatten(1))
                biases.append(project.bias)
            bias = reduce(torch.add, biases)
            return pooled_linear(x.permute(0, 2, 3, 1), masks, self.radius, weights, bias).permute(0, 3, 1, 2)
        starts = accumulate(self.splits, initial=0)
        parts = [x.narrow(1, start, split) for start, split in zip(starts, self.splits, strict=False)]
        gates = [call(project, pool(part)) for project, pool, part in zip(self.pws, self.sps, parts, strict=True)]
        return reduce(AGGREGATIONS[self.aggregation], gates)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(call(self.proj_in, x))
        return call(self.proj_out, x * self.context(x))


class SPANetBlock(nn.Module):
    """SPAM, then a channel MLP, each after a norm and added to the residual stream: (B, C, H, W) to (B, C, H, W).

    ``branch_scale`` applies a learnable scale per channel to the residual stream ("res", initially 1) or to the
    branches ("layer", initially 1e-5); ``None`` for no scale.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        drop_path: float,
        branch_scale: str | None,
        act_layer: Callable,
        norm_layer: Callable,
        mixer_args: dict[str, Any],
        **dd: Any,
    ) -> None:
        super().__init__()

        def scale(kind: str, init_value: float) -> nn.Module:
            return Scale(dim, init_value, **dd) if branch_scale == kind else nn.Identity()

        self.norm1 = norm_layer(dim, **dd)
        self.token_mixer = SPAM(dim, size=size, **mixer_args, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, 4 * dim, act_layer=act_layer, layer=conv1x1, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.res_scale1, self.res_scale2 = scale("res", 1.0), scale("res", 1.0)
        self.layer_scale1, self.layer_scale2 = scale("layer", 1e-5), scale("layer", 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_scale1(x) + self.layer_scale1(self.drop_path(self.token_mixer(self.norm1(x))))
        return self.res_scale2(x) + self.layer_scale2(self.drop_path(self.mlp(self.norm2(x))))


class ConvEmbed(nn.Module):
    """Strided convolution, used as the stem and between stages: (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, in_chans: int, out_chans: int, *, stem: bool, **dd: Any) -> None:
        super().__init__()
        kernel_size, stride, padding = (7, 4, 2) if stem else (3, 2, 1)
        self.proj = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class SPANet(Pyramid):
    """SPANet; sizes in Table 1 of the paper.

    Input (B, in_chans, H, W); features (B, C, H / 32, W / 32), before the last norm; logits (B, num_classes).

    Args:
        depths: Number of blocks of each stage.
        dims: Channels of each stage.
        img_size: Image size for which the masks are created, (H, W) or one number, in pixels.
        in_chans: Channels of the images.
        num_classes: Number of classes; 0 for no classifier.
        global_pool: "avg", or "" for no pooling.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic-depth rate of the last block; it grows linearly from 0 over the blocks.
        radii: r of the masks in each stage, in frequency bins.
        branch_scale: "res" (ResScale), "layer" (LayerScale) or ``None``, in the last two stages (Table 5).
        kernel_size, balances, ring, spectral_pooling, aggregation: As in ``SPAM``.
        act_layer: Activation of MLPs, a class or a name for ``by_name.activation``.
        norm_layer: Norm of blocks, on maps (B, C, H, W), a class or a name for ``by_name.norm``.

    Raises:
        ValueError: ``img_size`` is too small, or ``branch_scale``, ``aggregation`` or ``global_pool`` is unknown, or
            the channels cannot be split among the gates.
        FreproError: There is no activation or norm of that name.
    """

    output_norm = GroupNorm1
    drawings: ClassVar = {
        "spanet_stages": ("spanet_small", "", ("SPANetBlock",)),
        "spanet_block": ("spanet_small", "network.4.0", ("SPAM",)),
        "spanet_spam": ("spanet_small", "network.4.0.token_mixer", ()),
    }

    def __init__(
        self,
        depths: Sequence[int] = (4, 4, 12, 4),
        dims: Sequence[int] = (64, 128, 320, 512),
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        radii: Sequence[float] = (2, 2, 1, 1),
        branch_scale: str | None = "res",
        kernel_size: int = 7,
        balances: Sequence[float] = (0.7, 0.8, 0.9),
        ring: float | None = 1 / 3,
        spectral_pooling: bool = True,
        aggregation: str = "add",
        act_layer: Callable | str = nn.GELU,
        norm_layer: Callable | str = GroupNorm1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(dims, img_size, num_classes, global_pool, drop_rate)
        if branch_scale not in ("res", "layer", None):
            raise ValueError(f"branch_scale must be 'res', 'layer' or None, not {branch_scale!r}")
        dd = {"device": device, "dtype": dtype}
        mixer_args = {
            "kernel_size": kernel_size,
            "balances": balances,
            "ring": ring,
            "spectral_pooling": spectral_pooling,
            "aggregation": aggregation,
        }
        act_layer, norm_layer = activation(act_layer), norm(norm_layer)
        for i, info in enumerate(self.feature_info):
            info["module"] = f"network.{2 * i}"
        self.patch_embed = ConvEmbed(in_chans, dims[0], stem=True, **dd)
        # The official layout: stages at even indices, the convolutions between them at odd ones.
        self.network = nn.ModuleList()
        drop_path_rates = stage_drop_path_rates(drop_path_rate, depths)
        for i, (dim, size) in enumerate(zip(dims, self._map_sizes(self.img_size), strict=True)):
            if i > 0:
                self.network.append(ConvEmbed(dims[i - 1], dim, stem=False, **dd))
            blocks = [
                SPANetBlock(
                    dim,
                    size=size,
                    drop_path=rate,
                    branch_scale=branch_scale if i >= 2 else None,
                    act_layer=act_layer,
                    norm_layer=norm_layer,
                    mixer_args={"radius": radii[i], **mixer_args},
                    **dd,
                )
                for rate in drop_path_rates[i]
            ]
            self.network.append(nn.Sequential(*blocks))
        self.norm = GroupNorm1(dims[-1], **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(**dd)
        # Other convolutions keep torch's initialization, as in the official code.
        for module in self.modules():
            if isinstance(module, Mlp | nn.Linear):
                module.apply(init_weights)

    @property
    def stages(self) -> list[nn.Module]:
        return list(self.network)[::2]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^network\.(\d+)"}
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (r"^network\.(\d+)\.(\d+)", None),
                (r"^network\.(\d+)\.proj", (0,)),
                (r"^norm", (99999,)),
            ],
        }

    def _stem(self, x: Tensor) -> Tensor:
        """Return images, (B, in_chans, H, W); the first section has the stem's convolution."""
        return channels_last(x)

    def _sections(self) -> list[list[nn.Module]]:
        embeds = [self.patch_embed, *list(self.network)[1::2]]
        return [[embed, stage] for embed, stage in zip(embeds, self.stages, strict=True)]

    def _keep_sections(self, count: int) -> None:
        self.network = self.network[: 2 * count - 1]

    def _feature(self, x: Tensor, norm: bool) -> Tensor:
        """Return the map, (B, C, H, W), unchanged; the only norm after the stages belongs to the head."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, (B, num_classes), or with ``pre_logits`` (B, C), for a map, (B, C, h, w).

        Without pooling, return a map of logits or channels, (B, num_classes or C, h, w).
        """
        x = self.norm(x)
        x = x.mean(dim=(2, 3)) if self.global_pool else x.permute(0, 2, 3, 1)
        x = self.head_drop(x)
        x = x if pre_logits else self.head(x)
        return x if self.global_pool else x.permute(0, 3, 1, 2)


_cfg = partial(
    default_cfg,
    pool_size=(7, 7),
    crop_pct=0.9,
    first_conv="patch_embed.proj",
    license="mit",
    paper_ids="arXiv:2308.11568",
    paper_name="SPANet: Frequency-balancing Token Mixer using Spectral Pooling Aggregation Modulation",
    origin_url="https://github.com/DoranLyong/SPANet-official",
)

SIZES = {
    "small": {"depths": (4, 4, 12, 4), "dims": (64, 128, 320, 512)},
    "medium": {"depths": (6, 6, 18, 6), "dims": (64, 128, 320, 512)},
    "mediumx": {"depths": (8, 8, 24, 8), "dims": (64, 128, 320, 512)},
    "base": {"depths": (6, 6, 18, 6), "dims": (96, 192, 384, 768)},
    "basex": {"depths": (8, 8, 24, 8), "dims": (96, 192, 384, 768)},
}

default_cfgs = published_cfgs(
    {
        **{f"spanet_{size}": _cfg() for size in ("small", "medium", "mediumx")},
        **{f"spanet_{size}": _cfg(crop_pct=0.95) for size in ("base", "basex")},
        **{
            f"spanet_small_{variant}": _cfg()
            for variant in (
                "k3",
                "k5",
                *(f"k3_{change}" for change in ("nospf", "hp", "r1111", "r4411", "noscale", "layerscale")),
            )
        },
    }
)


def _create_spanet(variant: str, pretrained: bool, size: str, kwargs: dict[str, Any], **variant_args: Any) -> SPANet:
    return create(SPANet, variant, pretrained, kwargs, **SIZES[size], **variant_args)


@register_model
def spanet_small(pretrained: bool = False, **kwargs: Any) -> SPANet:
    return _create_spanet("spanet_small", pretrained, "small", kwargs)


@register_model
def spanet_medium(pretrained: bool = False, **kwargs: Any) -> SPANet:
    return _create_spanet("spanet_medium", pretrained, "medium", kwargs)


@register_model
def spanet_mediumx(pretrained: bool = False, **kwargs: Any) -> SPANet:
    return _create_spanet("spanet_mediumx", pretrained, "mediumx", kwargs)


@register_model
def spanet_base(pretrained: bool = False, **kwargs: Any) -> SPANet:
    return _create_spanet("spanet_base", pretrained, "base", kwargs)


@register_model
def spanet_basex(pretrained: bool = False, **kwargs: Any) -> SPANet:
    return _create_spanet("spanet_basex", pretrained, "basex", kwargs)


@register_model
def spanet_small_k3(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """SPANet-S with kernel size 3, the baseline of Table 5."""
    return _create_spanet("spanet_small_k3", pretrained, "small", kwargs, kernel_size=3)


@register_model
def spanet_small_k5(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """SPANet-S with kernel size 5 (Table 5)."""
    return _create_spanet("spanet_small_k5", pretrained, "small", kwargs, kernel_size=5)


@register_model
def spanet_small_k3_nospf(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """The baseline of Table 5 without spectral pooling: the gates are only 1x1 convolutions."""
    return _create_spanet("spanet_small_k3_nospf", pretrained, "small", kwargs, kernel_size=3, spectral_pooling=False)


@register_model
def spanet_small_k3_hp(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """The baseline of Table 5 with the Hadamard product of the gates' outputs as the context."""
    return _create_spanet("spanet_small_k3_hp", pretrained, "small", kwargs, kernel_size=3, aggregation="multiply")


@register_model
def spanet_small_k3_r1111(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """The baseline of Table 5 with a radius of 1 in all stages."""
    return _create_spanet("spanet_small_k3_r1111", pretrained, "small", kwargs, kernel_size=3, radii=(1, 1, 1, 1))


@register_model
def spanet_small_k3_r4411(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """The baseline of Table 5 with a radius of 4 in the first two stages."""
    return _create_spanet("spanet_small_k3_r4411", pretrained, "small", kwargs, kernel_size=3, radii=(4, 4, 1, 1))


@register_model
def spanet_small_k3_noscale(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """The baseline of Table 5 without ResScale."""
    return _create_spanet("spanet_small_k3_noscale", pretrained, "small", kwargs, kernel_size=3, branch_scale=None)


@register_model
def spanet_small_k3_layerscale(pretrained: bool = False, **kwargs: Any) -> SPANet:
    """The baseline of Table 5 with LayerScale instead of ResScale."""
    return _create_spanet(
        "spanet_small_k3_layerscale", pretrained, "small", kwargs, kernel_size=3, branch_scale="layer"
    )
