"""Recipes: profiles of one file; nothing misspelt passes; every model of a family can be made as its recipe says."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.data import create_transform
from timm.layers import DropPath

from frepro import papers, paths, recipes, tasks
from frepro.data import locate
from frepro.errors import FreproError
from frepro.models.create import create_model
from frepro.store import provenance
from frepro.training.runs import Run


def family(name: str) -> list[str]:
    """Models that a recipe of classifiers is for: those of the family of its name."""
    return [m for m, module in provenance.own_models().items() if recipes.of_family(module.split(".")[-1]) == name]


CLASSIFIERS = [name for name in recipes.names() if family(name)]
WHOLES = [name for name in recipes.names() if recipes.load(name, "smoke").task != "classification"]


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_every_recipe_loads(name, profile):
    assert recipes.load(name, profile).batch_size > 0


@pytest.mark.parametrize("name", papers.names())
def test_every_paper_has_a_recipe_and_one_for_each_network_of_its_tables(name):
    """Networks that the caption, sections or notes of its tables name; others may have recipes of their own."""
    assert name in recipes.names()
    tables = papers.load(name).tables.values()
    for task, kind in recipes.TASKS.items():
        text = "\n".join(str(table) for table in tables if table.task is kind)
        named = {key for key, label in kind.networks.items() if re.search(rf"(?<!Cascade ){label}", text)}
        assert set(recipes.dense_recipes(name, task, "demo")) >= named


@pytest.mark.parametrize("name", WHOLES)
@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_a_recipe_of_a_whole_is_plain_data(name, profile):
    """So that what is kept of a run can be read back (``nonfinite``)."""
    recipe = recipes.load(name, profile)
    plain = json.loads(json.dumps(dataclasses.asdict(recipe) | {"by_model": {}}))
    again = recipes.from_plain(recipe.task, plain)
    assert again == dataclasses.replace(recipe, by_model={})
    assert recipe.network in recipes.NETWORKS


def test_published_recipes_of_detectors_and_segmenters():
    """A few that are easily mixed up."""
    mask = {paper: recipes.load(f"{paper}-mask_rcnn", "paper") for paper in ("spanet", "spanetv2", "vim-f")}
    assert {paper: (each.epochs, each.milestones) for paper, each in mask.items()} == {
        "spanet": (12, (8, 11)),
        "spanetv2": (36, (27, 33)),
        "vim-f": (12, (9, 11)),
    }
    assert [each.lr for each in mask.values()] == [2e-4, 1e-4, 1e-4]
    assert mask["spanet"].min_size == (800,)
    assert mask["spanetv2"].min_size[-1] == 800  # in tests, when one at random is taken in training
    fpn = {paper: recipes.load(f"{paper}-semantic_fpn", "paper") for paper in ("dfformer", "spanet", "spanetv2")}
    assert [(each.updates, each.batch_size) for each in fpn.values()] == [(40000, 32), (80000, 16), (40000, 32)]
    uper = recipes.load("spanetv2-upernet", "paper")
    assert (uper.updates, uper.window, uper.stride, uper.power) == (160000, 512, 341, 1.0)
    assert uper.of("spanetv2_s36_pure").layer_decay.layers == 12


OFFICIAL = yaml.safe_load((paths.ROOT / "tests" / "data" / "official_recipes.yaml").read_text())
# Fields that do not affect the published training.
OTHER_FIELDS = {"benchmark", "by_model", "detector_args", "model_args", "samples", "score_every", "segmenter_args"}
# Models without a configuration of their own: Vim-F's small ones have Vim's.
SAME_SIZE = {"vim_small_nope", "vimf_small_pe", "vimf_v1_small", "vimf_v2_small"}


@pytest.mark.parametrize("name", OFFICIAL)
def test_recipes_are_the_official_configurations_except_where_they_say_so(name):
    """Field by field and model by model; a difference without a reason fails, and so does a reason without one."""
    official, recipe = OFFICIAL[name], recipes.load(name, "paper")
    known = {field.name for field in dataclasses.fields(recipe)} - OTHER_FIELDS
    if official["repository"].startswith("the paper"):
        assert set(official["values"]) <= known
    else:
        assert set(official["values"]) == known
    for source in (
        source for values in (official["values"], *official["models"].values()) for _, source in values.values()
    ):
        assert source == "default" or source.startswith("section") or source.rpartition(":")[2].isdigit()
    models = {"any other": {}, **official["models"]}
    assert set(recipe.by_model) - set(official["models"]) <= SAME_SIZE
    different = set()
    for model, own in models.items():
        ours = json.loads(json.dumps(dataclasses.asdict(recipe.of(model))))
        for field, (value, _) in {**official["values"], **own}.items():
            if field == "warmup_lr" and not (ours["warmup_updates"] or ours["warmup_epochs"]):
                continue  # there is no warm-up
            if ours[field] != value:
                different.add(field)
    reasons = recipes.differences(name)
    assert different == set(reasons)
    assert all(reason.endswith(".") for reason in reasons.values())


@pytest.mark.parametrize(
    ("model", "rate"),
    [
        ("spanetv2_s18_pure", 0.2),
        ("spanetv2_s18_hybrid", 0.15),
        ("spanetv2_s36_pure", 0.3),
        ("spanetv2_s36_hybrid", 0.3),
    ],
)
@pytest.mark.parametrize("network", ["semantic_fpn", "upernet"])
def test_spanetv2_segments_with_stochastic_depth(network, model, rate):
    """As published; the last block of the network that the recipe builds has the rate, those before it less."""
    recipe = recipes.load(f"spanetv2-{network}", "paper").of(model)
    assert recipe.drop_path == rate
    embedded = locate(None, "segmentation")
    with torch.device("meta"):
        built = tasks.of(Run(model, recipe, "paper", embedded, 0)).network(recipe.drop_path)
    rates = [module.drop_prob for module in built.modules() if isinstance(module, DropPath)]
    assert rates[-1] == pytest.approx(rate)
    assert rates == sorted(rates)
    for profile in ("demo", "smoke"):
        assert recipes.load(f"spanetv2-{network}", profile).of(model).drop_path == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: detektion\npaper: {detector: mask_rcnn}", "unknown base 'detektion': did you mean detection"),
        ("base: detection\npaper: {detector: maskrcnn}", "expected one of 'retinanet', 'mask_rcnn'"),
        ("base: detection\npaper: {detector: mask_rcnn, updates: 9}", "give either epochs or updates"),
        ("base: detection\npaper: {detector: mask_rcnn, schedule: poly}", "give milestones for schedule step"),
        ("paper: {detector: mask_rcnn}", "profile 'smoke' is missing"),
    ],
)
def test_a_mistake_in_a_recipe_with_a_base_is_an_error(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(FreproError, match=message):
        recipes.read(tmp_path / "r.yaml", "paper")


PAPER = "paper:" + (Path(recipes.__file__).parent / "dfformer.yaml").read_text().partition("\npaper:")[2]
OUTSIDE = {
    **dict.fromkeys(("lr", "clip_grad"), ("0.0", "-1.0", ".inf", ".nan", "yes", "1e-3")),
    **dict.fromkeys(("warmup_lr", "min_lr", "weight_decay", "mixup", "cutmix"), ("-0.1", ".inf", ".nan", "x")),
    **dict.fromkeys(("drop_path", "smoothing", "ema_decay"), ("-0.1", "1.0", "2", ".nan")),
    **dict.fromkeys(("reprob", "hflip"), ("-0.1", "1.1", ".nan")),
    "crop_pct": ("0.0", "1.01", "-1.0"),
    "scale": ("[0.0, 1.0]", "[0.9, 0.1]", "[0.1, 1.5]", "[0.1]", "0.1"),
    **dict.fromkeys(("img_size", "batch_size"), ("0", "-1", "10000000000", "1.5", "9" * 30, "true", "null")),
    **dict.fromkeys(("epochs", "cooldown_epochs", "warmup_epochs"), ("-1", "10000000000", "1.5")),
    "score_every": ("0", "-1"),
    "repeats": ("0", "-1"),
    "samples": ("[0, 10]", "[10, -1]", "[1]", "5"),
    "betas": ("[0.9, 1.0]", "[-0.1, 0.9]", "[0.9]"),
    "power": ("0.0", "-1.0"),
    "optimizer": ("adam", "AdamW", "sgd", "1", "[adamw]", "null"),
    "schedule": ("linear", "null"),
    "precision": ("no", "fp8", "fp32"),
    "interpolation": ("nearest", "2"),
    "auto_augment": ("rand-x9", "random", "rand-m", "rand--m9", "augmix-w0", "v1", "original-m3", "''", "3", "rand-tx"),
    "benchmark": ("{batch_size: 0, img_size: 224, rounds: 1}", "{batch_size: 1, img_size: 224}", "3"),
    "layer_decay": ("{rate: 0.0, by: layer, layers: 3}", "{rate: 0.5, by: block, layers: 3}"),
    "by_model": ("{dfformer_s36: {lr: -1.0}}", "{dfformer_s36: {drop_path: 1.0}}", "{dfformer_s36: {optimizer: x}}"),
    "model_args": ("[]", "{a: 2020-01-01}", "{a: .nan}"),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUTSIDE.items() for value in values])
def test_a_value_outside_of_its_range_is_an_error(tmp_path, key, value):
    path = tmp_path / "r.yaml"
    lines = [line for line in PAPER.split("demo:")[0].splitlines() if not line.startswith(f"  {key}:")]
    if key == "by_model":
        lines = [line for line in lines if not line.startswith("    ")]
    text = "\n".join([*lines, "demo: {}", "smoke: {}"]) + "\n"
    good = re.search(rf"^  {key}: *(.+)$", PAPER, re.M)
    if good:
        path.write_text(text.replace("paper:", f"paper:\n  {key}: {good[1] if key != 'by_model' else '{}'}"))
        recipes.read(path, "paper")
    path.write_text(text.replace("paper:", f"paper:\n  {key}: {value}"))
    with pytest.raises(FreproError) as error:
        recipes.read(path, "paper")
    assert str(error.value).startswith(f"{path}:")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("detection", "detector: mask_rcnn, min_size: []"),
        ("detection", "detector: mask_rcnn, min_size: [0]"),
        ("detection", "detector: mask_rcnn, max_size: -1"),
        ("detection", "detector: mask_rcnn, milestones: [9, 8]"),
        ("detection", "detector: mask_rcnn, milestones: [0]"),
        ("segmentation", "segmenter: upernet, updates: 9, crop_size: 0"),
        ("segmentation", "segmenter: upernet, updates: 9, ratios: [2.0, 0.5]"),
        ("segmentation", "segmenter: upernet, updates: 9, window: 512"),
        ("segmentation", "segmenter: upernet, updates: 9, window: 512, stride: 600"),
        ("segmentation", "segmenter: upernet, updates: 0"),
        ("segmentation", "segmenter: upernet, updates: 9, class_weights: {1: -1.0}"),
        ("segmentation", "segmenter: upernet, updates: 9, class_weights: {a: 1.0}"),
    ],
)
def test_ranges_of_detectors_and_segmenters(tmp_path, base, line):
    kind = line.split(",")[0]
    more = ", lr: 1.0e-4, batch_size: 2, weight_decay: 0.0" + (", updates: 9" if base == "segmentation" else "")
    path = tmp_path / "r.yaml"
    path.write_text(f"base: {base}\npaper: {{{kind}{more}}}\n")
    recipes.read(path, "paper")
    rest = more.replace(", updates: 9", "") if base == "segmentation" else more
    path.write_text(f"base: {base}\npaper: {{{line}{rest}}}\n")
    with pytest.raises(FreproError) as error:
        recipes.read(path, "paper")
    assert "is missing" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        *("rand-m9-mstd0.5-inc1", "rand", "rand-n3-p0.5-mmax10-t3a", "rand-tweights", "augmix-m5-w4-d2-a1-b1"),
        *("original", "originalr-mstd0.5", "v0", "v0r", "3a"),
    ],
)
def test_timm_understands_the_augmentations_that_recipes_may_name(name):
    recipe = dataclasses.replace(recipes.load("dfformer", "smoke"), auto_augment=name)
    create_transform(32, is_training=True, auto_augment=recipe.auto_augment)


def test_recipes_of_families():
    assert recipes.of_family("vim") == recipes.of_family("vimf") == "vim-f"
    assert recipes.of_family("spanet") == "spanet"
    assert recipes.of_family("gfnet") is None


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_every_model_of_the_family_can_be_made_as_the_recipe_says(name, profile):
    """On the meta device: built with the recipe's arguments, and shapes that fit together at its image size."""
    for model in family(name):
        recipe = recipes.load(name, profile).of(model)
        with torch.device("meta"):
            more = {"num_classes": 10, "drop_path_rate": recipe.drop_path}
            network = create_model(model, recipe.img_size, recipe.model_args, **more).eval()
            image = torch.empty(2, 3, recipe.img_size, recipe.img_size)
        assert network(image).shape == (2, 10)


