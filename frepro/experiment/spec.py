"""What is asked of an experiment, checked when it is made. Making one imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from frepro import papers, recipes
from frepro.data import Source, locate
from frepro.errors import FreproError, unknown
from frepro.experiment.checks import check_images, check_model, check_seeds, check_sizes
from frepro.experiment.findings import SHOWN
from frepro.experiment.variants import Variant
from frepro.training.device import check_device

# The task of a table by its data set.
TASKS = {"COCO": "detection", "ADE20K": "segmentation"}


@dataclass(frozen=True)
class Spec:
    """What is asked of an experiment: the variants of one table, and how they are trained and shown.

    Args:
        paper, table: Which table; ``papers.load(paper).tables[table]``.
        variants: (label, model, model_args) in the order in which they are to stand. A variant whose model is a row of
            the table has that row's published values beside it; others stand for themselves.
        profile: "smoke", "demo" or "paper".
        seeds: One training run of each variant for each of them.
        models: Keep only the variants of these models; none for all.
        data: What to train on, as ``data.locate`` takes it; none for the embedded data.
        device: "auto", "cpu" or "cuda".
        trained: Train and time only the variants of these models, and count the others; none for all. Of a table of
            detectors or segmenters a mapping: network -> the models that are trained as its backbones, and none for
            nothing; all of its variants are counted, with and without the network, and timed as classifiers.
        sizes: Height and width of the images that such backbones are counted at; the networks at the first of them.
        images: Network -> another height and width that it is counted at.
        native_size: Pixels a side that filters, masks and position embeddings of ours are made for; none for ``sizes``.
        checkpoints: Weights by model as ``find_weights`` takes them: these are evaluated, and nothing is trained. Of a
            table of detectors or segmenters they are of whole networks, as our runs leave them, and go by
            <network>_<model>.
        backbones: The same for the weights that detectors and segmenters start from; "none" for random ones.
        claims: Claims beside the table's, of variants: ``better`` and ``worse`` are labels, and ``group`` is a network.
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
    claims: Sequence[papers.Claim] = ()
    recipe: recipes.Recipe = field(init=False)
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        if self.table not in papers.load(self.paper).tables:
            raise unknown(f"table of {self.paper}", self.table, papers.load(self.paper).tables)
        source = locate(self.data, self.task) if isinstance(self.data, str | None) else None
        if source is None:
            raise FreproError(f"data is the name of a folder or nothing, not {self.data!r}")
        if self.published.is_of_backbones:
            self._check_networks()
        trains = self.trained != [] and not (self.published.is_of_backbones and not self.trained)
        if self.profile == "paper" and trains:
            self._check_paper(source)
        check_seeds(self.seeds)
        for name in ("models", "trained"):
            given = getattr(self, name)
            if name == "trained" and self.networks:
                continue
            if not isinstance(given, list | tuple | None) or not all(isinstance(each, str) for each in given or ()):
                raise FreproError(f"{name} are a list of names, or nothing for all, not {given!r}")
        check_sizes(self.sizes, self.native_size)
        check_images(self.images, self.networks)
        check_device(self.device)
        for kind, keys in (
            ("label", [label for label, *_ in self.variants]),
            ("model with the same arguments", [f"{model} {args}" for _, model, args in self.variants]),
        ):
            if doubled := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
                raise FreproError(f"two variants have the same {kind}: {doubled[0]}")
        known = [model for _, model, _ in self.variants]
        named = chain(*self.trained.values()) if isinstance(self.trained, Mapping) else self.trained or ()
        for model in [*(self.models or ()), *named]:
            if model not in known:
                raise unknown("model of this table", model, known)
        kept = tuple(variant for variant in self.variants if not self.models or variant[1] in self.models)
        object.__setattr__(self, "variants", kept)
        for _, model, _ in self.variants:
            check_model(model)
        object.__setattr__(self, "recipe", recipes.load(self.paper, self.profile))
        object.__setattr__(self, "source", source)
        if trains:
            self._check_weights()
        labels = [label for label, *_ in self.variants]
        for claim in self.claims:
            for label in (claim.better, claim.worse):
                if label not in labels:
                    raise unknown("variant in a claim", label, labels)

    @property
    def published(self) -> papers.Table:
        return papers.load(self.paper).tables[self.table]

    @property
    def task(self) -> str:
        return TASKS.get(self.published.dataset, "classification")

    @cached_property
    def networks(self) -> dict[str, recipes.Recipe]:
        """The detectors or segmenters that the table is about -> recipe; empty for a table of classifiers."""
        if not self.published.is_of_backbones:
            return {}
        return recipes.dense_recipes(self.paper, self.task, self.profile)

    def _check_networks(self) -> None:
        given = {} if self.trained is None else self.trained
        if not isinstance(given, Mapping):
            raise FreproError(
                f"Table {self.table} of {self.paper} is about {self.published.dataset}: trained names models for each "
                f"of {', '.join(self.networks)}, as {{{next(iter(self.networks))!r}: ['spanet_small']}}"
            )
        for network in given:
            if network not in self.networks:
                raise unknown("network of this table", network, self.networks)

    def _check_paper(self, source: Source) -> None:
        if source.embedded:
            raise FreproError(
                "profile paper needs the real data set: add DATA=/path/to/it, for ImageNet a folder with train/ and "
                "val/, or use profile demo, which trains on embedded data"
            )
        if self.networks and self.backbones is None and self.checkpoints is None:
            raise FreproError(
                "profile paper trains from backbones that were trained on ImageNet: add BACKBONES=/folder with files "
                "like spanet_small.pth, or BACKBONES=none for random weights"
            )

    def _check_weights(self) -> None:
        if self.checkpoints is not None:
            if not self.evaluated:
                names = [
                    f"{each.network}_{each.model}" if each.network else each.model for each in self.trained_variants
                ]
                given = self.checkpoints if isinstance(self.checkpoints, str) else ", ".join(self.checkpoints)
                raise FreproError(f"no weights of this table at {given}: it takes files like {names[0]}.pth")
        elif self.networks and self.backbones not in (None, "none"):
            for learner in self.trained_variants:
                if learner.runs[0].start is None:
                    given = self.backbones if isinstance(self.backbones, str) else "what is given"
                    model = learner.model
                    raise FreproError(f"no weights of {model} in {given}: add {model}.pth, or leave the model out")

    @property
    def is_published_setting(self) -> bool:
        """Whether the published recipe runs on the published data set, so that accuracies may stand side by side."""
        return self.profile == "paper" and self.source.name == self.published.dataset

    @property
    def own_metric(self) -> str:
        """Metric of the score on the data at hand: the table's own if they are its data set, else one apart."""
        metric = SHOWN[self.task][0]
        return metric if self.is_published_setting else f"{self.source.name}_{metric}"

    @property
    def own_title(self) -> str:
        names = {"classification": "top-1", "detection": "box AP", "segmentation": "mIoU"}
        return f"{self.source.name} test {names[self.task]}"

    def printed(self, network: str, metric: str) -> dict[str, float]:
        """Label of each variant -> what is printed of it in a detector or segmenter, by metrics of a run's record."""
        table = self.published
        return {
            label: table.value(row, column.key)
            for label, model, args in self.variants
            for row in table.rows
            for column in table.columns
            if row.model == model and not args and column.decimals is not None
            if self.meant(row, column) == (network, metric) and table.value(row, column.key) is not None
        }

    def meant(self, row: papers.Row, column: papers.Column) -> tuple[str, str]:
        """The network that a printed value is of, and its metric as a run's record has it.

        In a table without sections a network's columns begin with its name, and "retinanet_ap" is a box AP.
        """
        if group := self.published.group(row):
            return next(name for name in self.networks if recipes.NETWORKS[name] == group), column.key
        for network in self.networks:
            if column.key.startswith(f"{network}_"):
                metric = column.key.removeprefix(f"{network}_")
                return network, f"box_{metric}" if metric.startswith("ap") else metric
        named = {name for name in self.networks for each in self.published.columns if each.key.startswith(f"{name}_")}
        return next(name for name in self.networks if name not in named), column.key

    def all_claims(self) -> list[tuple[papers.Claim, tuple[str, str]]]:
        """Return the claims of the table, then those of variants, each with the labels of its two rows.

        Of the table's, those are left out that are about a model which ``models`` leaves out.
        """
        labels = {model: label for label, model, args in self.variants if not args}
        published = []
        for claim in self.published.claims:
            pair = (claim.better, claim.worse)
            if not self.models or set(pair) <= set(self.models):
                better, worse = (labels.get(model) or self._printed_label(model, claim.group) for model in pair)
                published.append((claim, (better, worse)))
        return [*published, *((claim, (claim.better, claim.worse)) for claim in self.claims)]

    def _printed_label(self, model: str, group: str | None) -> str:
        return str(self.published.value(self.published.row(model, group), "label"))

    def claimed_network(self, claim: papers.Claim) -> tuple[str | None, str]:
        """Return the network and the metric of a run's record that a claim is about."""
        if not self.networks or claim in self.claims:
            return claim.group, claim.metric
        return self.meant(self.published.row(claim.better, claim.group), self.published.column(claim.metric))
