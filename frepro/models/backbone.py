"""The part of timm's interface that all backbones share: classifier, feature maps, checkpointing, configuration."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, cast

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates, get_device_dtype, to_2tuple, trunc_normal_
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    load_pretrained,
)
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

from frepro.errors import FreproError
from frepro.models import published
from frepro.models.official import check_fit, image_side, misfits, read, unwrap

__all__ = ["Backbone"]


def init_weights(module: nn.Module) -> None:
    """Initialise a linear layer or convolution: weights truncated normal with a standard deviation of 0.02, zero bias.

    Other modules are left unchanged.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def stage_drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the stochastic-depth rate of each block of each stage: it grows linearly from 0 to ``rate``."""
    return cast("list[list[float]]", calculate_drop_path_rates(rate, list(depths), stagewise=True))


class Backbone(nn.Module):
    """A stem, sections that each end in a feature map, a last norm and a classifier.

    A family builds its modules, fills ``feature_info`` (one entry per section), sets ``head = self._make_head(...)``,
    and implements the methods below that raise NotImplementedError.

    Args:
        num_features: Channels of the last map.
        img_size: Image size for which size-dependent parameters are created, (H, W) or one number, in pixels.
        num_classes: Number of classes; 0 for no classifier.
        global_pool: One of ``global_pools``, or "" for no pooling.
        drop_rate: Dropout before the classifier.

    Raises:
        ValueError: ``global_pool`` is unknown.
    """

    global_pools: tuple[str, ...] = ("avg",)
    last_norm = "norm"  # the attribute
    output_fmt = "NCHW"  # the layout of what the modules in ``feature_info`` give, which timm's hooks ask

    # Properties of a family that cost counts, dense prediction and drawings use.
    mixer_name = "token_mixer"  # the attribute of a block that holds its token mixer
    # Prefixes of submodules whose norms are written out by hand in the official code; fvcore does not count these, so
    # neither do the papers.
    hand_written_norms: tuple[str, ...] = ()
    # The norm that the official dense-prediction code applies to each map, called with the channels; ``None`` for none.
    output_norm: Callable[[int], nn.Module] | None = None
    # Name of a drawing -> model, submodule to draw ("" for the complete model), and classes that are drawn as one box.
    drawings: ClassVar[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {}

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

    # Methods that a family implements

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize size-dependent parameters permanently to another image size, (H, W) or one number, in pixels."""
        raise NotImplementedError

    def _stem(self, x: Tensor) -> Tensor:
        """Return the input of the first section for images, (B, in_chans, H, W)."""
        raise NotImplementedError

    def _sections(self) -> list[list[nn.Module]]:
        """Return the modules of each section, in order; the last one of each is the module in ``feature_info``."""
        raise NotImplementedError

    def _keep_sections(self, count: int) -> None:
        """Drop the modules of all sections after the first ``count``."""
        raise NotImplementedError

    def _feature(self, x: Tensor, norm: bool) -> Tensor:
        """Return a section's output as a public feature map, (B, C, H, W); with ``norm``, after the last norm."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, (B, num_classes), or with ``pre_logits`` (B, C), for the output of ``forward_features``."""
        raise NotImplementedError

    # Methods that all families share

    def _set_global_pool(self, global_pool: str | None) -> None:
        if global_pool not in (*self.global_pools, "", None):
            known = ", ".join(map(repr, self.global_pools))
            raise ValueError(f"global_pool must be {known} or '' (none), not {global_pool!r}")
        self.global_pool = global_pool or ""

    def _make_head(self, **dd: Any) -> nn.Module:
        return nn.Linear(self.num_features, self.num_classes, **dd) if self.num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, device=None, dtype=None) -> None:
        """Replace the classifier by a new one; 0 classes for no classifier.

        Raises:
            ValueError: ``global_pool`` is unknown.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            self._set_global_pool(global_pool)
        self.head = self._make_head(**get_device_dtype(self, device=device, dtype=dtype)).train(self.training)
        self.head.apply(init_weights)

    def load_pretrained(self, path: str) -> None:
        """Load published weights from a file. timm calls this for ``pretrained=True``.

        As in timm, a classifier of another number of classes keeps its initial values, and the first convolution is
        adapted to other input channels. Filters and position embeddings are resized to the model's image size.

        Raises:
            FreproError: The file cannot be read, or does not fit the model.
        """
        config: dict[str, Any] = self.pretrained_cfg  # type: ignore[assignment]  # timm sets it; nn.Module says Tensor
        tensors = unwrap(read(path), named=path)
        first, last = f"{config['first_conv']}.weight", config["classifier"]
        head, classes = {f"{last}.weight", f"{last}.bias"}, len(tensors.get(f"{last}.weight", ()))
        if self.num_classes == 0:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
        elif classes == self.num_classes:  # in a file that the user chose, perhaps not ImageNet's
            config = {**config, "num_classes": classes}
        # All families can resize what they have loaded, so the model takes the file's image size first.
        size, file_size = self.img_size, config["input_size"][-2:]
        self.set_input_size(file_size)
        body = {name: tensor for name, tensor in tensors.items() if name not in {first, *head}}
        if (side := image_side(self, body)) is not None:
            self.set_input_size(side)
            if misfits(self, body):
                self.set_input_size(file_size)
        own = self.state_dict()
        adapted = set() if config["num_classes"] == self.num_classes else head
        shape = list(tensors[first].shape) if first in tensors else []
        if shape[1:2] == [config["input_size"][0]] and shape[:1] + shape[2:] == [
            len(own[first]),
            *own[first].shape[2:],
        ]:
            adapted = adapted | {first}
        check_fit(self, tensors, path, adapted)
        fixed = {name: own[name] for name in own.keys() - tensors.keys() - head}  # SPANet's masks
        load_pretrained(
            self,
            {**config, "state_dict": {**fixed, **tensors}},
            num_classes=self.num_classes,
            in_chans=own[first].shape[1],
        )
        self.set_input_size(size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def _run(
        self, x: Tensor, take: Collection[int] = (), norm: bool = False, stop: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the stem and the sections before ``stop``; return the last output and the features of those in take."""
        x = self._stem(x)
        features = []
        for i, section in enumerate(self._sections()[:stop]):
            for module in section:
                if self.grad_checkpointing and self.training:  # checkpoint each block separately
                    x = checkpoint_seq(module if isinstance(module, nn.Sequential) else [module], x)
                else:
                    x = module(x)
            if i in take:
                features.append(self._feature(x, norm and self._is_wide(i)))
        return x, features

    def _is_wide(self, index: int) -> bool:
        """Return whether the map of a section has as many channels as the last norm."""
        info: Any = self.feature_info  # a list, or timm's FeatureInfo, which the annotations of nn.Module leave out
        return bool(info[index]["num_chs"] == self.num_features)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the feature maps of the selected sections, and the output of ``forward_features``.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: Sections to select (see ``feature_info``); an int selects the last n, ``None`` all.
            norm: Apply the last norm to each map that has the channels of the last one.
            stop_early: Stop after the last selected section.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Return only the list of maps.

        Returns:
            The last map, (B, C, h, w), and the list of selected maps; or only the list.

        Raises:
            ValueError: ``output_fmt`` is unknown.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', not {output_fmt!r}")
        take, last = feature_take_indices(len(self._sections()), indices)
        stop = last + 1 if stop_early else len(self._sections())
        x, maps = self._run(x, take, norm, stop)
        if output_fmt == "NHWC":
            maps = [each.permute(0, 2, 3, 1) for each in maps]
        return maps if intermediates_only else (self._feature(x, self._is_wide(stop - 1)), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the sections after the last one that ``indices`` selects, and return the selected indices.

        Args:
            indices: As in ``forward_intermediates``.
            prune_norm: Replace the last norm by an identity.
            prune_head: Remove the classifier and the pooling before it.
        """
        take, last = feature_take_indices(len(self._sections()), indices)
        self._keep_sections(last + 1)
        if prune_norm:
            setattr(self, self.last_norm, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map of images, (B, in_chans, H, W), after the last norm."""
        return self._feature(self._run(x)[0], self._is_wide(len(self._sections()) - 1))

    def __prepare_scriptable__(self) -> NoReturn:
        raise FreproError(
            f"torch.jit.script does not compile {type(self).__name__}: use torch.export or torch.jit.trace"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, num_classes), for images, (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def families() -> list[type[Backbone]]:
    """Return all backbone classes, ``Backbone`` first, each class before its subclasses."""
    found: list[type[Backbone]] = [Backbone]
    for family in found:
        found += family.__subclasses__()
    return found


def default_cfg(**kwargs: Any) -> dict[str, Any]:
    """Return timm's configuration of a model; a family adds its first convolution, crop, paper, licence and origin."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,  # in timm, this means that the model takes img_size; ours also run at other sizes
        "pool_size": None,  # size of the last map if that map is pooled
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **kwargs,
    }


def published_cfgs(cfgs: Mapping[str, dict[str, Any]]) -> dict[str, DefaultCfg]:
    """Return timm's configurations of a family, with the addresses of the weights that its authors published.

    Args:
        cfgs: Name -> configuration of each model.
    """
    tagged: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for name, cfg in cfgs.items():
        if name in published.URLS:
            tagged[f"{name}.{published.TAG}"] = {**cfg, "url": published.URLS[name], "custom_load": True}
        else:
            tagged[f"{name}.untrained"] = cfg
    return generate_default_cfgs(tagged)


def _local_weights(variant: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of timm's configuration that make it load weights from a file, which is downloaded first.

    They are empty where timm reads something else: a state dict, a folder, or a repository of a hub.
    """
    given = kwargs.get("pretrained_cfg")
    cfg = resolve_pretrained_cfg(variant, given, kwargs.get("pretrained_cfg_overlay"))
    if cfg.source in ("hf-hub", "local-dir") or cfg.state_dict:
        return {}
    if cfg.file:
        return {"file": str(cfg.file), "custom_load": True}
    if cfg.hf_hub_id or isinstance(cfg.url, tuple):
        return {}
    if not cfg.url:
        raise published.unavailable(variant)
    return {"file": str(published.fetch(variant, cfg.url, kwargs.get("cache_dir"))), "custom_load": True}


def create(
    model_class: type[Backbone], variant: str, pretrained: bool, kwargs: dict[str, Any], **variant_args: Any
) -> Any:
    """Build a registered model from the arguments of its variant, which the caller's ``kwargs`` override.

    ``feature_cls`` "list" and "dict" select the kind of feature maps, as in timm's models. timm's own classes of these
    names would call submodules one after the other and leave out what lies between them.
    """
    kwargs = {**variant_args, **kwargs}
    if pretrained and (file := _local_weights(variant, kwargs)):
        kwargs["pretrained_cfg_overlay"] = {**(kwargs.get("pretrained_cfg_overlay") or {}), **file}
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