@pytest.mark.parametrize("name", papers.names())
@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_changes_are_for_models_of_the_family(name, profile):
    """Or, in a paper that has no family of its own, for models of its tables; small ones may be any of timm's."""
    printed = {row.model for table in papers.load(name).tables.values() for row in table.rows}
    others = set() if profile == "paper" else set(timm.list_models())
    assert set(recipes.load(name, profile).by_model) <= set(family(name) or printed) | others


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_crops_of_the_published_recipe_are_those_of_the_models(name):
    recipe = recipes.load(name, "paper")
    assert {model: recipe.of(model).crop_pct for model in family(name)} == {
        model: timm.get_pretrained_cfg(model).crop_pct for model in family(name)
    }


def test_the_published_recipe_of_dfformer():
    recipe = recipes.load("dfformer", "paper")
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs, recipe.cooldown_epochs) == (1024, 300, 20, 10)
    assert (recipe.lr, recipe.weight_decay, recipe.drop_path, recipe.img_size) == (1e-3, 0.05, 0.2, 224)
    assert recipe.lr == recipe.batch_size / 512 * 5e-4  # the paper's rule


def test_the_published_recipe_of_spanet():
    recipe = recipes.load("spanet", "paper")
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs, recipe.weight_decay) == (1024, 300, 5, 0.05)
    assert recipe.lr == 1e-3 * recipe.batch_size / 1024  # the paper's rule
    rates = [recipe.of(f"spanet_{size}").drop_path for size in ("small", "medium", "mediumx", "base", "basex")]
    assert rates == sorted(rates) == [0.1, 0.2, 0.3, 0.3, 0.5]


