"""Networks that are trained for the analysis in a figure. Tables with the same run keys share these runs.

The notebook of a figure defines a ``Trained`` in its cells and takes the networks from it. ``frepro reproduce`` runs
the same cells to find out what must still be trained. Creating a ``Trained`` does not import torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean
from typing import Any

from frepro import recipes
from frepro.analysis.illustration import Illustration
from frepro.data import Source, locate
from frepro.errors import FreproError, unknown
from frepro.experiment.checks import check_model, check_seeds
from frepro.experiment.claims import did_train
from frepro.experiment.runner import default_jobs, train_missing
from frepro.experiment.variants import Variant, built_as
from frepro.training.device import device_name
from frepro.training.runs import Run, dependencies


@dataclass(frozen=True)
class Trained:
    """The networks of a figure, one for each variant and seed.

    A network is small and trained with the recipe of a paper on embedded data. A network with a checkpoint instead has
    full size and the weights of that file. In profile "paper", the other networks have full size and random weights, so
    that a figure never starts weeks of training.

    Args:
        paper: The paper whose recipe they are trained with.
        variants: (label, model, model_args). The small network takes these arguments and those of the recipe.
        profile: "smoke", "demo" or "paper".
        seeds: Each seed is one network of each variant. A variant with a checkpoint has only one network.
        data: Training data as ``data.locate`` accepts it; ``None`` for the embedded data of the tables.
        checkpoints: Model -> file of its weights, as ``analysis.networks.load`` accepts it.
        device: Training device: "auto", "cpu" or "cuda".
    """

    paper: str
    variants: Sequence[Variant]
    profile: str = "smoke"
    seeds: Sequence[int] = (0,)
    data: str | None = None
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    recipe: recipes.Classification = field(init=False)
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        known = [model for _, model, _ in self.variants]
        for model in known:
            check_model(model)
        for model in self.checkpoints:
            if model not in known:
                raise unknown("model with a checkpoint", model, known)
        object.__setattr__(self, "recipe", recipes.of_classifiers(self.paper, self.profile))
        object.__setattr__(self, "source", locate(self.data))

    @cached_property
    def by_label(self) -> dict[str, list[Run]]:
        """Label of each trained variant -> its runs, seed by seed."""
        if self.profile == "paper":
            return {}
        return {
            label: [self._run(model, args, seed) for seed in self.seeds]
            for label, model, args in self.variants
            if model not in self.checkpoints
        }

    def _run(self, model: str, args: dict[str, Any], seed: int) -> Run:
        built, mixers = built_as(model, self.profile)
        return Run(built, self.recipe, self.profile, self.source, seed, {**mixers, **args})

    @property
    def runs(self) -> list[Run]:
        """Every training run, ordered by seed."""
        return [run for of_seed in zip(*self.by_label.values(), strict=True) for run in of_seed]

    def to_train(self) -> list[Run]:
        return [run for run in self.runs if run.measurement.record() is None]

    @property
    def made_from(self) -> dict[str, str]:
        """Everything that the networks depend on except files of weights, as name -> fingerprint."""
        return dependencies(self.runs, self.paper) if self.runs else {}

    def run(
        self,
        jobs: int | None = None,
        per_device: int | None = None,
        workers: int | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        """Train what is missing, with the arguments of ``Experiment.run``."""
        train_missing(self.to_train(), self.device, jobs or self.default_jobs(), per_device, workers, log)

    def default_jobs(self) -> int:
        return default_jobs(device_name(self.device)[0], self.profile)

    def untrained(self) -> list[str]:
        """Return the runs that did not train, as "SPANet-S, seed 0"."""
        return [
            f"{label}, seed {run.seed}"
            for label, runs in self.by_label.items()
            for run in runs
            if not did_train(_record(run)["values"], run.source.classes)
        ]

    def networks(self) -> dict[str, list[Any]]:
        """Return the label of each variant -> its networks (torch modules in evaluation mode), seed by seed.

        Raises:
            FreproError: A run is missing, or a file does not match its model.
        """
        if self.to_train():
            raise FreproError("not every network has been trained: call run() first")
        from frepro.analysis import networks
        from frepro.training import evaluate

        found = {}
        for label, model, _ in self.variants:
            if label in self.by_label:
                found[label] = [evaluate.network(run) for run in self.by_label[label]]
            else:
                file = {model: self.checkpoints[model]} if model in self.checkpoints else {}
                seeds = self.seeds[:1] if file else self.seeds
                found[label] = [networks.load({label: model}, file, seed)[label] for seed in seeds]
        return found

    def test_images(self, count: int) -> tuple[Any, str]:
        """Return input images for the networks: the first test images of the data set they were trained on.

        If no network is trained, these are crops of the two embedded photographs.

        Returns:
            A tensor (N, 3, H, W) with values in [0, 1], where N is at most ``count``; and a description of the images.
        """
        if not self.by_label:
            from frepro.data import pictures

            return pictures.crops(count, seed=self.seeds[0]), f"{count} crops of two photographs"
        import torch

        from frepro.data.loading import samples

        found = samples(self.source, "test", self.recipe, mean=(0.0,) * 3, std=(1.0,) * 3, seed=0)
        count = min(count, len(found))
        images = torch.stack([sample[0] for index in range(count) if (sample := found[0, index])])
        return images, f"{count} test images of the data set {self.source.name}"

    @cached_property
    def note(self) -> str:
        """What weights the networks have, in a line for a picture of them."""
        metric = self.recipe.main_metric()
        small: list[str] = []
        files: list[str] = []
        random: list[str] = []
        for label, model, _ in self.variants:
            if label in self.by_label:
                score = mean(_record(run)["values"][metric.name] for run in self.by_label[label])
                small.append(f"{label} {score:.{metric.decimals}f}")
            else:
                (files if model in self.checkpoints else random).append(label)
        parts = {
            f"small networks trained on {self.source.name}, {metric.heading}": small,
            "weights of files": files,
            "random weights": random,
            "did not train": self.untrained(),
        }
        return "; ".join(f"{words}: {', '.join(found)}" for words, found in parts.items() if found)

    def illustration(
        self,
        figure: int,
        values: Sequence[Mapping[str, Any]] = (),
        images: str = "",
        in_place_of: str = "ImageNet's images",
    ) -> Illustration:
        """Return the sources of a figure of these networks: all weights, and what differs from the paper.

        Args:
            figure, values: As in ``Illustration``.
            images, in_place_of: The input images, and what they replace; as in ``analysis.networks.stands_in``.
        """
        from frepro.analysis import networks

        sources, random = [], []
        for label, model, _ in self.variants:
            if label in self.by_label:
                sources += [self._source(run, model) for run in self.by_label[label]]
            elif model in self.checkpoints:
                sources.append(networks.source(model, self.checkpoints[model]))
            else:
                random.append(label)
                sources += [networks.source(model, None, seed) for seed in self.seeds]
        stands_in = networks.stands_in(random, [*self.by_label], self.source.name, images, in_place_of)
        if untrained := self.untrained():
            stands_in += f"; did not train: {', '.join(untrained)}"
        return Illustration(self.paper, figure, values, sources, stands_in)

    def _source(self, run: Run, model: str) -> dict[str, Any]:
        """Describe a run. ``model`` is that of the variant; the run may have an equivalent one (see ``built_as``)."""
        record, metric = _record(run), run.recipe.main_metric()
        arguments = ", ".join(f"{name} {value}" for name, value in run.all_model_args.items())
        return {
            "model": model,
            "built as": f"{run.model} with {arguments}",
            "weights": f"trained on {self.source.name} by the recipe of {self.paper}, profile {self.profile}",
            "seed": run.seed,
            f"test {metric.heading}": round(record["values"][metric.name], metric.decimals),
            "run": run.measurement.key,
        }


def _record(run: Run) -> dict[str, Any]:
    """Return the record of a run that has been trained."""
    record = run.measurement.record()
    assert record is not None
    return record
