"""The registered models, and which of them tests build, found from the registry and from the models themselves."""

from functools import cache, partial
from typing import Any

import timm
from torch import nn

import frepro
from frepro.models.create import arguments

NAMES = frepro.list_models()


def family(name: str) -> str:
    """Return the name of the module in ``frepro.models`` that registers a model."""
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def small(name: str) -> dict[str, Any]:
    """Return arguments that make a model narrow and shallow, of those that it takes."""
    cfg = timm.get_pretrained_cfg(name)
    is_pyramid = cfg.pool_size is not None and cfg.input_size[1] // cfg.pool_size[0] == 32
    sizes = {"depths": (1, 1, 2, 1), "dims": (16, 32, 32, 64)} if is_pyramid else {"depths": (4,), "dims": (16,)}
    sizes |= {"depth": 4, "embed_dim": 16, "d_state": 4}
    return {key: value for key, value in sizes.items() if key in arguments(name)}


def create(name: str, **kwargs: Any) -> nn.Module:
    """Return the model at a size for tests, made for 64 x 64 pixels and five classes."""
    return timm.create_model(name, **{"img_size": 64, "num_classes": 5, **small(name), **kwargs})


@cache
def variants() -> dict[str, nn.Module]:
    """Return models that differ in more than their size, without memory: one of those that are equal once small."""
    found: dict[tuple, tuple[str, nn.Module]] = {}
    for name in NAMES:
        model = create(name, device="meta")
        found.setdefault(description(model), (name, model))
    return dict(found.values())


@cache
def kinds() -> list[str]:
    """Return few variants that together have every class of module, every function and every kind of stem and stage."""
    parts = {name: _parts(model) for name, model in variants().items()}
    missing, found = set().union(*parts.values()), []
    while missing:
        found.append(max(parts, key=lambda name: len(parts[name] & missing)))
        missing -= parts[found[-1]]
    return sorted(found)


def description(model: nn.Module) -> tuple:
    """Return everything about a model but its registered name: the modules with their settings, and the tensors."""
    ignored = ("default_cfg", "pretrained_cfg", "feature_info")
    modules = [
        (path, type(module), tuple((key, _plain(value)) for key, value in vars(module).items() if key not in ignored))
        for path, module in model.named_modules()
    ]
    return tuple(modules), tuple((key, tuple(tensor.shape)) for key, tensor in model.state_dict().items())


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | str | tuple):
        return repr(value)
    if isinstance(value, partial):
        return f"{_called(value)} {sorted((key, _plain(each)) for key, each in value.keywords.items())}"
    return _called(value)


def _called(value: object) -> str:
    """Return the name of a function, without arguments that it was given in advance, or of the class of an object."""
    value = value.func if isinstance(value, partial) else value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _parts(model: nn.Module) -> set[object]:
    """Return the classes of a model's modules, the functions that they call, and the classes of its own children."""
    functions = {
        _called(value)
        for module in model.modules()
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_")
    }
    return {*map(type, model.modules()), *functions, *((key, type(child)) for key, child in model.named_children())}
