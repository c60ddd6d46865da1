"""What every backbone owes timm, whatever its blocks are: classifier, feature maps, checkpointing, configuration."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from frepro.errors import FreproError

__all__ = ["Backbone"]


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights, 0.02 wide, and no bias, for a linear layer or convolution; others are left alone."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Backbone(nn.Module):
    """A stem, sections that each end in a feature map, a last norm and a classifier.

    A family builds its modules, fills ``feature_info`` (an entry for each section), sets
    ``head = self._make_head(...)``, and writes the methods below that raise NotImplementedError.

    Args:
        num_features: Channels of the last map.
        img_size: Size that size-dependent parameters are made for, (H, W) or one number.
        num_classes: Width of the classifier; 0 for none.
        global_pool: One of ``global_pools``, or "" for no pooling.
        drop_rate: Dropout before the classifier.
    """

    global_pools: tuple[str, ...] = ("avg",)
    last_norm = "norm"  # the attribute
    output_fmt = "NCHW"  # the layout of what the modules in ``feature_info`` give, which timm's hooks ask

    # Facts about a family that counting, dense prediction and drawing go by.
    mixer_name = "token_mixer"  # the attribute of a block that holds its token mixer
    # Submodules below which the official code writes norms out by hand; fvcore, and so the papers, count none of these.
    hand_written_norms: tuple[str, ...] = ()
    # The norm that the official dense-prediction code has on each map, called with its channels; ``None`` for no norm.
    output_norm: Callable[[int], nn.Module] | None = None
    # Name of a drawing -> the model, the submodule that is drawn ("" for all), and the classes that are one box each.
    drawings: Mapping[str, tuple[str, str, tuple[str, ...]]] = {}

    def __init__(
        self,
        num_features: int,
        img_size: int | tuple[int, int],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.img_size = to_2tuple(img_size)
        self._set_global_pool(global_pool)

    # What a family writes

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Refit size-dependent parameters to another input size, once and for good."""
        raise NotImplementedError

    def _stem(self, x: Tensor) -> Tensor:
        """Images, (B, in_chans, H, W), to what the first section takes."""
        raise NotImplementedError

    def _sections(self) -> list[list[nn.Module]]:
        """The modules to run, in order, from one feature map to the next; the last is that of ``feature_info``."""
        raise NotImplementedError

    def _keep_sections(self, count: int) -> None:
        """Drop the modules of all sections but the first ``count``."""
        raise NotImplementedError

    def _feature(self, x: Tensor, norm: bool) -> Tensor:
        """What a section gives, as the outside sees it, (B, C, H, W); through the last norm, if told."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What ``forward_features`` gives to (B, num_classes), or to (B, C) with ``pre_logits``."""
        raise NotImplementedError

    # What all share

    def _set_global_pool(self, global_pool: str | None) -> None:
        if global_pool not in (*self.global_pools, "", None):
            known = ", ".join(map(repr, self.global_pools))
            raise ValueError(f"global_pool is {known} or '' (none), not {global_pool!r}")
        self.global_pool = global_pool or ""

    def _make_head(self, **dd: Any) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes, **dd) if self.num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, device=None, dtype=None) -> None:
        """A new classifier; 0 classes for none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self._set_global_pool(global_pool)
        self.head = self._make_head(**get_device_dtype(self, device=device, dtype=dtype)).train(self.training)
        self.head.apply(init_weights)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def _run(
        self, x: Tensor, take: Collection[int] = (), norm: bool = False, stop: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the stem and the sections before ``stop``: what the last one gives, and the features of those in take."""
        x = self._stem(x)
        features = []
        for i, section in enumerate(self._sections()[:stop]):
            for module in section:
                if self.grad_checkpointing and self.training:  # block by block
                    x = checkpoint_seq(module if isinstance(module, nn.Sequential) else [module], x)
                else:
                    x = module(x)
            if i in take:
                features.append(self._feature(x, norm and self._is_wide(i)))
        return x, features

    def _is_wide(self, index: int) -> bool:
        """Whether a section gives as many channels as the last norm takes."""
        return self.feature_info[index]["num_chs"] == self.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after the chosen sections, with what ``forward_features`` gives unless told.

        Args:
            indices: Sections to take (see ``feature_info``); an int means the last n, None all.
            norm: Apply the last norm to each map that has the channels of the last one.
            stop_early: Do not run what comes after the last one taken.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Leave out the last map.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is 'NCHW' or 'NHWC', not {output_fmt!r}")
        take, last = feature_take_indices(len(self._sections()), indices)
        stop = last + 1 if stop_early else len(self._sections())
        x, maps = self._run(x, take, norm, stop)
        if output_fmt == "NHWC":
            maps = [each.permute(0, 2, 3, 1) for each in maps]
        return maps if intermediates_only else (self._feature(x, self._is_wide(stop - 1)), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the sections after the last one that ``indices`` asks for."""
        take, last = feature_take_indices(len(self._sections()), indices)
        self._keep_sections(last + 1)
        if prune_norm:
            setattr(self, self.last_norm, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the last feature map, through the last norm."""
        return self._feature(self._run(x)[0], self._is_wide(len(self._sections()) - 1))

    def __prepare_scriptable__(self) -> NoReturn:
        raise FreproError(
            f"torch.jit.script does not compile {type(self).__name__}: use torch.export or torch.jit.trace"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def families() -> list[type[Backbone]]:
    """Return every class of backbones that is defined, ``Backbone`` first, a class before those that extend it."""
    found: list[type[Backbone]] = [Backbone]
    for family in found:
        found += family.__subclasses__()
    return found


def default_cfg(**kwargs: Any) -> dict[str, Any]:
    """What timm is to know of a model; a family adds its first convolution, crop, paper, licence and origin."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,  # timm's word for a model that takes img_size; ours runs at other sizes too
        "pool_size": None,  # size of the last map, where that is what is pooled
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **kwargs,
    }


def create(
    model_class: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **variant_args: Any
) -> Any:
    """Build a registered model: the arguments that make the variant, overridden by the caller's ``kwargs``.

    ``feature_cls`` "list" and "dict" say what kind of feature maps to return, as timm's models have it; timm's classes
    of these names would string modules together, past what lies between them.
    """
    kwargs = {**variant_args, **kwargs}
    if (asked := kwargs.get("feature_cls")) in FEATURE_CLASSES:
        kwargs["feature_cls"] = FEATURE_CLASSES[asked]
    return build_model_with_cfg(
        model_class,
        variant,
        pretrained,
        feature_cfg={"out_indices": 4, "feature_cls": "getter"},  # the last four sections
        **kwargs,
    )


class FeatureDict(FeatureGetterNet):
    """Feature maps by the number of their section, as text."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        keys = map(str, self.feature_info.out_indices)
        return dict(zip(keys, super().forward(x), strict=True))


FEATURE_CLASSES = {"list": FeatureGetterNet, "dict": FeatureDict}