def test_the_published_recipe_of_spanetv2():
    """Hybrid models have another optimizer than pure ones; the gradient of one is clipped."""
    recipe = recipes.load("spanetv2", "paper")
    for model in family("spanetv2"):
        own = recipe.of(model)
        assert (own.optimizer, own.lr) == (("lamb", 8e-3) if model.endswith("hybrid") else ("adamw", 4e-3))
        assert own.clip_grad == (1.0 if model == "spanetv2_b36_hybrid" else None)
        assert own.by_model == {}
    assert recipe.batch_size == 4096


def test_the_published_recipe_of_vimf():
    recipe = recipes.load("vim-f", "paper")
    assert (recipe.batch_size, recipe.lr, recipe.weight_decay, recipe.epochs) == (384, 3.75e-4, 0.05, 300)
    assert recipe.lr * 1024 / recipe.batch_size == 1e-3  # Vim's rate, scaled
    assert recipe.of("vimf_small_h").drop_path > recipe.of("vimf_tiny_h").drop_path == 0


def test_a_run_has_the_recipe_of_its_model():
    """So that a change for one model makes another run of that model alone."""
    recipe = recipes.load("spanetv2", "paper")
    pure, hybrid = (Run(f"spanetv2_m36_{kind}", recipe, "paper", locate(None), 0) for kind in ("pure", "hybrid"))
    assert (pure.recipe.drop_path, hybrid.recipe.optimizer, hybrid.recipe.precision) == (0.4, "lamb", "no")
    assert hybrid.measurement.spec["recipe"]["optimizer"] == "lamb"
    assert "by_model" not in pure.measurement.spec["recipe"]


