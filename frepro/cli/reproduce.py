"""`frepro reproduce` and `frepro submit`: make tables and figures, on this machine or on a Slurm cluster."""

import json
import re
import shlex
import sys
from dataclasses import replace
from typing import Any

import click
from click.core import ParameterSource

from frepro import processes, reproduce
from frepro.cli.options import (
    Duration,
    choice_options,
    cli,
    end,
    fsdp_option,
)
from frepro.errors import FreproError
from frepro.experiment.checks import AUTO
from frepro.training.runs import AUTHORS, MOST_PROCESSES, Run


def choose(
    paper: str | None,
    table: int | None,
    figure: int | None,
    profile: str | None,
    data: str | None,
    seeds: list[int] | str | None,
    device: str,
    checkpoint: str | None,
    backbones: str | None,
    extra: tuple[tuple[str, Any], ...],
    adopt: bool = False,
) -> tuple[list[reproduce.Plan | reproduce.FigurePlan], list[str], list[reproduce.Artefact]]:
    """Plan the artefacts that the shared options select, and print a line if they use embedded data.

    Returns:
        The plans; a line for each artefact that cannot be made, such as a table on ADE20K when DATA names only
        ImageNet; and the artefacts that have no notebook yet.

    Raises:
        FreproError: No selected artefact can be made.
    """
    chosen, unbuilt = reproduce.find(paper, table, figure)
    if data is not None:
        reproduce.parts(data)  # raise for a typing error, instead of leaving every table out because of it
    profile = profile or ("paper" if checkpoint == AUTHORS else "demo")
    seeds = seeds or reproduce.SEEDS.get(profile, [0])
    given = {"profile": profile, "data": data, "seeds": seeds, "device": device}
    given |= {name: value for name, value in (("checkpoints", checkpoint), ("backbones", backbones)) if value}
    plans, obstacles = [], {}
    for artefact in chosen:
        try:
            plan = reproduce.plan(artefact, {**given, **dict(extra)})
            if adopt and isinstance(plan, reproduce.Plan) and (count := plan.adopt()):
                click.echo(f"{artefact.title}: {count} runs adopted that were made elsewhere")
                plan = reproduce.plan(artefact, {**given, **dict(extra)})
            plans.append(plan)
        except FreproError as error:
            obstacles[artefact] = error
    if not plans:
        raise next(iter(obstacles.values()))
    left_out = [f"{artefact.title} cannot be made: {error}" for artefact, error in obstacles.items()]
    for line in left_out:
        click.echo(line)
    tables = [plan.experiment for plan in plans if isinstance(plan, reproduce.Plan)]
    if data is None and tables:
        names = " and ".join(dict.fromkeys(table.source.name for table in tables))
        sets = dict.fromkeys(table.published.dataset or "ImageNet-1K" for table in tables)
        click.echo(
            f"No DATA given: profile {profile} uses embedded data ({names}). "
            f"Its numbers are not comparable to {' or '.join(sets)}."
        )
    return plans, left_out, unbuilt


@cli.command("reproduce")
@choice_options
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_PROCESSES),
    help="Runs and notebooks in parallel. Default: one per CPU core, or one on a GPU.",
)
@click.option(
    "--budget", type=Duration(), help="With --seeds auto: time after which no more seeds are added, for example 30m."
)
@click.option(
    "--adopt",
    is_flag=True,
    help="Go on from the runs that are stored with the results of the tables, made on another machine, instead of \
repeating them.",
)
@click.option(
    "--retrain", is_flag=True, help="Repeat stored runs and timings; the old ones are kept under another name."
)
def reproduce_command(
    jobs: int | None,
    per_device: int | None,
    workers: int | None,
    budget: float | None,
    adopt: bool,
    retrain: bool,
    dry_run: bool,
    **choice: Any,
) -> None:
    """Reproduce tables and figures of the papers.

    Makes all of them, or those that the options select. Prints the plan first, with the reason why each artefact is
    stale, and then runs only what is missing. Ends with the tables, published next to measured, or with an overview if
    there are many. A failure affects only the artefacts that depend on it, and is reported at the end. Runs are stored:
    a second call returns at once, and an interrupted call resumes where it stopped.
    """
    from frepro.reproduce.batch import Batch

    if budget is not None and choice["seeds"] != AUTO:
        raise FreproError("--budget limits the seeds that are added: give --seeds auto as well")
    plans, left_out, unbuilt = choose(**choice, adopt=adopt)
    if retrain and not dry_run:
        set_aside(plans)
    batch = Batch(plans, choice["device"], jobs, budget)
    click.echo(batch.describe())
    if unbuilt:
        click.echo(f"Not built yet: {reproduce.listed(unbuilt)}.")
    end(left_out + ([] if dry_run else make_and_show(batch, per_device, workers)))


