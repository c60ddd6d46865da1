"""`frepro reproduce` and `frepro submit`: tables and figures, here or with their runs on a cluster."""

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
    choice_options,
    cli,
    end,
    fsdp_option,
)
from frepro.errors import FreproError
from frepro.training.runs import MOST_PROCESSES


def choose(
    paper: str | None,
    table: int | None,
    figure: int | None,
    profile: str,
    data: str | None,
    seeds: list[int] | None,
    device: str,
    checkpoint: str | None,
    backbones: str | None,
    extra: tuple[tuple[str, Any], ...],
) -> tuple[list[reproduce.Plan | reproduce.FigurePlan], list[str], list[reproduce.Artefact]]:
    """The plans that the shared options ask for, why others cannot be made (so of tables of ADE20K, where DATA names
    ImageNet alone), and what is not built yet; says so where data are not ImageNet.

    Raises:
        FreproError: None of them can be made.
    """
    chosen, unbuilt = reproduce.find(paper, table, figure)
    if data is not None:
        reproduce.parts(data)  # a slip of the keyboard is not a reason that some table cannot be made
    seeds = seeds or reproduce.SEEDS.get(profile, [0])
    given = {"profile": profile, "data": data, "seeds": seeds, "device": device}
    given |= {name: value for name, value in (("checkpoints", checkpoint), ("backbones", backbones)) if value}
    plans, obstacles = [], {}
    for artefact in chosen:
        try:
            plans.append(reproduce.plan(artefact, {**given, **dict(extra)}))
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
            f"No DATA given: profile {profile} on embedded data ({names}). "
            f"Numbers from them are not {' or '.join(sets)}'s."
        )
    return plans, left_out, unbuilt


@cli.command("reproduce")
@choice_options
@click.option(
    "--jobs",
    type=click.IntRange(1, MOST_PROCESSES),
    help="Runs and notebooks at a time. Default: one a core, or one on a GPU.",
)
@click.option(
    "--retrain", is_flag=True, help="Train and time again what is stored; the stored runs are kept under another name."
)
def reproduce_command(
    jobs: int | None, per_device: int | None, workers: int | None, retrain: bool, dry_run: bool, **choice: Any
) -> None:
    """Make tables and figures anew, published beside measured: all of them, or those that the options name.

    Prints the plan first, and why what is stale is so; runs only what is missing; ends with the table, or of many
    artefacts with an overview. What fails takes along only what rests on it, and is named at the end. Runs are stored,
    so that a second call answers at once, and a call that was stopped goes on where it was.
    """
    from frepro.reproduce.batch import Batch

    plans, left_out, unbuilt = choose(**choice)
    if retrain and not dry_run:
        set_aside(plans)
    batch = Batch(plans, choice["device"], jobs)
    click.echo(batch.describe())
    if unbuilt:
        click.echo(f"Not built yet: {reproduce.listed(unbuilt)}.")
    end(left_out + ([] if dry_run else make_and_show(batch, per_device, workers)))


def set_aside(plans: list[reproduce.Plan | reproduce.FigurePlan]) -> None:
    """Rename the folders of all stored runs and timings that plans rest on, so that they are made again."""
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
        click.echo(f"Retraining: {len(kept)} stored runs and timings are kept as {where}/*.before-*")


