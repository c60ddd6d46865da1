"""Recipes: profiles of one file; nothing misspelt passes; every model of a family can be made as its recipe says."""

import pytest
import timm
import torch

from frepro import papers, paths, provenance, recipes
from frepro.data import locate
from frepro.errors import FreproError
from frepro.runs import Run
from frepro.train import create_model


def family(name: str) -> list[str]:
    """Models that a recipe is for."""
    found = [m for m, module in provenance.own_models().items() if recipes.of_family(module.split(".")[-1]) == name]
    assert found
    return found


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_every_recipe_loads(name, profile):
    assert recipes.load(name, profile).batch_size > 0


def test_every_paper_has_a_recipe():
    assert recipes.names() == papers.names()


def test_recipes_of_families():
    assert recipes.of_family("vim") == recipes.of_family("vimf") == "vim-f"
    assert recipes.of_family("spanet") == "spanet"
    assert recipes.of_family("gfnet") is None


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_every_model_of_the_family_can_be_made_as_the_recipe_says(name, profile):
    """On the meta device: built with the recipe's arguments, and shapes that fit together at its image size."""
    for model in family(name):
        recipe = recipes.load(name, profile).of(model)
        with torch.device("meta"):
            network = create_model(model, recipe.model_args, 10, recipe.img_size, recipe.drop_path).eval()
            image = torch.empty(2, 3, recipe.img_size, recipe.img_size)
        assert network(image).shape == (2, 10)


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_changes_are_for_models_of_the_family(name, profile):
    assert set(recipes.load(name, profile).by_model) <= set(family(name))


@pytest.mark.parametrize("name", recipes.names())
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
        ("epochs: 300 ", "epochs: 20 ", "warm-up of 20 epochs leaves nothing of 20"),
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
