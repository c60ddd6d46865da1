"""Run an experiment: train, evaluate and time what is missing."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from frepro.errors import FreproError, one_line
from frepro.experiment.checks import misfit
from frepro.store import provenance
from frepro.training.progress import Progress
from frepro.training.runs import Run, Start

if TYPE_CHECKING:
    from frepro.experiment import Experiment
    from frepro.models.published import Published


def run(
    experiment: "Experiment",
    jobs: int | None = None,
    per_device: int | None = None,
    workers: int | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train, evaluate and time what is missing.

    Args:
        jobs: Training runs in parallel; ``None`` for one per CPU core (small models gain nothing from more threads), or
            one on a GPU.
        per_device: Maximum samples in a forward pass; ``None`` for the full batch of the recipe.
        workers: Data-loading processes of each run; ``None`` for a default that suits the machine.
        log: Called with a line for each run that ends.
    """
    if experiment.to_train() or experiment.to_time():
        for label, problem in experiment.check_variants().items():
            log(f"{label} is left out: {problem}")
    train_missing(experiment.to_train(), experiment.device, jobs or experiment.default_jobs(), per_device, workers, log)
    evaluate(experiment, per_device, workers, log)
    if to_time := experiment.to_time():
        experiment.time(log)
        log(f"timed {len(to_time)} models on {experiment.device_name[1]}")


def evaluate(experiment: "Experiment", per_device: int | None, workers: int | None, log: Callable[[str], None]) -> None:
    """Evaluate the weights of files that have not been evaluated yet, with the arguments of ``run``.

    Published weights are downloaded first. If one of them fails, the others are still evaluated, and ``failed`` of the
    experiment has the reason.

    Raises:
        FreproError: Weights cannot be evaluated; published ones only if this holds for all of them.
    """
    if not (learners := experiment.to_evaluate()):
        return
    from frepro.training import evaluate, parallel
    from frepro.training.loop import Execution

    if workers is None:
        workers = parallel.loading_processes(experiment.source.embedded, jobs=1)
    execution = Execution(experiment.device_name[0], per_device, workers)
    experiment.failed.clear()
    errors: list[FreproError] = []
    silent: set[str] = set()
    for learner in learners:
        try:
            checkpoint = fetch(learner.published, silent) if learner.published else learner.checkpoint
            assert checkpoint is not None
            evaluate.reevaluate(learner.runs[0], checkpoint, execution)
            log(f"evaluated {checkpoint.file}")
        except FreproError as error:
            if learner.published is None:
                raise
            errors.append(error)
            experiment.failed[learner.label] = one_line(error)
            log(f"{learner.label} is not run: {one_line(error)}")
    for name in ("trained_variants", "findings"):  # which files are there has changed
        experiment.__dict__.pop(name, None)
    if errors and not experiment.evaluated:
        raise errors[0]


def fetch(weights: "Published", silent: set[str]) -> Start:
    """Return published weights, which are downloaded unless they are there; their checksum is compared.

    Args:
        silent: Hosts that did not answer. They are not asked again, since each row would wait for the time limit; a
            host that does not answer now is added.
    """
    from frepro.models import published

    assert weights.url is not None
    host = urlsplit(published.address(weights.url)).netloc
    if host in silent and not published.cached(weights.url).exists():
        raise published.no_answer(weights.model, weights.url)
    try:
        return Start.of(published.fetch(weights.model, weights.url))
    except published.NoAnswerError:
        silent.add(host)
        raise


def check_variants(experiment: "Experiment") -> dict[str, str]:
    """Exclude variants that cannot be built, before anything is trained.

    Variants that are trained or have arguments of their own are built on the meta device, so that nothing is allocated
    or computed.

    Returns:
        Label of each variant that cannot be built -> the reason.
    """
    from frepro.analysis import cost

    trained = {learner.label: learner.runs[0] for learner in experiment.trained_variants}
    found = {}
    for label, model, args in experiment.variants:
        if args or label in trained:
            run = trained.get(label)
            small = (run.model, run.recipe.img_size, run.all_model_args) if run and not run.recipe.network else None
            if problem := (run and misfit(run.recipe, model)) or cost.obstacle(model, args, small):
                found[label] = problem
    if found:
        for name in ("measured", "trained_variants", "runs", "timings", "timing_settings", "findings"):
            experiment.__dict__.pop(name, None)  # these cached values include the variants that cannot be built
        experiment.__dict__["broken"] = found
    return found


def train_missing(
    runs: Sequence[Run],
    device: str,
    jobs: int,
    per_device: int | None,
    workers: int | None,
    log: Callable[[str], None],
) -> None:
    """Train runs that are not in the store, with the arguments of ``run``. Stop at the first failure."""
    if not runs:
        return
    from frepro.training import parallel

    with Progress({("run", run.measurement.key): run.seconds for run in runs}, {"run": jobs}, log) as progress:
        for run, found in parallel.train(runs, device, jobs, per_device, workers):
            if isinstance(found, parallel.Failure):
                raise found.error()
            progress.done(("run", run.measurement.key), found["seconds"], parallel.summary_line(run, found))


def default_jobs(device: str, profile: str) -> int:
    """Return one run per CPU core, but one on a GPU and in profile smoke, where starting a process takes longer."""
    return provenance.machine()["cores"] if device == "cpu" and profile != "smoke" else 1