def make_and_show(batch: Any, per_device: int | None, workers: int | None) -> list[str]:
    """Make the artefacts of a ``Batch`` and print them, of many an overview; returns a line for each that failed."""
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
    """A limit of time as Slurm writes it, in whole minutes."""

    name = "TIME"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(value))
        if not match:
            self.fail(f"{value!r} is no time like 90 (minutes), 12:00:00 or 3-00 (days-hours)", parameter, context)
        days, *rest = match.groups()
        parts = [int(part) for part in rest if part is not None]
        if days is not None:
            hours, minutes, seconds = (*parts, 0, 0)[:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, minutes, seconds = 0, *(*parts, 0)[:2]
        return max(1, (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0))


@cli.command("submit")
@choice_options
@click.option("--gpus", default="1", show_default=True, help="GPUs of a node, as 8 or a100:8; 0 computes on CPUs.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Nodes that share a run.")
@click.option(
    "--tasks", type=click.IntRange(1), default=1, show_default=True, help="Processes on a node, with --gpus 0."
)
@click.option(
    "--time",
    "minutes",
    type=Limit(),
    default="1-00",
    show_default=True,
    help="Limit of a run, as Slurm writes it; after it the run is requeued and goes on.",
)
@click.option("--partition", help="Where it runs. Default: the cluster's.")
@click.option("--account", help="Who it is charged to. Default: yours.")
@click.option("--cpus", type=click.IntRange(1), help="Cores of each process. Default: the cluster's.")
@click.option("--mem", help="Memory of a node, as 64G. Default: the cluster's.")
@click.option(
    "--slurm",
    "settings",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Any further setting of sbatch, as: --slurm constraint h100; a flag as: --slurm exclusive true.",
)
@click.option("--at-once", type=click.IntRange(1), help="Most runs that compute at a time. Default: all that fit.")
@click.option(
    "--requeues",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="Times that a run may use up its --time and go on; preemptions are not counted.",
)
@fsdp_option
@click.option("--wait", "is_waiting", is_flag=True, help="Wait for the runs, then make tables and figures.")
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
    """Send the training runs of tables and figures to Slurm, all at once.

    Prints the plan and the script first; sends what is neither in the store nor queued or running already. A run that
    is preempted, or whose time is up, is requeued and goes on from its last state. With --wait, ends with the tables
    as `frepro reproduce` does, which also makes them once the runs are done. FREPRO_RESULTS must be a folder that all
    nodes see.
    """
    from frepro.reproduce import cluster
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
    plans, left_out, _ = choose(**choice)
    for plan in plans:
        click.echo(f"{plan.artefact.title}, profile {plan.profile}: {reproduce.because(plan.reasons)}")
    runs = {run.measurement.key: run for plan in plans for run in plan.missing}
    where.check(runs.values())
    found = cluster.survey(runs.values())
    live, new = [sent for sent in found if sent.is_live], [sent.run for sent in found if not sent.is_live]
    click.echo(f"Training runs: {len(new)} to send, {len(live)} queued or running")
    for sent in found:
        click.echo(f"  {sent.summary_line()}")
    if new:
        click.echo(f"\n{where.script(len(new))}")
    if dry_run:
        end(left_out)
        return
    if new:
        sent = where.send(new)
        click.echo(f"Sent as {cluster.named(sent)}; logs in {reproduce.shown(cluster.folder())}")
        live += sent
    if not is_waiting:
        click.echo(f"Once they are done, `{same_choice(context)}` makes the tables; this with --wait does both.")
        end(left_out)
        return
    try:
        if live:
            click.echo(f"Waiting for {cluster.named(live)}; Ctrl-C ends the waiting and leaves them running")
        failed = cluster.wait(live, click.echo)
    except KeyboardInterrupt as stop:
        click.echo(f"\nstopped waiting; {cluster.named(live)} go on, and the same command waits again", err=True)
        sys.exit(processes.status(stop))
    plans = [replace(plan) for plan in plans]  # which look anew at what is missing
    failures = [*left_out, *(f"{run.title}: {failure.cause}" for run, failure in failed)]
    if lost := [plan.artefact for plan in plans if plan.missing]:  # made now, it would be trained here
        failures.append(f"not made, as runs of theirs failed: {reproduce.listed(lost)}")
    if whole := [plan for plan in plans if not plan.missing]:
        failures += make_and_show(Batch(whole, choice["device"]), per_device, workers)
    end(failures)


def same_choice(context: click.Context) -> str:
    """The command that reproduces what the options of this one chose."""
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