def test_profiles_differ_only_in_what_they_name():
    paper, demo = recipes.load("dfformer", "paper"), recipes.load("dfformer", "demo")
    assert demo.weight_decay == paper.weight_decay
    assert demo.img_size != paper.img_size


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight_decay:", "weight_deccay:", "unknown key 'weight_deccay': did you mean weight_decay"),
        ("{drop_path: 0.3}", "{dropp_path: 0.3}", "unknown key 'dropp_path': did you mean drop_path"),
        ("{drop_path: 0.3}", "{drop_path: high}", "expected a number, found 'high'"),
        ("epochs: 300 ", "epochs: 20 ", r"warmup_epochs \(20\) must be less than epochs \(20\)"),
    ],
)
def test_a_mistake_is_an_error(tmp_path, old, new, message):
    text = (paths.PACKAGE / "recipes" / "dfformer.yaml").read_text()
    assert old in text
    (tmp_path / "r.yaml").write_text(text.replace(old, new))
    with pytest.raises(FreproError, match=r"r\.yaml:\d+: " + message):
        recipes.read(tmp_path / "r.yaml", "paper")


def test_unknown_profile():
    with pytest.raises(FreproError, match="unknown profile 'dmeo': did you mean demo"):
        recipes.load("dfformer", "dmeo")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fine_tuning_has_the_model_of_full_size(name):
    recipe = recipes.load(name, "finetune")
    assert (recipe.img_size, recipe.epochs, recipe.model_args, recipe.by_model) == (224, 20, {}, {})
    assert recipe.lr < recipes.load(name, "paper").lr
    assert recipe.crop_pct == recipes.load(name, "paper").crop_pct