def set_aside(plans: list[reproduce.Plan | reproduce.FigurePlan]) -> None:
    """Rename the folders of all stored runs and timings that plans depend on, so that they are repeated."""
    measurements = [run.measurement for plan in plans for run in plan.runs]
    measurements += [
        timing.measurement
        for plan in plans
        if isinstance(plan, reproduce.Plan)
        for timing in plan.experiment.timings.values()
    ]
    by_key = {each.key: each for each in measurements}
    kept = [folder for each in by_key.values() if (folder := each.set_aside()) is not None]
    if kept:
        where = reproduce.shown(kept[0].parent)
        click.echo(f"Retraining: {len(kept)} stored runs and timings were renamed to {where}/*.before-*")


def make_and_show(batch: Any, per_device: int | None, workers: int | None) -> list[str]:
    """Make the artefacts of a ``Batch``, print them or an overview of many, and return a line for each failure."""
    from frepro.reproduce.batch import FEW, summary

    made = batch.make(per_device, workers, click.echo)
    if len(batch.plans) > FEW:
        click.echo(f"\n{summary(made).text()}")
    else:
        for plan in (one.plan for one in made if not one.failure):
            click.echo(f"\n{plan.artefact.title}, profile {plan.profile}\n{plan.text()}\n")
            for file in sorted(plan.folder.iterdir()):
                click.echo(f"  {reproduce.shown(file)}")
    return [one.cause() for one in made if one.failure] + [line for one in made for line in one.left_out]


