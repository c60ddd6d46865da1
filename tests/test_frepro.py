"""What `import frepro` offers: its models in timm, and a list of them."""

import pydoc

import timm

import frepro


def test_models_are_listed_as_timm_registers_them():
    modules = [name for name in frepro.models.__all__ if timm.list_models(module=name)]
    registered = {name for module in modules for name in timm.list_models(module=module)}
    assert {"dfformer_s18", "spanet_small", "vimf_tiny"} <= set(frepro.list_models())
    assert set(frepro.list_models()) <= registered
    assert all(timm.model_entrypoint(name).__module__.startswith("frepro.") for name in frepro.list_models())
    ours = {name for name in registered if timm.model_entrypoint(name).__module__.startswith("frepro.")}
    assert set(frepro.list_models()) == ours


def test_a_pattern_narrows_the_list():
    found = frepro.list_models("spanet_*")
    assert found == sorted(name for name in frepro.list_models() if name.startswith("spanet_"))
    assert "spanet_small" in found
    assert frepro.list_models("nosuch") == []


def test_dir_shows_what_a_user_may_use():
    assert [name for name in dir(frepro) if not name.startswith("_")] == sorted([*frepro.__all__, "models"])
    assert all(getattr(frepro, name).__doc__ for name in (*frepro.__all__, "models"))


def test_help_begins_with_what_a_user_may_use():
    text = pydoc.render_doc(frepro, renderer=pydoc.plaintext)
    functions = text.partition("\nFUNCTIONS")[2]
    for name in ("create_model", "list_models", "load_official"):
        assert name in text[:1000]
    assert all(f"\n    {name}(" in functions for name in frepro.__all__)
