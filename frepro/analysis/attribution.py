"""Context maps of a SPANet: where in an image it looks (SPANet Figure 4)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepro.models import spanet, spanetv2

Mixer = spanet.SPAM | spanetv2.SpectralAdaptiveModulation


def context_maps(model: nn.Module, images: Tensor) -> dict[int, Tensor]:
    """Return the context that modulates the query, over the image, for each stage that has SPAM mixers.

    As in the notebook released by SPANetV2's authors, the map of a stage is the mean absolute value of the context over
    all channels of all its blocks, bilinearly enlarged to the size of the image. (SPANet's own code has no such maps.)

    Args:
        images: (B, 3, H, W), normalised.

    Returns:
        Stage, from 1 -> (B, H, W), non-negative.

    Raises:
        ValueError: The model has no SPAM mixer.
    """
    found = contexts(model, images)
    stages: dict[int, list[Tensor]] = {}
    assert isinstance(model, spanet.SPANet | spanetv2.SPANetV2)
    for number, stage in enumerate(model.stages, start=1):
        for block in stage.children():
            mixer = block.token_mixer
            if isinstance(mixer, Mixer):
                stages.setdefault(number, []).append(found[mixer])
    maps = {}
    for number, blocks in stages.items():
        mean = torch.cat(blocks, dim=1).abs().mean(dim=1, keepdim=True)
        maps[number] = F.interpolate(mean, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return maps


def on_object(maps: Mapping[int, Tensor], masks: Tensor) -> dict[int, float]:
    """Return the mean of context maps inside objects, relative to that outside them: above 1 if larger inside.

    Args:
        maps: Stage -> (B, H, W), as returned by ``context_maps``.
        masks: (B, h, w), 1 inside and 0 outside; they are resized to the maps.

    Returns:
        Stage -> the geometric mean of the ratio over images.
    """
    found = {}
    for stage, values in maps.items():
        inside = F.interpolate(masks[:, None].to(values), size=values.shape[-2:], mode="area")[:, 0]
        means = [(values * of).sum((1, 2)) / of.sum((1, 2)) for of in (inside, 1 - inside)]
        found[stage] = float((means[0] / means[1]).log().mean().exp())
    return found


def contexts(model: nn.Module, images: Tensor) -> dict[Mixer, Tensor]:
    """Return the context of every SPAM mixer, before it modulates the query: mixer -> (B, C, h, w).

    Raises:
        ValueError: The model has no SPAM mixer.
    """
    mixers = [module for module in model.modules() if isinstance(module, Mixer)]
    if not mixers:
        raise ValueError(f"{type(model).__name__} has no SPAM mixer: context maps are those of SPANet and SPANetV2")
    found: dict[Mixer, Tensor] = {}

    def watch(mixer: Mixer):
        if isinstance(mixer, spanet.SPAM):  # the context is computed from the query, which is the convolved map
            return mixer.conv.register_forward_hook(lambda _m, _i, query: found.update({mixer: mixer.context(query)}))
        return mixer.proj.register_forward_hook(lambda _m, _i, context: found.update({mixer: context}))

    handles = [watch(mixer) for mixer in mixers]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return found
