"""Vision Mamba (Vim): a plain backbone of bidirectional Mamba layers with the class token in the middle of the patches.

"Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", Zhu et al., ICML 2024,
https://arxiv.org/abs/2401.09417. Official code: https://github.com/hustvl/Vim (read at dd0358a, Apache-2.0). This file
is an independent implementation; tensor names are the official ones, so the authors' checkpoints load unchanged.

BibTeX::

    @inproceedings{zhu2024vim,
      title     = {Vision {Mamba}: Efficient Visual Representation Learning with Bidirectional State Space Model},
      author    = {Zhu, Lianghui and Liao, Bencheng and Zhang, Qian and Wang, Xinlong and Liu, Wenyu and
                   Wang, Xinggang},
      booktitle = {ICML},
      year      = {2024}
    }

Paper, official code, frepro:

- The paper adds the outputs of the two directions (Algorithm 1); the released models halve the sum, and so does frepro
  (``average_directions=False`` adds them).
- The paper's eq. 4 puts the class token first; the models have it in the middle, the best position in its ablation.
- Official blocks pass on a residual and an output that is not yet added to it, for a fused kernel. frepro's are
  ordinary residual blocks, x + drop_path(mixer(norm(x))), which compute the same function. The official list of
  drop-path rates, shifted by one layer, becomes the usual linear one, 0 to ``drop_path_rate``. The residual stream is
  float32, as in the official code.
- The projection to step sizes has Mamba's initialisation in the forward direction, but not in the backward direction:
  there, its bias starts at 0, so steps start at about 0.7, while Mamba's are 0.001 to 0.1. frepro follows the code.
- Attributes in the code are meant to exempt ``A_log`` and ``D`` from weight decay, but nothing reads them: the matrices
  ``A_log`` and ``A_b_log`` were decayed. ``no_weight_decay`` names what was exempt.
- The official model takes one image size; frepro's takes any (see ``resize_pos_embed``). The official resizing for
  fine-tuning treats row 0 as the class token's, which is the middle row, and so shifts half of the grid by one.
- ``drop_rate`` is a dropout before the classifier, as in timm; officially it acts on the position embedding, but it is
  0 in every official run.
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
    lecun_normal_,
    resample_abs_pos_embed,
    to_2tuple,
    trunc_normal_,
)
from timm.models import register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from frepro.models.backbone import Backbone, create, default_cfg, init_weights, published_cfgs, stage_drop_path_rates
from frepro.models.layers import call, is_untouched
from frepro.ops import causal_conv, eager, linear, selective_scan
from frepro.ops.precision import float32_or_more

__all__ = ["BidirectionalMamba", "VimBlock", "VisionMamba"]

REVISION = {"vim": 1}

for _operation in ("causal_conv", "float32_or_more", "linear", "resize_pos_embed", "selective_scan"):
    torch.fx.wrap(_operation)  # one node in graphs of torch.fx, which do not know the sizes it depends on


class BidirectionalMamba(nn.Module):
    """Mamba over the sequence and over its reverse ("bimamba v2"): (B, L, C) to (B, L, C).

    The two directions share the input and output projections and the gate. Each has its own causal convolution, its own
    step sizes, B and C, which depend on the input, and its own A and D. Parameters of the backward direction have
    ``_b`` in their names.

    Args:
        dim: C.
        expand: Inner channels relative to C.
        d_state: N, the size of each channel's state.
        d_conv: Width of the causal convolution.
        average_directions: Average the two directions instead of adding them.
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
        """Initialise step sizes, softplus(bias), log-uniformly in [smallest, largest], in the forward direction only.

        See the top of this file.
        """
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        steps = torch.empty_like(self.dt_proj.bias).uniform_(math.log(smallest), math.log(largest)).exp()
        self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus
        nn.init.zeros_(self.dt_proj_b.bias)

    def _scan(self, x: Tensor, gate: Tensor, suffix: str, reverse: bool) -> Tensor:
        """Run one direction and apply the gate. x, gate, result: (B, E, L)."""
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
    """Norm and Mamba, added to the residual stream: (B, L, C) to (B, L, C)."""

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
    """One convolution over patches of 16 x 16 pixels, which overlap if stride < 16: (B, C, H, W) to (B, h, w, D)."""

    def __init__(self, in_chans: int, dim: int, *, stride: int, **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 16, stride, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


def insert_middle(tokens: Tensor, middle: Tensor) -> Tensor:
    """Insert the class token, (B, 1, C), into the patches, (B, M, C), at index M // 2 (98 of 197 at 224 pixels)."""
    index = tokens.shape[1] // 2
    return torch.cat([tokens[:, :index], middle, tokens[:, index:]], dim=1)


def split_middle(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Undo ``insert_middle``: split (B, M + 1, C) into patches in raster order, (B, M, C), and class token, (B, C)."""
    index = (tokens.shape[1] - 1) // 2
    return torch.cat([tokens[:, :index], tokens[:, index + 1 :]], dim=1), tokens[:, index]


def resize_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize position embeddings to another grid. The middle row remains the class token's.

    The grid is interpolated as in the official fine-tuning: bicubic, corners not aligned, no anti-aliasing.

    Args:
        pos_embed: (1, h * w + 1, C).
        old: Height and width of its grid.
        new: Height and width of the new grid.

    Returns:
        (1, new_h * new_w + 1, C); ``pos_embed`` itself if the grids are the same.
    """
    if eager.is_same_size(old, new):
        return pos_embed
    grid, middle = split_middle(pos_embed)
    grid = resample_abs_pos_embed(grid, list(new), list(old), num_prefix_tokens=0, antialias=False)
    return insert_middle(grid, middle[:, None])


class VisionMamba(Backbone):
    """Vision Mamba with a class token in the middle of the patches.

    Input (B, in_chans, H, W); tokens (B, h * w + 1, C) with h = H / stride; logits (B, num_classes).

    Args:
        img_size: Image size for which position embeddings are created, (H, W) or one number, in pixels.
        stride: Distance between patches in pixels.
        in_chans: Channels of the images.
        num_classes: Number of classes; 0 for no classifier.
        embed_dim: C.
        depth: Number of blocks.
        pos_embed: Add learned position embeddings.
        global_pool: "token" (the class token), "avg" (the mean of the patches) or "" (all tokens).
        d_state: Size of the scan's state for each channel.
        average_directions: Average the two scan directions instead of adding them.
        embed_layer: Called as ``embed_layer(in_chans, dim, stride=, device=, dtype=)``; (B, C, H, W) to (B, h, w, C).
        block_layers: The class of each block; ``None`` means ``VimBlock`` for all.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic-depth rate of the last block; it grows linearly from 0 over the blocks.

    Raises:
        ValueError: The image size has no complete patch, or ``global_pool`` is unknown.
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
        block_layers: Sequence[type[VimBlock]] | None = None,
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
                block_layers or [VimBlock] * depth, stage_drop_path_rates(drop_path_rate, [depth])[0], strict=True
            )
        )
        self.norm_f = RmsNorm(embed_dim, eps=1e-5, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(**dd)
        self._init_weights()

    def _grid_size(self, img_size: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the patch grid, the output size of the embedding's convolutions."""
        height, width = img_size
        for conv in self.patch_embed.modules():
            if isinstance(conv, nn.Conv2d):
                assert not isinstance(conv.padding, str)
                height, width = (
                    (side + 2 * pad - kernel) // stride + 1
                    for side, pad, kernel, stride in zip(
                        (height, width), conv.padding, conv.kernel_size, conv.stride, strict=True
                    )
                )
        if min(height, width) < 1:
            raise ValueError(f"img_size {tuple(img_size)} is too small: it has no complete patch")
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
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.layers:  # as in GPT-2, because the residual stream is the sum of all blocks' outputs
            assert isinstance(block, VimBlock)
            block.mixer.out_proj.weight.div_(math.sqrt(len(self.layers)))

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize position embeddings permanently to another image size (see ``resize_pos_embed``).

        Args:
            img_size: (H, W) or one number, in pixels.

        Raises:
            ValueError: The size has no complete patch.
        """
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
        """Return the residual stream of images, (B, h * w + 1, C), in float32 or wider."""
        x = self.patch_embed(x)
        grid_size = (x.shape[1], x.shape[2])
        if self.pos_embed is not None and eager.is_traced() and grid_size == self.grid_size:
            # Has no effect, except that a traced model rejects another grid with the same number of patches.
            x = x.expand(-1, *self.grid_size, -1)
        x = insert_middle(x.flatten(1, 2), self.cls_token.expand(x.shape[0], -1, -1))
        if self.pos_embed is not None:
            x = x + resize_pos_embed(self.pos_embed, self.grid_size, grid_size)
        return float32_or_more(x)

    def _sections(self) -> list[list[nn.Module]]:
        return [[block] for block in self.layers]

    def _keep_sections(self, count: int) -> None:
        self.layers = self.layers[:count]

    def _feature(self, x: Tensor, norm: bool) -> Tensor:
        """Return all tokens, (B, h * w + 1, C), the class token in the middle, in the dtype of the weights."""
        x = x.to(self.cls_token.dtype)
        return self.norm_f(x) if norm else x

    def forward_intermediates(  # type: ignore[override]  # timm's order of arguments for models with a class token
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Return the patches after the selected blocks, and the output of ``forward_features``.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: Blocks to select; an int selects the last n, ``None`` all.
            return_prefix_tokens: Return pairs of patches and class token, (B, 1, C).
            norm: Apply the final norm to each map.
            stop_early: Stop after the last selected block.
            output_fmt: "NCHW" for patches (B, C, h, w), or "NLC" for (B, h * w, C).
            intermediates_only: Return only the list of patches.

        Returns:
            All tokens after the final norm, (B, h * w + 1, C), and the list of selected patches; or only the list.

        Raises:
            ValueError: ``output_fmt`` is unknown, or the images have no complete patch.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', not {output_fmt!r}")
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
        """Return logits, (B, num_classes), or with ``pre_logits`` (B, C), for tokens, (B, h * w + 1, C).

        Without pooling, return logits or channels of each token, (B, h * w + 1, num_classes or C).
        """
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

default_cfgs = published_cfgs(
    {f"vim_{size}{variant}": vim_cfg() for size in SIZES for variant in ("", "_stride8", "_nope")}
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
    """Vim-Ti with patches 8 pixels apart, 729 patches at 224 pixels ("Vim-Ti+" in the official code)."""
    return create(VisionMamba, "vim_tiny_stride8", pretrained, kwargs, stride=8, **SIZES["tiny"])


@register_model
def vim_small_stride8(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S with patches 8 pixels apart, 729 patches at 224 pixels ("Vim-S+" in the official code)."""
    return create(VisionMamba, "vim_small_stride8", pretrained, kwargs, stride=8, **SIZES["small"])


@register_model
def vim_tiny_nope(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti without position embedding (Vim-F, Table 5)."""
    return create(VisionMamba, "vim_tiny_nope", pretrained, kwargs, pos_embed=False, **SIZES["tiny"])


@register_model
def vim_small_nope(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S without position embedding."""
    return create(VisionMamba, "vim_small_nope", pretrained, kwargs, pos_embed=False, **SIZES["small"])