class Limit(click.ParamType):
    """A time limit in Slurm's notation, converted to whole minutes."""

    name = "TIME"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", str(value))
        if not match:
            self.fail(
                f"{value!r} is not a time limit: use minutes (90), 12:00:00 or days-hours (3-00)", parameter, context
            )
        days, *rest = match.groups()
        parts = [int(part) for part in rest if part is not None]
        if days is not None:
            hours, minutes, seconds = (*parts, 0, 0)[:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, minutes, seconds = 0, *(*parts, 0)[:2]
        if int(days or 0) * 24 + hours > 366 * 24 or minutes > 366 * 24 * 60:
            self.fail(f"{value[:20]} is more than a year: use a shorter time limit", parameter, context)
        return max(1, (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0))


@cli.command("submit")
@choice_options
@click.option("--gpus", default="1", show_default=True, help="GPUs per node, for example 8 or a100:8; 0 to use CPUs.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes per run.")
@click.option(
    "--tasks", type=click.IntRange(1), default=1, show_default=True, help="Processes per node, with --gpus 0."
)
@click.option(
    "--time",
    "minutes",
    type=Limit(),
    default="1-00",
    show_default=True,
    help="Time limit of a job in Slurm's notation; after it, the run is requeued and resumes.",
)
@click.option("--partition", help="Slurm partition. Default: the cluster's.")
@click.option("--account", help="Slurm account to charge. Default: yours.")
@click.option("--cpus", type=click.IntRange(1), help="CPU cores per process. Default: the cluster's.")
@click.option("--mem", help="Memory per node, for example 64G. Default: the cluster's.")
@click.option(
    "--slurm",
    "settings",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Another sbatch option, for example --slurm constraint h100; for a flag, --slurm exclusive true.",
)
@click.option("--at-once", type=click.IntRange(1), help="Maximum number of runs at a time. Default: no limit.")
@click.option(
    "--requeues",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="How often a run may reach its --time and resume; preemptions are not counted.",
)
@fsdp_option
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for the runs, then make the tables and figures.")
@click.pass_context
def submit_command(
    context: click.Context,
    gpus: str,
    nodes: int,
    tasks: int,
    minutes: int,
    partition: str | None,
    account: str | None,
    cpus: int | None,
    mem: str | None,
    settings: tuple[tuple[str, str], ...],
    at_once: int | None,
    requeues: int,
    fsdp: bool,
    is_waiting: bool,
    per_device: int | None,
    workers: int | None,
    dry_run: bool,
    **choice: Any,
) -> None:
    """Submit the training runs of tables and figures to Slurm.

    Submits them all at once. Prints the plan and the batch script first, then submits the runs that are not stored,
    queued or running already. A run that is preempted or reaches its time limit is requeued and resumes from its last
    state. With --wait, makes the tables and figures when the runs are done; otherwise, run `frepro reproduce` then.
    FREPRO_RESULTS must be on a file system that all nodes share.
    """
    from frepro.reproduce import cluster, slurm
    from frepro.reproduce.batch import Batch

    where = cluster.Cluster(
        gpus=gpus,
        nodes=nodes,
        tasks=tasks,
        minutes=minutes,
        partition=partition,
        account=account,
        cpus=cpus,
        mem=mem,
        at_once=at_once,
        requeues=requeues,
        settings={name: value == "true" or value for name, value in settings},
        per_device=per_device,
        workers=workers,
        fsdp=fsdp,
    )
    if choice["seeds"] == AUTO:
        raise FreproError("a number of seeds that depends on results cannot be submitted: give a number of seeds")
    plans, left_out, _ = choose(**choice)
    for plan in plans:
        click.echo(f"{plan.artefact.title}, profile {plan.profile}: {reproduce.because(plan.reasons)}")
    runs = {run.measurement.key: run for plan in plans for run in plan.missing}
    where.check(runs.values())
    # The job of a run first trains the run that it starts from, which needs no job of its own.
    first = {run.start.measurement.key for run in runs.values() if isinstance(run.start, Run)}
    runs = {key: run for key, run in runs.items() if key not in first}
    found = cluster.survey(runs.values())
    live, new = [sent for sent in found if sent.is_live], [sent.run for sent in found if not sent.is_live]
    click.echo(f"Training runs: {len(new)} to submit, {len(live)} queued or running")
    for sent in found:
        click.echo(f"  {sent.summary_line()}")
    if new:
        click.echo(f"\n{where.script(len(new))}")
    if dry_run:
        end(left_out)
        return
    if new:
        submitted = where.send(new)
        click.echo(f"Submitted as {cluster.named(submitted)}; logs in {reproduce.shown(slurm.folder())}")
        live += submitted
    if not is_waiting:
        click.echo(
            f"When they are done, run `{same_choice(context)}` to make the tables. With --wait, submit does both."
        )
        end(left_out)
        return
    try:
        if live:
            click.echo(f"Waiting for {cluster.named(live)}; Ctrl-C stops waiting and leaves the jobs running")
        failed = cluster.wait(live, click.echo)
    except KeyboardInterrupt as stop:
        click.echo(f"\nstopped waiting; {cluster.named(live)} continue, and the same command waits again", err=True)
        sys.exit(processes.status(stop))
    plans = [replace(plan) for plan in plans]  # so that they look up again which runs are missing
    failures = [*left_out, *(f"{run.title}: {failure.cause}" for run, failure in failed)]
    if lost := [plan.artefact for plan in plans if plan.missing]:  # otherwise its runs would be trained on this machine
        failures.append(f"not made because their runs failed: {reproduce.listed(lost)}")
    if complete := [plan for plan in plans if not plan.missing]:
        failures += make_and_show(Batch(complete, choice["device"]), per_device, workers)
    end(failures)


def same_choice(context: click.Context) -> str:
    """Return the `frepro reproduce` command that selects the same artefacts as this command."""
    words = ["frepro", "reproduce"]
    for name in ("paper", "table", "figure", "profile", "data", "checkpoint", "backbones", "device"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and context.params[name] is not None:
            words += [f"--{name}", str(context.params[name])]
    if seeds := context.params["seeds"]:
        is_count = seeds == list(range(len(seeds)))
        words += ["--seeds", str(len(seeds)) if is_count else ",".join(map(str, seeds))]
    for name, value in context.params["extra"]:
        words += ["-p", name, value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)
