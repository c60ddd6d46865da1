"""Optimizers and learning-rate schedules of recipes. Rates depend on the number of optimizer steps alone."""

import re
from typing import Any

from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from frepro.recipes import LayerDecay, Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer.

    Unless the recipe sets ``decay_all``, norms, biases and the network's own exceptions have no weight decay.
    """
    if recipe.layer_decay is not None:
        groups = layer_groups(network, recipe.layer_decay, recipe.weight_decay, recipe.decay_all)
    else:
        excepted = () if recipe.decay_all else undecayed(network)
        groups = param_groups_weight_decay(network, recipe.weight_decay, not recipe.decay_all, excepted)
    # A fused step passes over the weights only once, on a CPU too.
    fused: dict[str, Any] = {"fused": True} if recipe.optimizer == "adamw" else {}
    return create_optimizer_v2(
        groups,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        **fused,
    )


def undecayed(network: nn.Module) -> set[str]:
    """Return the names of parameters, other than vectors, that a network or its backbone exempts from weight decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }


def layer_groups(network: nn.Module, decay: LayerDecay, weight_decay: float, decay_all: bool) -> list[dict]:
    """Group parameters by learning rate and weight decay, in the form that timm's schedulers take (``lr_scale``).

    Parameters outside the stages of a backbone have the full rate.
    """
    third = [int(found[1]) for name, _ in network.named_parameters() if (found := THIRD_STAGE.search(name))]
    depth = 1 + max(third, default=0)
    excepted = undecayed(network)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        group = group_of(name, decay.by, depth)
        scale = 1.0 if group is None else decay.rate ** (decay.layers - group)
        decays = decay_all or (parameter.ndim > 1 and not name.endswith(".bias") and name not in excepted)
        groups.setdefault((scale, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": own} for (scale, own), parameters in groups.items()
    ]


# A classifier's own names, and those of a backbone within a detector or segmenter.
THIRD_STAGE = re.compile(r"(?:^|body\.)stages\.2\.(\d+)\.")


def group_of(name: str, by: str, depth: int) -> int | None:
    """Return the number of the group of a parameter's layer, as ``LayerDecay`` counts; ``None`` outside a backbone.

    Args:
        depth: Number of blocks in the third stage.
    """
    found = re.search(r"(?:^|body\.)(downsample_layers|stages)\.(\d)\.(?:(\d+)\.)?", name)
    if found is None:
        return None
    kind, stage = found[1], int(found[2])
    if by == "stage":
        return 0 if kind == "downsample_layers" else stage + 1
    if kind == "downsample_layers":
        return (0, 2, 3, 6)[stage]
    return 3 + 3 * int(found[3]) // depth if stage == 2 else (1, 2, None, 6)[stage]


def make_schedule(optimizer: Optimizer, recipe: Recipe, updates: int) -> Scheduler:
    """Return the learning-rate schedule with warm-up, by optimizer step; an epoch has ``updates`` steps."""
    total = total_updates(recipe, updates)
    shared: dict[str, Any] = {
        "warmup_t": recipe.warmup_updates or recipe.warmup_epochs * updates,
        "warmup_lr_init": recipe.warmup_lr,
        "t_in_epochs": False,
    }
    if recipe.schedule == "step":
        # timm applies a milestone one step early, and by default counts from the end of the warm-up.
        milestones = [epoch * updates + 1 for epoch in recipe.milestones]
        return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=0.1, warmup_prefix=False, **shared)
    if recipe.schedule == "poly":
        return PolyLRScheduler(optimizer, t_initial=total, lr_min=recipe.min_lr, power=recipe.power, **shared)
    return CosineLRScheduler(optimizer, t_initial=total, lr_min=recipe.min_lr, **shared)


def total_updates(recipe: Recipe, updates: int) -> int:
    """Return the number of optimizer steps in the schedule without cool-down; an epoch has ``updates`` steps."""
    return recipe.epochs * updates if recipe.updates is None else recipe.updates