def test_a_recipe_with_other_values():
    recipe = recipes.load("spanetv2", "paper")
    changed = recipes.adjusted(recipe, "spanetv2_m36_pure", epochs=5, lr=1e-3, batch_size=8, img_size=96)
    assert (changed.epochs, changed.warmup_epochs, changed.lr, changed.drop_path) == (5, 4, 1e-3, 0.4)
    assert changed.min_lr / changed.lr == pytest.approx(recipe.min_lr / recipe.lr)
    assert changed.warmup_lr / changed.lr == pytest.approx(recipe.warmup_lr / recipe.lr)
    assert recipes.adjusted(recipe, "spanetv2_m36_pure") == recipe.of("spanetv2_m36_pure")
    updates = recipes.adjusted(recipes.load("spanet-semantic_fpn", "paper"), "spanet_small", epochs=3)
    assert (updates.epochs, updates.updates) == (3, None)
    with pytest.raises(FreproError, match="in a recipe of your own"):
        recipes.adjusted(recipes.load("spanet-mask_rcnn", "paper"), "spanet_small", epochs=3)


@pytest.mark.parametrize("name", ["spanet", "vim-f", "spanetv2-upernet"])
@pytest.mark.parametrize("profile", ["smoke", "demo", "paper"])
@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_a_length_in_epochs_replaces_that_of_a_recipe(name, profile, epochs):
    changed = recipes.of_length(recipes.load(name, profile), epochs)
    assert (changed.epochs, changed.updates, changed.warmup_updates) == (epochs, None, 0)
    assert changed.warmup_epochs < epochs
