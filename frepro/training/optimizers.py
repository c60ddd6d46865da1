"""Optimizer and learning rate of a recipe. Rates follow the number of optimizer updates alone."""

import re

from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from frepro.recipes import LayerDecay, Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer; norms, biases and what the network excepts have no weight decay unless it says so."""
    if recipe.layer_decay is not None:
        groups = layer_groups(network, recipe.layer_decay, recipe.weight_decay, recipe.decay_all)
    else:
        excepted = () if recipe.decay_all else undecayed(network)
        groups = param_groups_weight_decay(network, recipe.weight_decay, not recipe.decay_all, excepted)
    # Fused, an update is one pass over all weights, on a CPU too.
    fused = {"fused": True} if recipe.optimizer == "adamw" else {}
    return create_optimizer_v2(
        groups,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        **fused,
    )


def undecayed(network: nn.Module) -> set[str]:
    """Names of the parameters that a network, or a backbone within it, excepts from weight decay beside vectors."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }


def layer_groups(network: nn.Module, decay: LayerDecay, weight_decay: float, decay_all: bool) -> list[dict]:
    """Parameters by rate and weight decay, as timm's schedulers take them (``lr_scale``).

    Whatever belongs to no stage of a backbone has the whole rate.
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


THIRD_STAGE = re.compile(r"body\.stages\.2\.(\d+)\.")


def group_of(name: str, by: str, depth: int) -> int | None:
    """Number of the group that a parameter's layer belongs to, as ``LayerDecay`` counts; none outside of a backbone.

    Args:
        depth: Blocks of the third stage.
    """
    found = re.search(r"body\.(downsample_layers|stages)\.(\d)\.(?:(\d+)\.)?", name)
    if found is None:
        return None
    kind, stage = found[1], int(found[2])
    if by == "stage":
        return 0 if kind == "downsample_layers" else stage + 1
    if kind == "downsample_layers":
        return (0, 2, 3, 6)[stage]
    return 3 + 3 * int(found[3]) // depth if stage == 2 else (1, 2, None, 6)[stage]


def make_schedule(optimizer: Optimizer, recipe: Recipe, updates: int) -> Scheduler:
    """Warm-up and fall of the rate, by optimizer update; ``updates`` of them make an epoch."""
    total = total_updates(recipe, updates)
    shared = {
        "warmup_t": recipe.warmup_updates or recipe.warmup_epochs * updates,
        "warmup_lr_init": recipe.warmup_lr,
        "t_in_epochs": False,
    }
    if recipe.schedule == "step":
        # timm has a milestone one update before its number, and counts from the end of the warm-up unless told so.
        milestones = [epoch * updates + 1 for epoch in recipe.milestones]
        return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=0.1, warmup_prefix=False, **shared)
    if recipe.schedule == "poly":
        return PolyLRScheduler(optimizer, t_initial=total, lr_min=recipe.min_lr, power=recipe.power, **shared)
    return CosineLRScheduler(optimizer, t_initial=total, lr_min=recipe.min_lr, **shared)


def total_updates(recipe: Recipe, updates: int) -> int:
    """Optimizer updates of the schedule, without cool-down; ``updates`` of them make an epoch."""
    return recipe.epochs * updates if recipe.updates is None else recipe.updates
