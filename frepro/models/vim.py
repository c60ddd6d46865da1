"""Vision Mamba (Vim): a plain backbone of bidirectional Mamba layers with the class token amid the patches.

"Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", Zhu et al., ICML 2024,
https://arxiv.org/abs/2401.09417. Official code: https://github.com/hustvl/Vim (read at dd0358a, Apache-2.0). This file
was written anew; tensor names are the official ones, so the authors' checkpoints load as they are.

    @inproceedings{zhu2024vim,
      title     = {Vision {Mamba}: Efficient Visual Representation Learning with Bidirectional State Space Model},
      author    = {Zhu, Lianghui and Liao, Bencheng and Zhang, Qian and Wang, Xinlong and Liu, Wenyu and
                   Wang, Xinggang},
      booktitle = {ICML},
      year      = {2024}
    }

Paper, official code, frepro:
- The paper adds the outputs of the two directions (Algorithm 1); the released models halve the sum, and so do we
  (``average_directions=False`` adds them).
- The paper's eq. 4 puts the class token first; the models have it in the middle, the best place of its ablation.
- Official blocks hand on a residual and an output not yet added to it, for a fused kernel's sake. Ours are common
  residual blocks, x + drop_path(mixer(norm(x))), the same function; the official list of drop-path rates, shifted by
  one layer, becomes the common linear one, 0 to ``drop_path_rate``. The residual stream is float32, as it is there.
- The step sizes' projection of the forward direction has Mamba's own initialisation; that of the backward direction
  has none (its bias starts at 0, so its steps at about 0.7 where Mamba's are 0.001 to 0.1). We follow the code.
- Marks in the code mean to exempt ``A_log`` and ``D`` from weight decay, but nothing reads them: the matrices ``A_log``
  and ``A_b_log`` were decayed. ``no_weight_decay`` names what was exempt.
- The official model takes one size. Ours takes any: see ``resize_pos_embed``. (The official resizing for fine-tuning
  takes row 0 for the class token's, where the middle row is, and so moves half of the grid by one.)
- ``drop_rate`` is a dropout before the classifier, timm's meaning; officially it acts on the position embedding, but
  every official run has 0.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import (
    DropPath,
    RmsNorm,
    calculate_drop_path_rates,
    lecun_normal_,
    resample_abs_pos_embed,
    to_2tuple,
    trunc_normal_,
)
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from frepro.models.backbone import Backbone, create, default_cfg, init_weights
from frepro.models.layers import call, is_untouched
from frepro.ops import causal_conv, eager, linear, selective_scan
from frepro.ops.precision import float32_or_more

__all__ = ["BidirectionalMamba", "VimBlock", "VisionMamba"]

REVISION = {"vim": 1}

for _operation in ("causal_conv", "float32_or_more", "linear", "resize_pos_embed", "selective_scan"):
    torch.fx.wrap(_operation)  # a node of torch.fx's graphs: what it does depends on sizes, which they lack


class BidirectionalMamba(nn.Module):
    """Mamba over the sequence and over its reverse ("bimamba v2"): (B, L, C) to (B, L, C).

    The directions share the projections in and out and the gate. Each has its own causal convolution, its own step
    sizes, B and C from the input, and its own A and D; parameters of the backward direction have a ``_b`` in the name.

    Args:
        expand: Inner channels relative to C.
        d_state: N, the size of each channel's state.
        d_conv: Width of the causal convolution.
        average_directions: Halve the sum of the two directions.
    """

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        average_directions: bool = True,
        **dd: Any,
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.dt_rank = math.ceil(dim / 16)
        self.d_state = d_state
        self.average_directions = average_directions
        conv1d = partial(nn.Conv1d, inner, inner, d_conv, groups=inner, padding=d_conv - 1, **dd)
        rates = torch.arange(1, d_state + 1, **dd).log().repeat(inner, 1)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **dd)
        self.conv1d, self.conv1d_b = conv1d(), conv1d()
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.x_proj_b = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_proj = nn.Linear(self.dt_rank, inner, **dd)
        self.dt_proj_b = nn.Linear(self.dt_rank, inner, **dd)
        self.A_log, self.A_b_log = nn.Parameter(rates), nn.Parameter(rates.clone())
        self.D, self.D_b = nn.Parameter(torch.ones(inner, **dd)), nn.Parameter(torch.ones(inner, **dd))
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self._init_steps()

    @torch.no_grad()
    def _init_steps(self, smallest: float = 0.001, largest: float = 0.1) -> None:
        """Step sizes softplus(bias) log-uniform in [smallest, largest], forward direction only (see the file's top)."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        steps = torch.empty_like(self.dt_proj.bias).uniform_(math.log(smallest), math.log(largest)).exp()
        self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus
        nn.init.zeros_(self.dt_proj_b.bias)

    def _scan(self, x: Tensor, gate: Tensor, suffix: str, reverse: bool) -> Tensor:
        """One direction with the gate upon it: (B, E, L) twice to (B, E, L)."""
        conv1d, x_proj, dt_proj = (getattr(self, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        A_log, D = getattr(self, f"A{suffix}_log"), getattr(self, f"D{suffix}")
        if is_untouched(conv1d, nn.Conv1d):
            x = causal_conv(x, conv1d.weight[:, 0], conv1d.bias, reverse=reverse)
        else:
            x = F.silu(conv1d(x.flip(2) if reverse else x)[..., : x.shape[2]])
            x = x.flip(2) if reverse else x
        steps, B, C = call(x_proj, x.transpose(1, 2)).split([self.dt_rank, self.d_state, self.d_state], dim=2)
        if is_untouched(dt_proj, nn.Linear):
            delta, bias = linear(steps, dt_proj.weight), dt_proj.bias  # the scan adds the bias, in float32
        else:
            delta, bias = dt_proj(steps), None
        delta, B, C = (t.transpose(1, 2) for t in (delta, B, C))
        A = -float32_or_more(A_log).exp()
        return selective_scan(x, delta, A, B, C, D, gate, delta_bias=bias, delta_softplus=True, reverse=reverse)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = call(self.in_proj, x).transpose(1, 2).chunk(2, dim=1)  # (B, E, L) each
        forward, backward = self._scan(x, gate, "", False), self._scan(x, gate, "_b", True)
        y = torch.lerp(forward, backward, 0.5) if self.average_directions else forward + backward
        return call(self.out_proj, y.transpose(1, 2))


class VimBlock(nn.Module):
    """Mamba behind a norm, added to the residual stream: (B, L, C) to (B, L, C)."""

    def __init__(self, dim: int, *, drop_path: float, mixer: Callable, **dd: Any) -> None:
        super().__init__()
        self.mixer = mixer(dim, **dd)
        self.norm = RmsNorm(dim, eps=1e-5, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def mix(self, x: Tensor) -> Tensor:
        return self.mixer(x)

    def forward(self, x: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype  # whatever somebody has put in the norm's place
        return x + self.drop_path(self.mix(self.norm(x.to(dtype))))


class PatchEmbed(nn.Module):
    """One convolution over patches of 16 x 16 pixels, overlapping where stride < 16: (B, C, H, W) to (B, h, w, D)."""

    def __init__(self, in_chans: int, dim: int, *, stride: int, **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 16, stride, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


def insert_middle(tokens: Tensor, middle: Tensor) -> Tensor:
    """Put the class token, (B, 1, C), amid the patches, (B, M, C), at index M // 2 (98 of 197 at 224 pixels)."""
    index = tokens.shape[1] // 2
    return torch.cat([tokens[:, :index], middle, tokens[:, index:]], dim=1)


def split_middle(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Undo ``insert_middle``: (B, M + 1, C) to the patches in raster order, (B, M, C), and the class token, (B, C)."""
    index = (tokens.shape[1] - 1) // 2
    return torch.cat([tokens[:, :index], tokens[:, index + 1 :]], dim=1), tokens[:, index]


def resize_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Fit position embeddings to another grid: the middle row stays the class token's, the rest is one picture.

    The picture is interpolated as the official fine-tuning does, bicubic, corners not aligned, no anti-aliasing.

    Args:
        pos_embed: (1, h * w + 1, C).
        old: Height and width of its grid.
        new: Height and width of the grid to fit.

    Returns:
        (1, new_h * new_w + 1, C); ``pos_embed`` itself where the grids are the same.
    """
    if eager.is_same_size(old, new):
        return pos_embed
    grid, middle = split_middle(pos_embed)
    grid = resample_abs_pos_embed(grid, list(new), list(old), num_prefix_tokens=0, antialias=False)
    return insert_middle(grid, middle[:, None])


class VisionMamba(Backbone):
    """Vision Mamba with a class token amid the patches.

    Input (B, in_chans, H, W); tokens (B, h * w + 1, C) with h = H / stride; logits (B, num_classes).

    Args:
        img_size: Size that position embeddings are made for, (H, W) or one number.
        stride: Distance of patches in pixels.
        pos_embed: Add learnt position embeddings.
        global_pool: "token" (the class token), "avg" (the mean of the patches) or "" (all tokens).
        d_state: Size of the scan's state for each channel.
        average_directions: Halve the sum of the two scan directions.
        embed_layer: Called as ``embed_layer(in_chans, dim, stride=, device=, dtype=)``; (B, C, H, W) to (B, h, w, C).
        block_layers: The class of each block; ``VimBlock`` for all unless given.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over the blocks.
    """

    global_pools = ("token", "avg")
    last_norm = "norm_f"
    output_fmt = "NLC"

    mixer_name = "mixer"
    drawings: ClassVar = {
        "vim_whole": ("vim_tiny", "", ("VimBlock",)),
        "vim_mamba": ("vim_tiny", "layers.0.mixer", ()),
    }

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        stride: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        pos_embed: bool = True,
        global_pool: str = "token",
        d_state: int = 16,
        average_directions: bool = True,
        embed_layer: Callable = PatchEmbed,
        block_layers: Sequence[Callable] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(embed_dim, img_size, num_classes, global_pool, drop_rate)
        dd = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self.feature_info = [{"num_chs": embed_dim, "reduction": stride, "module": f"layers.{i}"} for i in range(depth)]

        self.patch_embed = embed_layer(in_chans, embed_dim, stride=stride, **dd)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd))
        self.grid_size = self._grid_size(self.img_size)
        rows = math.prod(self.grid_size) + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, embed_dim, **dd)) if pos_embed else None
        mixer = partial(BidirectionalMamba, d_state=d_state, average_directions=average_directions)
        self.layers = nn.ModuleList(
            block(embed_dim, drop_path=rate, mixer=mixer, **dd)
            for block, rate in zip(
                block_layers or [VimBlock] * depth, calculate_drop_path_rates(drop_path_rate, depth), strict=True
            )
        )
        self.norm_f = RmsNorm(embed_dim, eps=1e-5, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(**dd)
        self._init_weights()

    def _grid_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the patch grid: what the embedding's convolutions leave of an image."""
        height, width = img_size
        for conv in self.patch_embed.modules():
            if isinstance(conv, nn.Conv2d):
                height, width = (
                    (side + 2 * pad - kernel) // stride + 1
                    for side, pad, kernel, stride in zip(
                        (height, width), conv.padding, conv.kernel_size, conv.stride, strict=True
                    )
                )
        if min(height, width) < 1:
            raise ValueError(f"img_size {img_size} is too small: it holds no patch")
        return height, width

    @torch.no_grad()
    def _init_weights(self) -> None:
        self.head.apply(init_weights)
        trunc_normal_(self.cls_token, std=0.02)
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        for module in self.patch_embed.modules():
            if isinstance(module, nn.Conv2d):
                lecun_normal_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.layers:  # as GPT-2: the residual stream sums as many outputs as there are blocks
            block.mixer.out_proj.weight.div_(math.sqrt(len(self.layers)))

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Refit position embeddings to another input size, once and for good (see ``resize_pos_embed``)."""
        self.img_size = to_2tuple(img_size)
        old, self.grid_size = self.grid_size, self._grid_size(self.img_size)
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(resize_pos_embed(self.pos_embed.detach(), old, self.grid_size))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"} if self.pos_embed is None else {"cls_token", "pos_embed"}

    def _stem(self, x: Tensor) -> Tensor:
        """Images to the residual stream, (B, h * w + 1, C) in float32 at least."""
        x = self.patch_embed(x)
        grid_size = (x.shape[1], x.shape[2])
        if self.pos_embed is not None and torch._C._is_tracing() and grid_size == self.grid_size:
            x = x.expand(-1, *self.grid_size, -1)  # as it is: a traced model refuses another grid with as many patches
        x = insert_middle(x.flatten(1, 2), self.cls_token.expand(x.shape[0], -1, -1))
        if self.pos_embed is not None:
            x = x + resize_pos_embed(self.pos_embed, self.grid_size, grid_size)
        return float32_or_more(x)

    def _sections(self) -> list[list[nn.Module]]:
        return [[block] for block in self.layers]

    def _keep_sections(self, count: int) -> None:
        self.layers = self.layers[:count]

    def _feature(self, x: Tensor, norm: bool) -> Tensor:
        """All tokens, (B, h * w + 1, C), the class token amid the patches, in the dtype of the weights."""
        x = x.to(self.cls_token.dtype)
        return self.norm_f(x) if norm else x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """The patches after the chosen blocks, (B, C, h, w) or (B, h * w, C), with the last tokens unless told.

        Args:
            indices: Blocks to take; an int means the last n, None all.
            return_prefix_tokens: Give each as a pair with its class token, (B, 1, C).
            norm: Apply the final norm to each.
            stop_early: Do not run the blocks after the last one taken.
            output_fmt: "NCHW" or "NLC".
            intermediates_only: Leave out the last tokens, which are normed, (B, h * w + 1, C).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is 'NCHW' or 'NLC', not {output_fmt!r}")
        grid_size = self._grid_size(x.shape[2:])
        take, last = feature_take_indices(len(self.layers), indices)
        x, features = self._run(x, take, norm, stop=last + 1 if stop_early else None)
        intermediates = []
        for tokens in features:
            patches, middle = split_middle(tokens)
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, grid_size)
            intermediates.append((patches, middle[:, None]) if return_prefix_tokens else patches)
        return intermediates if intermediates_only else (self._feature(x, norm=True), intermediates)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h * w + 1, C) to (B, num_classes), or to (B, C) with ``pre_logits``."""
        if self.global_pool:
            patches, middle = split_middle(x)
            x = middle if self.global_pool == "token" else patches.mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


vim_cfg = partial(
    default_cfg,
    crop_pct=0.875,
    first_conv="patch_embed.proj",
    license="apache-2.0",
    paper_ids="arXiv:2401.09417",
    paper_name="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
    origin_url="https://github.com/hustvl/Vim",
)

SIZES = {"tiny": {"embed_dim": 192}, "small": {"embed_dim": 384}}

default_cfgs = generate_default_cfgs(
    {f"vim_{size}{variant}.untrained": vim_cfg() for size in SIZES for variant in ("", "_stride8", "_nope")}
)


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti ("Vim-Ti (base)" in Vim-F's Table 5)."""
    return create(VisionMamba, "vim_tiny", pretrained, kwargs, **SIZES["tiny"])


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S."""
    return create(VisionMamba, "vim_small", pretrained, kwargs, **SIZES["small"])


@register_model
def vim_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti at patches 8 pixels apart, 729 tokens at 224 pixels ("Vim-Ti+" of the official code)."""
    return create(VisionMamba, "vim_tiny_stride8", pretrained, kwargs, stride=8, **SIZES["tiny"])


@register_model
def vim_small_stride8(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S at patches 8 pixels apart, 729 tokens at 224 pixels ("Vim-S+" of the official code)."""
    return create(VisionMamba, "vim_small_stride8", pretrained, kwargs, stride=8, **SIZES["small"])


@register_model
def vim_tiny_nope(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti without position embedding (Vim-F, Table 5)."""
    return create(VisionMamba, "vim_tiny_nope", pretrained, kwargs, pos_embed=False, **SIZES["tiny"])


@register_model
def vim_small_nope(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S without position embedding."""
    return create(VisionMamba, "vim_small_nope", pretrained, kwargs, pos_embed=False, **SIZES["small"])
