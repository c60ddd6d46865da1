"""Feature maps inside a model, found by its structure: four-stage and plain backbones, ours and timm's.

A *block* is a module that holds a token mixer under one of the names used by the families. If the input of a block
differs in shape from the output of the previous one, it comes from a *downsampler* (or the patch embedding) and begins
a *stage*. If a block has a second norm, that norm's input is the residual stream between token mixer and MLP.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frepro.models.backbone import families
from frepro.models.vim import VisionMamba, split_middle

KINDS = ("downsample", "mixer", "mixer_residual", "block")

# Names of a block's token mixer in timm's MetaFormers, transformers, FocalNet and ConvNeXt; ours declare theirs.
TIMM_MIXERS = ("token_mixer", "attn", "modulation", "conv_dw")
MIXERS = tuple(dict.fromkeys([*TIMM_MIXERS, *(family.mixer_name for family in families())]))


@dataclass(frozen=True)
class Layer:
    """A place in a model.

    Attributes:
        name: Path of its block in the model; a downsampler has that of the block that follows it.
        kind: "downsample", the input of a stage's first block; "mixer", the output of the token mixer;
            "mixer_residual", the residual stream after the token mixer; "block", the stream after the block, hence
            after its MLP.
        stage: Number of the stage, from 1.
        depth: Number of the block, from 1; 0 for the first downsampler, and that of the preceding block for later ones.
    """

    name: str
    kind: str
    stage: int
    depth: int


@dataclass(frozen=True)
class FeatureMap(Layer):
    """The output of a layer.

    Attributes:
        value: (B, C, H, W), in float32 or more, without gradient.
    """

    value: Tensor

    @property
    def layer(self) -> Layer:
        return Layer(self.name, self.kind, self.stage, self.depth)


def feature_maps(model: nn.Module, images: Tensor, kinds: Iterable[str] = ("downsample", "block")) -> list[FeatureMap]:
    """Run images through a model and return the maps of the requested layers, in order of computation.

    Supports MetaFormers (ours; timm's, such as ``caformer_s18``), SPANet, GFNet, Vim and Vim-F, and timm's ViT, DeiT,
    Swin, FocalNet and ConvNeXt. Tokens are arranged on their grid and class tokens left out. The model runs in
    evaluation mode, without gradients.

    Args:
        images: (B, 3, H, W), normalised.
        kinds: Kinds of layers (see ``Layer``).

    Raises:
        ValueError: The model has no block with a token mixer, or no layer of a requested kind. GFNet, Vim and ConvNeXt
            have no "mixer_residual": one residual spans their whole block.
    """
    kinds = tuple(kinds)
    if wrong := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kind of layer {sorted(wrong)}: choose from {KINDS}")
    recorder = _Recorder(model, images.shape, kinds)
    if not recorder.blocks:
        raise ValueError(f"{type(model).__name__} has no block with a token mixer named one of {MIXERS}")
    training = model.training
    device = next(model.parameters()).device
    try:
        recorder.attach()
        with torch.no_grad():
            model.eval()(images.to(device))
    finally:
        recorder.detach()
        model.train(training)
    if missing := set(kinds) - {found.kind for found in recorder.found}:
        raise ValueError(f"{type(model).__name__} has no layer of kind {sorted(missing)}")
    return recorder.found


def stage(maps: Iterable[Any], number: int) -> list[Any]:
    """Return the items of a stage, counted from 1: feature maps, or anything derived from them that has a ``stage``."""
    return [item for item in maps if item.stage == number]


def batches(images: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """Yield images as batches: a tensor is one batch; of a loader's (images, targets) pairs, only the images."""
    for batch in (images,) if isinstance(images, Tensor) else images:
        yield batch if isinstance(batch, Tensor) else batch[0]


class _Recorder:
    """The hooks of one forward pass."""

    def __init__(self, model: nn.Module, image_shape: torch.Size, kinds: tuple[str, ...]) -> None:
        self.model = model
        self.image_shape = image_shape
        self.kinds = kinds
        self.blocks = [
            (name, module, next(getattr(module, mixer) for mixer in MIXERS if mixer in module._modules))
            for name, module in model.named_modules()
            if any(mixer in module._modules for mixer in MIXERS)
        ]
        self.found: list[FeatureMap] = []
        self.handles: list[Any] = []
        self.place = Layer("", "", stage=0, depth=0)
        self.last_shape: torch.Size | None = None
        self.mixed: Tensor | None = None

    def attach(self) -> None:
        for name, block, mixer in self.blocks:
            self._attach(name, block, mixer)

    def _attach(self, name: str, block: nn.Module, mixer: nn.Module) -> None:
        keep = partial(self._keep, channels_last=_is_channels_last(block, mixer))

        def enter(_: Any, inputs: tuple) -> None:
            x = inputs[0]
            if x.shape != self.last_shape:
                self.place = replace(self.place, name=name, stage=self.place.stage + 1)
                keep("downsample", x)
            self.place = replace(self.place, name=name, depth=self.place.depth + 1)

        def mix(_: Any, inputs: tuple, output: Tensor) -> None:
            self.mixed = output
            keep("mixer", output)

        def join_windows(_: Any, inputs: tuple) -> None:
            keep("mixer", inputs[0])

        def between(_: Any, inputs: tuple) -> None:
            if inputs[0] is not self.mixed:  # GFNet's MLP takes the filter's output, without a residual in between
                keep("mixer_residual", inputs[0])

        def leave(_: Any, inputs: tuple, output: Tensor) -> None:
            self.last_shape = output.shape
            keep("block", output)

        self.handles.append(block.register_forward_pre_hook(enter))
        if hasattr(mixer, "window_size"):  # Swin's returns windows; the complete map exists only before the sum
            self.handles.append(block.get_submodule("drop_path1").register_forward_pre_hook(join_windows))
        else:
            self.handles.append(mixer.register_forward_hook(mix))
        if len(norms := _norms(block)) > 1:
            self.handles.append(norms[1].register_forward_pre_hook(between))
        self.handles.append(block.register_forward_hook(leave))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self, kind: str, x: Tensor, *, channels_last: bool) -> None:
        if kind not in self.kinds:
            return
        x = x.detach()
        if x.ndim == 3:
            x = self._grid(x)
        elif channels_last:
            x = x.permute(0, 3, 1, 2)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.found.append(FeatureMap(self.place.name, kind, self.place.stage, self.place.depth, x))

    def _grid(self, tokens: Tensor) -> Tensor:
        """Arrange tokens, (B, N, C), on a grid with the aspect ratio of the image: (B, C, h, w)."""
        if isinstance(self.model, VisionMamba):
            tokens, _ = split_middle(tokens)
        else:
            tokens = tokens[:, getattr(self.model, "num_prefix_tokens", 0) :]
        count, (height, width) = tokens.shape[1], self.image_shape[-2:]
        rows = round((count * height / width) ** 0.5)
        if rows == 0 or count % rows:
            raise ValueError(f"{count} tokens do not form a grid with the aspect ratio of {height} x {width} pixels")
        return tokens.transpose(1, 2).unflatten(2, (rows, count // rows))


def _norms(block: nn.Module) -> list[nn.Module]:
    return [child for child in block.children() if "norm" in type(child).__name__.lower()]


def _is_channels_last(block: nn.Module, mixer: nn.Module) -> bool:
    """Return whether a block's 4D maps are (B, H, W, C), as its first norm shows unless the mixer is a convolution."""
    if isinstance(mixer, nn.Conv2d):  # ConvNeXt, which permutes between the convolution and its norm
        return False
    norm = _norms(block)[0]
    return not (isinstance(norm, nn.GroupNorm | nn.BatchNorm2d) or "2d" in type(norm).__name__)
