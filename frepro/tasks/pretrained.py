"""Networks that start from the weights of a file: classifiers that are fine-tuned, detectors and segmenters."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frepro.errors import FreproError, one_line, printable
from frepro.models.create import check_parameters, fitting, sized
from frepro.models.official import check_values, load_official, read, unwrap
from frepro.store import provenance
from frepro.tasks.pyramid import Stages

if TYPE_CHECKING:
    from frepro.tasks import Task
    from frepro.training.runs import Run, Start

# The errors that timm raises for weights that are damaged or belong to another model.
UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, ValueError, SafetensorError, pickle.UnpicklingError)


def make_network(task: "Task", *args: Any, **settings: Any) -> nn.Module:
    """Return a detector or segmenter on a run's backbone, with the weights of the run's file if there is one.

    Args:
        task: The task of the run; its ``notes`` say what was loaded.
        args: Positional arguments of the task's ``create`` after the backbone.
        settings: Its keyword arguments, except those of the backbone.

    Raises:
        FreproError: The backbone does not accept its arguments, or the file does not match it.
    """
    run = task.run
    with fitting(run.model, run.all_model_args):
        network = task.create(
            run.recipe.network,
            run.model,
            *args,
            **settings,
            **sized(run.model, run.recipe.img_size),
            **run.all_model_args,
        )
    check_parameters(network, run.model, run.all_model_args)
    if (start := run.initial_weights()) is not None:
        task.notes.append(start_network(network, run, start))
    return network


def start_network(network: nn.Module, run: "Run", start: "Start") -> str:
    """Load the weights that a run starts from into a detector or segmenter, and return what was loaded, in words.

    The file holds either a classifier, whose last norm and head are ignored, or a network of the same kind, whose last
    layers are ignored if they are for another number of classes. Filters and position embeddings are resized to the
    recipe's image size.

    Raises:
        FreproError: The file does not match the network.
    """
    name, stages = next((name, module) for name, module in network.named_modules() if isinstance(module, Stages))
    prefix = f"{name}.body."
    tensors = unwrap(read(start.file), named=str(start.file))
    if not any(key.startswith(prefix) for key in tensors):
        _copy(stages.body, classifier_weights(run, start), start)
        return f"the backbone starts from the weights in {printable(start.file)}"
    own = network.state_dict()
    heads = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
    new = [key for key in heads.keys() & own.keys() if heads[key].shape != own[key].shape]
    fits = all(heads[key].shape[1:] == own[key].shape[1:] for key in new)  # only the number of classes may differ
    if not fits or heads.keys() != {key for key in own if not key.startswith(prefix)}:
        raise FreproError(
            f"{start.file} does not fit {run.recipe.network} with {run.model}: use weights of such a network"
        )
    check_values(own, heads, str(start.file))
    # What a classifier has besides the backbone: any values will do.
    whole = timm.create_model(run.model, **run.all_model_args).state_dict()
    body = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    kept = stages.body.state_dict().keys()
    rest = {key: tensor for key, tensor in whole.items() if key not in kept}
    _copy(stages.body, classifier_weights(run, start, {**rest, **body}), start)
    network.load_state_dict({key: tensor for key, tensor in heads.items() if key not in new}, strict=False)
    return f"the network starts from the weights in {printable(start.file)}{_anew(sorted(new))}"


def start_classifier(network: nn.Module, run: "Run", start: "Start", classes: Sequence[str]) -> str:
    """Load the weights that a run starts from into a classifier, and return what was loaded, in words.

    The classifier layer keeps its new, random weights if the file is for another number of classes or, as far as it
    names them, for other classes. Filters and position embeddings are resized to the recipe's image size.

    Args:
        classes: Names of the classes in their order.

    Raises:
        FreproError: The file does not match the model.
    """
    weights, own = classifier_weights(run, start), network.state_dict()
    heads = [name for name in own if name.startswith(classifier_layers(network)) and name in weights]
    new = [name for name in heads if weights[name].shape != own[name].shape]
    differs = "the number of classes differs"
    if not new and classes_of(start.file) not in (None, list(classes)):
        new, differs = heads, "the classes differ"
    _copy(network, {**weights, **{name: own[name] for name in new}}, start)
    return f"{run.model} starts from the weights in {printable(start.file)}{_anew(new, differs)}"


def classes_of(file: Path) -> list[str] | None:
    """Return the names of the classes that a run's classifier was trained on; ``None`` for another file of weights."""
    try:
        with safe_open(file, "pt") as opened:
            described = json.loads((opened.metadata() or {})["frepro"])
        return described["config"]["label_names"]
    except (SafetensorError, OSError, ValueError, LookupError, TypeError):
        return None


def classifier_layers(network: Any) -> tuple[str, ...]:
    """Return the prefixes of the names of a classifier's last layers, as "head."; timm's distilled models have two."""
    named = network.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named or ()))


def classifier_weights(run: "Run", start: "Start", tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights of a classifier, resized to the recipe's image size.

    Args:
        tensors: The weights; ``None`` for those in the file.

    Raises:
        FreproError: They are not the weights of the run's model with its arguments.
    """
    args = run.all_model_args
    given = unwrap(read(start.file), named=str(start.file)) if tensors is None else tensors
    try:
        if run.model in provenance.own_models():
            fixed: Any = timm.get_pretrained_cfg(run.model)
            size = run.recipe.img_size if fixed.fixed_input_size else None
            return load_official(run.model, given, img_size=size, **args).state_dict()
        return _timm_weights(run, given)
    except FreproError as error:
        remedy = ""
        if run.reduced:
            remedy = f" (profile {run.profile} makes the model small: for weights of full size, use profile finetune)"
        raise FreproError(f"{str(error).replace('this checkpoint', printable(start.file))}{remedy}") from error
    except UNREADABLE as error:
        said = " ".join(str(error).split())[:300]
        raise FreproError(f"{start.file} does not fit {run.model}: {said or one_line(error)}") from error


def _timm_weights(run: "Run", tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of one of timm's classifiers, which timm resizes to the recipe's image size."""
    config: Any = timm.get_pretrained_cfg(run.model)
    head = config.classifier if isinstance(config.classifier, str) else next(iter(config.classifier or ("",)))
    last = tensors.get(f"{head}.weight")
    classes = config.num_classes if last is None else len(last)
    # timm's own way for any weights: it renames tensors of older versions and resizes position embeddings.
    source = {"state_dict": dict(tensors), "num_classes": classes, "source": None, "label_offset": 0}
    whole = timm.create_model(
        run.model,
        pretrained=True,
        pretrained_cfg_overlay=source,
        num_classes=classes,
        **sized(run.model, run.recipe.img_size),
        **run.all_model_args,
    )
    weights = whole.state_dict()
    check_values(weights, {name: tensors[name] for name in weights.keys() & tensors.keys()}, "this checkpoint")
    return weights


def _copy(module: nn.Module, weights: Mapping[str, Tensor], start: "Start") -> None:
    """Copy weights into a module, which may lack some of them.

    Raises:
        FreproError: The module has tensors that are missing from the weights or of another shape.
    """
    own = module.state_dict()
    faults = [name for name, tensor in own.items() if name not in weights or weights[name].shape != tensor.shape]
    if faults:
        raise FreproError(f"{start.file} does not fit {type(module).__name__}: {', '.join(faults[:8])}")
    module.load_state_dict({name: weights[name] for name in own})


def _anew(names: list[str], differs: str = "the number of classes differs") -> str:
    """Return, in words, which layers have new weights, and why."""
    if not names:
        return ""
    layers = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return f"; {differs}, so {layers} has new, random weights"
