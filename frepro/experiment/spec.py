"""The specification of an experiment, checked on creation. Creating one does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from frepro import papers, recipes
from frepro.data import Source, locate
from frepro.errors import FreproError, unknown
from frepro.experiment.checks import (
    GrownSeeds,
    check_authors,
    check_images,
    check_model,
    check_networks,
    check_paper,
    check_seeds,
    check_sizes,
    check_starts,
    read_seeds,
)
from frepro.experiment.variants import Variant
from frepro.experiment.weights import paper_model, with_releases
from frepro.training.device import check_device
from frepro.training.runs import AUTHORS


@dataclass(frozen=True)
class Spec:
    """The specification of an experiment: the variants of a table, and how they are trained and shown.

    Args:
        paper, table: The table ``papers.load(paper).tables[table]``.
        variants: (label, model, model_args) in the order of display. A variant whose model is a row of the table is
            shown next to the published values of that row.
        profile: "smoke", "demo" or "paper".
        seeds: Each seed is one training run of each variant. "auto:12" stands for the first twelve, a number that was
            chosen by results: claims are then tested in a way that allows for that (``claims``).
        models: Keep only the variants of these models; ``None`` for all.
        data: Training data as ``data.locate`` accepts it; ``None`` for the embedded data.
        device: "auto", "cpu" or "cuda".
        trained: Train and time only the variants of these models, and count the others; ``None`` for all. For a table
            of detectors or segmenters, this maps each network to the models that are trained as its backbones, and
            ``None`` trains nothing. All variants of such a table are counted with and without the network, and timed
            as classifiers.
        sizes: (height, width) of the images at which backbones of detectors and segmenters are counted. Complete
            networks are counted at the first size.
        images: Network -> another (height, width) at which it is counted.
        native_size: Pixels per side for which filters, masks and position embeddings of frepro's models are created;
            ``None`` for ``sizes``.
        checkpoints: Weights by model, as ``find_weights`` accepts them. They are evaluated, and nothing is trained.
            For a table of detectors or segmenters, these are weights of complete networks as frepro's runs store them,
            named <network>_<model>. "authors" stands for what the authors of each model published, which is downloaded
            (``weights.of_authors``), in profile "paper"; a model for which they released different code is followed by
            variants of that code.
        backbones: Weights from which the backbones of detectors and segmenters start, in the same form; "none" for
            random weights. In a table of classifiers, weights of the variants that others start from, which are then
            not trained.
        epochs: Epochs of the training of classifiers, instead of the length in the recipe.
        claims: Claims in addition to those of the table. ``better`` and ``worse`` are labels of variants, and ``group``
            is a network. A claim without a margin of its own has that of the table.
        starts: Label of a classifier -> label of the variant whose weights, trained with the same seed, it starts from.
            It is trained with the recipe ``recipes.of_fine_tuning`` of the paper.
    """

    paper: str
    table: int
    variants: Sequence[Variant]
    profile: str = "smoke"
    seeds: Sequence[int] = (0,)
    models: Sequence[str] | None = None
    data: str | None = None
    device: str = "auto"
    trained: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    sizes: Sequence[Sequence[int]] = ()
    images: Mapping[str, Sequence[int]] | None = None
    native_size: int | None = None
    checkpoints: Mapping[str, str] | str | None = None
    backbones: Mapping[str, str] | str | None = None
    epochs: int | None = None
    claims: Sequence[papers.Claim] = ()
    starts: Mapping[str, str] | None = None
    recipe: recipes.Classification = field(init=False)
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        if self.table not in papers.load(self.paper).tables:
            raise unknown(f"table of {self.paper}", self.table, papers.load(self.paper).tables)
        source = locate(self.data, self.task) if isinstance(self.data, str | None) else None
        if source is None:
            raise FreproError(f"data must be the name of a data set or None, not {self.data!r}")
        if self.published.is_of_backbones:
            check_networks(self)
        if self.is_of_authors:
            check_authors(self)
        if self.profile == "paper" and self.trains:
            check_paper(self, source)
        object.__setattr__(self, "seeds", read_seeds(self.seeds))
        check_seeds(self.seeds)
        for name in ("models", "trained"):
            given = getattr(self, name)
            if name == "trained" and self.networks:
                continue
            if not isinstance(given, list | tuple | None) or not all(isinstance(each, str) for each in given or ()):
                raise FreproError(f"{name} must be a list of names, or None for all, not {given!r}")
        check_sizes(self.sizes, self.native_size)
        check_images(self.images, [*self.networks])
        check_device(self.device)
        for kind, keys in (
            ("label", [label for label, *_ in self.variants]),
            ("model with the same arguments", [f"{model} {args}" for _, model, args in self.variants]),
        ):
            if doubled := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
                raise FreproError(f"two variants have the same {kind}, {doubled[0]}: change or remove one")
        known = [model for _, model, _ in self.variants]
        named = chain(*self.trained.values()) if isinstance(self.trained, Mapping) else self.trained or ()
        for model in [*(self.models or ()), *named]:
            if model not in known:
                raise unknown("model of this table", model, known)
        check_starts(self)
        kept = tuple(variant for variant in self.variants if not self.models or variant[1] in self.models)
        if self.models and self.starts:
            needed = [self.starts[label] for label, *_ in kept if label in self.starts]
            kept = tuple(variant for variant in self.variants if variant in kept or variant[0] in needed)
        if self.is_of_authors:
            kept = with_releases(kept)
        object.__setattr__(self, "variants", kept)
        for _, model, _ in self.variants:
            check_model(model)
        recipe = recipes.of_classifiers(self.paper, self.profile)
        if self.epochs is not None:
            if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
                raise FreproError(f"epochs must be a positive integer, or None for the recipe's, not {self.epochs!r}")
            changed = recipes.of_length(recipe, self.epochs)
            assert isinstance(changed, recipes.Classification)
            recipe = changed
        object.__setattr__(self, "recipe", recipe)
        object.__setattr__(self, "source", source)
        labels = [label for label, *_ in self.variants]
        for claim in self.claims:
            if wrong := papers.check_margin(claim.margin):
                raise FreproError(f"claim {claim.text!r}: {wrong}")
            for label in (claim.better, claim.worse):
                if label not in labels:
                    raise unknown("variant in a claim", label, labels)

    @property
    def published(self) -> papers.Table:
        return papers.load(self.paper).tables[self.table]

    @property
    def task(self) -> str:
        return self.published.task.task

    @property
    def main_metric(self) -> recipes.Metric:
        """The score that the variants are compared by."""
        return self.published.task.main_metric()

    @property
    def is_of_authors(self) -> bool:
        """Whether the weights that authors published are evaluated."""
        return self.checkpoints == AUTHORS

    def row(self, model: str) -> papers.Row | None:
        """Return the published row of a model, or of the model that a released one is for."""
        return self.published.row(paper_model(model) if self.is_of_authors else model)

    @cached_property
    def fine_tuning(self) -> recipes.Classification:
        """The recipe of the variants that start from others."""
        return recipes.of_fine_tuning(self.paper, self.profile)

    @property
    def is_sequential(self) -> bool:
        """Whether the number of seeds was chosen by results."""
        return isinstance(self.seeds, GrownSeeds)

    @property
    def trains(self) -> bool:
        """Whether anything is trained, or evaluated with the weights of files."""
        if self.is_of_authors:
            return True
        return self.trained != [] and not (self.published.is_of_backbones and not self.trained)

    @cached_property
    def networks(self) -> dict[str, recipes.Recipe]:
        """Name of each detector or segmenter of the table -> its recipe; empty for a table of classifiers."""
        if not self.published.is_of_backbones:
            return {}
        return recipes.dense_recipes(self.paper, self.task, self.profile)

    @property
    def is_published_setting(self) -> bool:
        """Whether the published recipe runs on the published data set, so that accuracies are comparable."""
        return self.profile == "paper" and self.source.name == self.published.dataset

    @property
    def own_metric(self) -> str:
        """Metric of the measured score: that of the table in the published setting, else with the data set's name."""
        metric = self.main_metric.name
        return metric if self.is_published_setting else f"{self.source.name}_{metric}"

    @property
    def own_title(self) -> str:
        return f"{self.source.name} test {self.main_metric.label}"

    def printed(self, network: str | None, metric: str) -> dict[str, float]:
        """Return label -> published value of each variant, for a network and a metric as in the record of a run."""
        table = self.published
        return {
            label: value
            for label, model, args in self.variants
            for row in table.rows
            for column in table.columns
            if row.model == model and not args and column.decimals is not None
            if self.meant(row, column) == (network, metric) and (value := table.number(row, column.key)) is not None
        }

    def meant(self, row: papers.Row, column: papers.Column) -> tuple[str, str]:
        """Return the network of a published value, and its metric as in the record of a run.

        In a table without sections, the columns of a network start with its name. "retinanet_ap" is its box AP: the
        first metric of the task whose name ends in "ap".
        """
        if group := self.published.group(row):
            return next(name for name in self.networks if recipes.NETWORKS[name] == group), column.key
        for network in self.networks:
            if column.key.startswith(f"{network}_"):
                key = column.key.removeprefix(f"{network}_")
                scores = [metric.name for metric in self.published.task.metrics]
                return network, next((name for name in scores if f"_{name}".endswith(f"_{key}")), key)
        named = {name for name in self.networks for each in self.published.columns if each.key.startswith(f"{name}_")}
        return next(name for name in self.networks if name not in named), column.key
