"""What the evaluation of published weights takes: files to download, and time."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from frepro.experiment import Experiment, TrainedVariant
from frepro.recipes.metrics import FLOPS
from frepro.store import provenance
from frepro.training.progress import minutes

if TYPE_CHECKING:
    from frepro.models.published import Published

# Rough assumptions for the estimate: multiply-accumulates per second of a GPU and of a CPU core, in billions, and
# images that a core reads per second.
GPU, CORE, IMAGES = 2000.0, 10.0, 150.0


def of(experiment: Experiment) -> "list[Published]":
    """Return the published weights of a table that must still be downloaded."""
    return [each.published for each in experiment.trained_variants if each.published and each.checkpoint is None]


def describe(experiment: Experiment) -> list[str]:
    """Describe the evaluation of the authors' weights in lines of a plan."""
    todo = experiment.to_evaluate()
    done = len(experiment.published_weights) - len(todo)
    described = [
        f"  authors' weights: {done} evaluated, {len(todo)} to do, without weights: {len(experiment.unpublished)}"
    ]
    described += lines(of(experiment))
    if todo:
        took = seconds(experiment, todo)
        described.append(f"  evaluation: {'time unknown' if took is None else f'about {minutes(took)}, an estimate'}")
    return described


def lines(weights: "Iterable[Published]") -> list[str]:
    """Return a line for each file to download, with its host and size, and one with the total."""
    from frepro.models import published

    urls = [each.url for each in weights if each.url]
    if not urls:
        return []
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(published.size, urls))
    known = [size for size in sizes if size is not None]
    total = in_megabytes(sum(known)) if len(known) == len(urls) else f"{len(urls) - len(known)} of unknown size"
    found = [f"  {len(urls)} to download to {published.cached(urls[0]).parent}, {total}"]
    for url, size in zip(urls, sizes, strict=True):
        shown = "size unknown" if size is None else in_megabytes(size)
        found.append(f"    {published.file_name(url)} from {host(published.address(url))}, {shown}")
    return found


def host(address: str) -> str:
    """Return the host of an address; for a file, its folder."""
    split = urlsplit(address)
    return str(Path(unquote(split.path)).parent) if split.scheme == "file" else split.netloc


def in_megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def seconds(experiment: Experiment, todo: list[TrainedVariant]) -> float | None:
    """Estimate how long evaluations take, from the multiply-accumulates of the models; ``None`` if it is unknown."""
    if experiment.source.test is None:
        return None
    cores = provenance.machine()["cores"]
    rate = GPU if experiment.device_name[0] == "cuda" else CORE * cores
    return sum(experiment.source.test * max(macs(experiment, each) / rate, 1 / (IMAGES * cores)) for each in todo)


def macs(experiment: Experiment, learner: TrainedVariant) -> float:
    """Return the multiply-accumulates of a model for an image, in billions: as published, or else counted."""
    table, row = experiment.published, experiment.row(learner.model)
    if row is not None and table.column(FLOPS.name) and (printed := table.number(row, FLOPS.name)):
        return printed
    from frepro.analysis import cost

    return cost.count(learner.model)["macs"] / 1e9
