"""Which layers learn how fast, which are decayed, and how rates fall: against numbers worked out by hand."""

import dataclasses
import json

import pytest
import torch

from frepro import recipes, tasks
from frepro.training import loop, optimizers
from frepro.training.runs import Run
from tests.small import DETECTOR, SEGMENTER, whole

RATE_OF_STAGES = 0.9  # spanetv2-upernet
RATE_OF_LAYERS = 0.95  # spanetv2-mask_rcnn


def published(name: str, model: str, **changes) -> Run:
    """A published recipe and backbone, with small heads."""
    recipe = recipes.load(name, "paper")
    small = {"detector_args": DETECTOR} if recipe.task == "detection" else {"segmenter_args": SEGMENTER}
    return dataclasses.replace(whole(), model=model, recipe=dataclasses.replace(recipe, **small, **changes))


def rates(run: Run) -> dict[str, float]:
    """Parameter -> share of the rate that it learns with."""
    network = tasks.of(run).network(0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    optimizer = optimizers.make_optimizer(network, run.recipe)
    found = [(names[id(each)], group["lr_scale"]) for group in optimizer.param_groups for each in group["params"]]
    assert sorted(name for name, _ in found) == sorted(
        n for n, each in network.named_parameters() if each.requires_grad
    )
    return dict(found)


def of(found: dict[str, float], part: str) -> set[float]:
    """Shares of the parameters below a part of the backbone."""
    shares = {round(share, 9) for name, share in found.items() if f".body.{part}." in name}
    assert shares, part
    return shares


def test_rates_by_layer():
    """SPANetV2-S18 in Mask R-CNN: groups 0 to 6, each 0.95 of the one after it, and the whole rate for the rest."""
    found = rates(published("spanetv2-mask_rcnn", "spanetv2_s18_pure"))
    blocks = {f"stages.2.{block}": 3 + block // 3 for block in range(9)}
    groups = {"downsample_layers.0": 0, "stages.0": 1, "downsample_layers.1": 2, "stages.1": 2}
    groups |= {"downsample_layers.2": 3, **blocks, "downsample_layers.3": 6, "stages.3": 6}
    assert {part: of(found, part) for part in groups} == {
        part: {round(RATE_OF_LAYERS ** (7 - group), 9)} for part, group in groups.items()
    }
    rest = {
        share for name, share in found.items() if ".body.downsample_layers." not in name and ".body.stages" not in name
    }
    assert rest == {1.0}
    assert min(found.values()) == pytest.approx(0.698337, abs=1e-6)  # 0.95 ** 7


def test_rates_by_stage():
    found = rates(published("spanetv2-upernet", "spanetv2_s18_pure"))
    for i in range(4):
        assert of(found, f"downsample_layers.{i}") == {round(RATE_OF_STAGES**8, 9)}
        assert of(found, f"stages.{i}") == {round(RATE_OF_STAGES ** (7 - i), 9)}
    rest = {share for name, share in found.items() if ".downsample_layers." not in name and ".stages." not in name}
    assert rest == {1.0}


def decayed(run: Run) -> dict[str, bool]:
    network = tasks.of(run).network(0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = optimizers.make_optimizer(network, run.recipe).param_groups
    assert {group["weight_decay"] for group in groups} <= {0.0, run.recipe.weight_decay}
    found = [(names[id(each)], group["weight_decay"] > 0) for group in groups for each in group["params"]]
    assert sorted(name for name, _ in found) == sorted(
        n for n, each in network.named_parameters() if each.requires_grad
    )
    return dict(found)


@pytest.mark.parametrize("network", ["cascade_mask_rcnn", "upernet"])  # by layer, by stage
@pytest.mark.parametrize("layer_decay", [True, False])
def test_what_is_decayed(network, layer_decay):
    changes = {} if layer_decay else {"layer_decay": None}
    found = decayed(whole(network, **changes))
    vectors = {name for name, each in tasks.of(whole(network)).network(0.0).named_parameters() if each.ndim < 2}
    assert {name for name, decays in found.items() if not decays} == vectors & found.keys()
    assert all(decayed(whole(network, decay_all=True, **changes)).values())


def test_what_a_backbone_excepts_is_excepted_in_a_detector_too():
    small = {"depth": 1, "embed_dim": 16}
    run = published("vim-f-mask_rcnn", "vim_tiny", img_size=64, model_args=small)
    matrices = {name for name, each in tasks.of(run).network(0.0).named_parameters() if each.ndim > 1}
    found = decayed(run)
    assert {name.rpartition(".")[2] for name in matrices if not found[name]} == {"pos_embed", "cls_token"}


def test_fixed_masks_are_not_trained():
    assert not [name for name in decayed(whole("mask_rcnn")) if name.endswith(".filter")]


def by_update(recipe, updates: int, count: int, scale: float = 1.0) -> list[float]:
    """The rates of ``count`` optimizer updates, ``updates`` of which make an epoch."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": scale}]
    optimizer = torch.optim.SGD(groups, lr=recipe.lr)
    schedule = optimizers.make_schedule(optimizer, recipe, updates)
    found = []
    for step in range(count):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_steps_at_milestones(scale):
    """A tenth at the first update of epochs 8 and 11 (counted from 0), after a linear rise over five updates."""
    recipe = whole(epochs=12, milestones=(8, 11), warmup_updates=5, warmup_lr=0.0, lr=1.0).recipe
    expected = [step / 5 for step in range(5)] + [1.0] * (8 * 7 - 5) + [0.1] * 3 * 7 + [0.01] * 7
    assert by_update(recipe, 7, 12 * 7, scale) == pytest.approx([scale * rate for rate in expected])


@pytest.mark.parametrize("power", [0.9, 1.0])
def test_polynomial_by_update(power):
    """Over all updates, whatever an epoch is; what comes after them has the least rate."""
    changes = {"updates": 40, "warmup_updates": 4, "warmup_lr": 0.0, "power": power, "lr": 2.0}
    expected = [0.0, 0.5, 1.0, 1.5] + [2 * (1 - t / 40) ** power for t in range(4, 40)]
    assert by_update(whole("upernet", **changes).recipe, 7, 40) == pytest.approx(expected)
    least = [0.1 + 1.9 * (1 - t / 40) ** power for t in range(4, 40)] + [0.1] * 14
    assert by_update(whole("upernet", **changes, min_lr=0.1).recipe, 7, 54)[4:] == pytest.approx(least)


@pytest.mark.parametrize(("updates", "cooldown", "expected"), [(3, 0, [2, 3]), (3, 1, [2, 4, 5]), (4, 0, [2, 4])])
def test_a_run_of_so_many_updates_ends_amid_an_epoch(updates, cooldown, expected):
    """Eight images in batches of four: two updates an epoch."""
    changes = {"updates": updates, "cooldown_epochs": cooldown, "warmup_updates": 0, "lr": 1e-3, "min_lr": 1e-5}
    run = whole("upernet", **changes, power=1.0)  # first layers learn more slowly
    values = loop.run(run, loop.Execution(device="cpu"))["values"]
    assert (values["updates"], values["epochs"]) == (expected[-1], len(expected))
    history = [json.loads(line) for line in (run.measurement.folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["updates"] for entry in history] == expected
    rate = [max(1e-5, 1e-5 + (1e-3 - 1e-5) * (1 - (done - 1) / updates)) for done in expected]
    assert [entry["lr"] for entry in history] == pytest.approx(rate)
