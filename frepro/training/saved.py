"""A run's classifier, as anybody can open it: loaded, applied to images, and exported.

The folder of a run has ``model.safetensors`` and ``config.json`` in timm's form, so that
``timm.create_model("local-dir:results/runs/<key>", pretrained=True)`` opens it as ``load`` does.
"""

import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import create_transform
from torch import Tensor, nn

import frepro.models  # noqa: F401 - registers them with timm
from frepro import paths
from frepro.data import listing
from frepro.data.annotated import read_image
from frepro.errors import FreproError, one_line, printable
from frepro.models.create import normalisation, sized
from frepro.models.official import load_strictly, read
from frepro.store import records
from frepro.training.runs import WEIGHTS, Run

if TYPE_CHECKING:
    from PIL import Image

CONFIG = "config.json"
# Fields of timm's configuration that describe the model and not where its weights come from.
KEPT = ("fixed_input_size", "classifier", "first_conv", "license", "paper_ids", "paper_name")


def config(run: Run, network: Any, labels: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a trained classifier in timm's form.

    Args:
        labels: Names of the classes.
    """
    recipe, own = run.recipe, network.pretrained_cfg
    mean, std = normalisation(run.model)
    crop_pct: Any = getattr(recipe, "crop_pct", None)
    return {
        "architecture": run.model,
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "label_names": list(labels),
        "model_args": {**run.all_model_args, **sized(run.model, recipe.img_size)},
        "pretrained_cfg": {
            **{name: own[name] for name in KEPT if own.get(name) is not None},
            "input_size": [3, recipe.img_size, recipe.img_size],
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "mean": mean,
            "std": std,
            "num_classes": network.num_classes,
            "custom_load": False,
        },
        "frepro": {"key": run.measurement.key, "profile": run.profile, "data": run.source.name, "seed": run.seed},
    }


def metadata(run: Run, found: dict[str, Any] | None) -> dict[str, str]:
    """Return the metadata of a run's safetensors files: its specification and, of a classifier, its configuration.

    There is one entry, "frepro", in JSON: safetensors writes several in random order, and equal weights would then give
    files with different checksums.
    """
    described = {"key": run.measurement.key, "spec": run.measurement.asked, "config": found}
    return {"frepro": records.canonical(described)}


def folder_of(run: str | Path) -> Path:
    """Return the folder of a run, given that folder or the run's key.

    Raises:
        FreproError: It has no classifier.
    """
    folder = Path(run)
    if not folder.is_dir() and folder.name == str(run):
        folder = paths.results() / "runs" / folder
    if not folder.is_dir():
        raise FreproError(f"no run at {run}: give its folder, or its key, the name of a folder in {folder.parent}")
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).exists():
            raise FreproError(
                f"{folder} has no {name}: only classifiers that are done and were trained by this version have one"
            )
    return folder


def load(run: str | Path) -> nn.Module:
    """Return the trained classifier of a run, in evaluation mode.

    Its ``pretrained_cfg`` gives the image size, normalisation and crop, and ``label_names``.

    Args:
        run: The run's folder or key.

    Raises:
        FreproError: There is no such run, or its files are damaged or do not fit each other.
    """
    folder = folder_of(run)
    file = folder / CONFIG
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        overlay = {**found["pretrained_cfg"], "label_names": found["label_names"]}
        model = timm.create_model(
            found["architecture"],
            num_classes=found["num_classes"],
            pretrained_cfg_overlay=overlay,
            **found["model_args"],
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FreproError(f"{file} is damaged ({one_line(error)}): train the run again") from error
    load_strictly(model, read(folder / WEIGHTS), str(folder / WEIGHTS))
    return model.eval()


def transform(model: Any) -> Callable[["Image.Image"], Tensor]:
    """Return the transform of test images, from an image to (3, H, W), that a model was evaluated with."""
    found = model.pretrained_cfg
    return create_transform(
        found["input_size"][1],
        is_training=False,
        interpolation=found["interpolation"],
        crop_pct=found["crop_pct"],
        mean=found["mean"],
        std=found["std"],
    )


def images_in(places: Iterable[Path]) -> list[Path]:
    """Return the images that places name: files, and all images in folders and their subfolders.

    Raises:
        FreproError: There are none.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            own = [place / file.path for file in listing.in_order(listing.files(place)) if listing.is_image(file.path)]
            if not own:
                raise FreproError(f"{place} has no images ({', '.join(listing.IMAGES)})")
            found += own
        elif place.exists():
            found.append(place)
        else:
            raise FreproError(f"no image at {place}: give an image or a folder of images")
    return found


@torch.no_grad()
def predict(model: Any, files: Sequence[Path], top: int = 5, batch_size: int = 32) -> list[list[tuple[str, float]]]:
    """Return the ``top`` most probable classes of each image, as (name, probability), most probable first.

    Raises:
        FreproError: An image cannot be read.
    """
    names = model.pretrained_cfg["label_names"]
    prepare, answers = transform(model), []
    for first in range(0, len(files), batch_size):
        batch = torch.stack([prepare(read_image(file, "RGB")) for file in files[first : first + batch_size]])
        found = model(batch).float().softmax(dim=1).topk(min(top, len(names)), dim=1)
        for values, indices in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            answers.append([(names[index], value) for index, value in zip(indices, values, strict=True)])
    return answers


# Format -> suffix of the file, and the packages that it needs, by the names to import.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("onnx", ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": ("pt", ()),
    "pt2": ("pt2", ()),
}


def export(model: Any, kind: str, file: Path) -> float:
    """Write a classifier in another format, for batches of any number of images of the size that it was trained at.

    Args:
        kind: One of ``FORMATS``.

    Returns:
        The largest difference of logits between what was written and the model.

    Raises:
        FreproError: A package is missing, or what was written gives other logits; nothing is left of it.
    """
    lacking = [name for name in FORMATS[kind][1] if importlib.util.find_spec(name) is None]
    if lacking:
        raise FreproError(f"{kind} needs {', '.join(lacking)}: pip install {' '.join(lacking)}")
    size = model.pretrained_cfg["input_size"]
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.randn(count, *size, generator=generator) for count in (2, 3))
    open_batch = ({0: torch.export.Dim.DYNAMIC},)
    with records.atomic_write(file) as temporary, torch.no_grad():
        if kind == "onnx":
            import onnxruntime

            program: Any = torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=open_batch, verbose=False)
            program.save(temporary)
            session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            answer = torch.from_numpy(session.run(None, {name: other.numpy()})[0])
        elif kind == "torchscript":
            torch.jit.trace(model, example).save(str(temporary))
            answer = torch.jit.load(str(temporary))(other)
        else:
            with temporary.open("wb") as stream:  # torch insists on the suffix of a path
                torch.export.save(torch.export.export(model, (example,), dynamic_shapes=open_batch), stream)
            with temporary.open("rb") as stream:
                answer = torch.export.load(stream).module()(other)
        expected = model(other)
        difference = float((answer - expected).abs().max())
        if not difference <= 1e-3 * max(1.0, float(expected.abs().max())):
            raise FreproError(
                f"{printable(file.name)} gives other logits than the model (difference {difference:.2g}): this is a "
                "bug in an exporter or in frepro, please report it"
            )
    return difference
