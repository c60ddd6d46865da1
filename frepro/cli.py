"""The command line: reproduce, submit, train, eval, replay, convert, data, sizes, bench, list, doctor."""

import json
import os
import re
import shlex
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import click
from click.core import ParameterSource

import frepro
from frepro import papers, paths, provenance, recipes, reproduce
from frepro.data import Source, locate
from frepro.errors import FreproError, one_line

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
DATA_HELP = "ImageNet-style folder (train/ and val/ with a folder for each class), or a name that timm reads with its \
root, as torch/cifar10:/path; of detectors a folder like COCO's, of segmenters like ADE20K's. Embedded: \
textured (default), digits, cues; scenes for detectors and segmenters."


class Seeds(click.ParamType):
    """A number of seeds (3 means 0, 1 and 2) or a list of them (0,7,11)."""

    name = "N or LIST"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is neither a number of seeds nor a list of them like 0,1,2", parameter, context)
        return numbers if "," in str(value) else list(range(numbers[0]))


class Value(click.ParamType):
    """A number, a JSON list, or text."""

    name = "VALUE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError):
            return value


def blank_as_none(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The Makefile passes options on even when their variable is empty."""
    return None if value == "" else value


@click.group(context_settings=HELP)
@click.version_option(frepro.__version__)
def cli() -> None:
    """Frequency-domain vision backbones, and the tables and figures of their papers measured anew.

    \b
    frepro reproduce                       every table and figure, on embedded data
    frepro reproduce --table 4             Table 4 of every paper that has one
    frepro reproduce --paper dfformer      everything of one paper
    frepro submit --paper dfformer         its training runs to a Slurm cluster
    frepro train --model dfformer_s18      one training run
    frepro replay FOLDER                   what led to a loss that is not finite
    frepro data check PATH                 what a data set holds, and what is missing or damaged
    frepro sizes                           parameters and FLOPs of every model, and drawings of their blocks
    frepro bench                           speed and memory, beside the plain reference and timm's models
    frepro list                            what there is
    frepro doctor                          what this machine can do
    """


def choice_options(command: Any) -> Any:
    """The options that reproduce and submit share: which artefacts, and how their runs are carried out."""
    options = [
        click.option("--table", type=int, help="Number of a table."),
        click.option("--figure", type=int, help="Number of a figure."),
        click.option("--paper", callback=blank_as_none, help="One paper. Default: all."),
        click.option(
            "--profile",
            default="demo",
            show_default=True,
            help="smoke (all in minutes), demo (in an hour and more) or paper (weeks).",
        ),
        click.option("--data", callback=blank_as_none, help=DATA_HELP),
        click.option(
            "--seeds", type=Seeds(), help="How many, or which, as 0,7,11. Default: 3 with profile demo, else 1."
        ),
        click.option(
            "-p",
            "--parameter",
            "extra",
            nargs=2,
            type=(str, Value()),
            multiple=True,
            help="Any other parameter of the notebook, as: -p models '[\"dfformer_s18\"]'.",
        ),
        click.option(
            "--checkpoint",
            callback=blank_as_none,
            help="Authors' weights, to be evaluated in place of training: a file like dfformer_s18.pth, or a folder.",
        ),
        click.option(
            "--backbones",
            callback=blank_as_none,
            help="Folder with weights that detectors and segmenters start from, files as above; none for random ones.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option(
            "--per-device",
            type=click.IntRange(1),
            help="Most samples in a forward pass; the rest is accumulated.",
        ),
        click.option(
            "--workers", type=click.IntRange(0), help="Data-loading processes of a run. Default: as many as help."
        ),
        click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


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
    seeds = seeds or ([0, 1, 2] if profile == "demo" else [0])
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
    "--jobs", type=click.IntRange(1), help="Runs and notebooks at a time. Default: one a core, or one on a GPU."
)
def reproduce_command(
    jobs: int | None, per_device: int | None, workers: int | None, dry_run: bool, **choice: Any
) -> None:
    """Make tables and figures anew, published beside measured: all of them, or those that the options name.

    Prints the plan first, and why what is stale is so; runs only what is missing; ends with the table, or of many
    artefacts with an overview. What fails takes along only what rests on it, and is named at the end. Runs are stored,
    so that a second call answers at once, and a call that was stopped goes on where it was.
    """
    from frepro.batch import Batch

    plans, left_out, unbuilt = choose(**choice)
    batch = Batch(plans, choice["device"], jobs)
    click.echo(batch.describe())
    if unbuilt:
        click.echo(f"Not built yet: {reproduce.listed(unbuilt)}.")
    end(left_out + ([] if dry_run else make_and_show(batch, per_device, workers)))


def make_and_show(batch: Any, per_device: int | None, workers: int | None) -> list[str]:
    """Make the artefacts of a ``Batch`` and print them, of many an overview; returns a line for each that failed."""
    from frepro.batch import FEW, summary

    made = batch.make(per_device, workers, click.echo)
    if len(batch.plans) > FEW:
        click.echo(f"\n{summary(made).text()}")
    else:
        for plan in (one.plan for one in made if not one.failure):
            click.echo(f"\n{plan.artefact.title}, profile {plan.profile}\n{plan.text()}\n")
            for file in sorted(plan.folder.iterdir()):
                click.echo(f"  {reproduce.shown(file)}")
    return [one.cause() for one in made if one.failure]


def end(failures: list[str]) -> None:
    """Name what failed, if anything did, and end with status 1."""
    for line in failures:
        click.echo(f"frepro: error: {line}", err=True)
    if failures:
        sys.exit(1)


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


fsdp_option = click.option(
    "--fsdp",
    is_flag=True,
    help="Leave each of several processes a part of weights, gradients and optimizer state, for networks too large "
    "for one GPU.",
)


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
    from frepro import cluster
    from frepro.batch import Batch

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
        click.echo(f"  {sent.told()}")
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
    except KeyboardInterrupt:
        click.echo(f"\nstopped waiting; {cluster.named(live)} go on, and the same command waits again", err=True)
        sys.exit(130)
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


def training_options(command: Any) -> Any:
    """The options that train and eval share."""
    options = [
        click.option("--model", required=True, help="A name of frepro or timm; `frepro list models` shows ours."),
        click.option(
            "--recipe",
            help="As `frepro list recipes` has them; one like spanet-mask_rcnn makes the model the backbone of a \
detector or segmenter. Default: the classifier's of the model's family.",
        ),
        click.option("--profile", default="demo", show_default=True, help="smoke, demo or paper."),
        click.option("--data", callback=blank_as_none, help=DATA_HELP),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option("--per-device", type=click.IntRange(1), help="Most samples in a forward pass on one device."),
        click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Data-loading processes."),
        click.option(
            "-a",
            "--arg",
            "args",
            nargs=2,
            type=(str, Value()),
            multiple=True,
            help="An argument of the \
model, as: -a num_filters 2.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command("train")
@training_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--backbone",
    type=click.Path(path_type=Path),
    help="File with the weights that the backbone of a detector or segmenter starts from.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Optimizer updates between two checkpoints within an epoch.",
)
@click.option("--damaged", default="stop", show_default=True, help="A damaged image: stop, or skip (and count it).")
@click.option("--compile", is_flag=True, help="Compile the network (torch.compile).")
@fsdp_option
def train_command(
    model: str,
    recipe: str | None,
    profile: str,
    data: str | None,
    seed: int,
    backbone: Path | None,
    args: tuple,
    **execution: Any,
) -> None:
    """Train one model and store the run; a run that is there is not made again.

    On several GPUs: torchrun --nproc-per-node 8 -m frepro train ... The recipe's batch is the effective one: it is
    shared by the processes, and cut by --per-device into accumulation steps.
    """
    from frepro import train
    from frepro.runs import Run, Start

    start = None if backbone is None else Start.of(backbone)
    job = Run(model, *resolve(model, recipe, profile, data), seed, dict(args), start)
    log = lambda line: click.echo(line, err=True)  # noqa: E731
    record = train.run(job, train.Execution(log=log, **execution))
    if int(os.environ.get("RANK", "0")) == 0:
        values = record["values"]
        click.echo(
            f"{job.title}: {job.told(values, 2)} on {values['test_images']} images of {job.source.name}, "
            f"effective batch {values['effective_batch']}, {values['epochs']} epochs in {record['seconds']:.0f} s"
        )
        click.echo(f"  {reproduce.shown(job.measurement.folder)}")


@cli.command("eval")
@training_options
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="A model.safetensors of a run, or an authors' checkpoint.",
)
def eval_command(
    model: str, recipe: str | None, profile: str, data: str | None, checkpoint: Path, args: tuple, **execution: Any
) -> None:
    """Scores of stored weights on test images, each counted once."""
    from frepro.evaluate import evaluate_checkpoint
    from frepro.runs import Run
    from frepro.train import Execution

    job = Run(model, *resolve(model, recipe, profile, data), 0, dict(args))
    values = evaluate_checkpoint(job, checkpoint, Execution(**execution))
    whole = f"{model} in {job.recipe.network}" if job.recipe.network else model
    said = [
        f"{name} {value:.4f}" if name == "test_loss" else f"{name} {value:.2f} %"
        for name, value in values.items()
        if name != "test_images"
    ]
    click.echo(f"{whole}: {', '.join(said)} on {values['test_images']} images of {job.source.name}")


@cli.command("replay")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def replay_command(folder: Path, device: str) -> None:
    """Go again through an update whose loss was not finite, as a run left it in FOLDER, and name where it began."""
    from frepro.nonfinite import replay
    from frepro.train import make_accelerator

    found = replay(folder, partial(make_accelerator, device))
    click.echo(f"{found['title']}, update {found['update']}: loss {found['loss']} then, {found['again']} now")
    click.echo(f"  largest input: {found['inputs']:.4g}")
    click.echo(f"  weights that are not finite: {', '.join(found['weights'][:8]) or 'none'}")
    click.echo(f"  first module whose answer is not finite: {found['module'] or 'none'}")


def resolve(model: str, recipe: str | None, profile: str, source: str | None) -> tuple[recipes.Recipe, str, Source]:
    """Recipe, profile and data of a run, as the options name them."""
    if recipe is None:
        module = provenance.own_models().get(model, "").rpartition(".")[2]
        recipe = recipes.of_family(module)
        if recipe is None:
            if not module:
                from frepro.experiment import check_model

                check_model(model)
            raise FreproError(f"{model} has no recipe of its own: add --recipe, one of {', '.join(recipes.names())}")
    if profile == "paper" and not source:
        raise FreproError("profile paper needs the real data set: add --data /path/to/it, or use profile demo")
    found = recipes.load(recipe, profile)
    return found, profile, locate(source, found.task)


@cli.command("convert")
@click.argument("model")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--ema", is_flag=True, help="Take the moving average of the weights.")
def convert_command(model: str, checkpoint: Path, output: Path, ema: bool) -> None:
    """Authors' CHECKPOINT of MODEL to OUTPUT, a safetensors file for `frepro eval` and timm's checkpoint_path.

    Every tensor must fit by name and shape. Pickles are read as data; one that would run code is refused.
    """
    from safetensors.torch import save_file

    from frepro import results
    from frepro.models.official import load_official

    network = load_official(model, checkpoint, ema=ema)
    with results.whole(output) as temporary:
        save_file(network.state_dict(), temporary)
    params = sum(parameter.numel() for parameter in network.parameters())
    click.echo(f"{model}: {params:,} parameters, {network.num_classes} classes -> {reproduce.shown(output)}")


@cli.group("data")
def data_group() -> None:
    """Check a data set's folder, or write the embedded data as one."""


@data_group.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--headers", is_flag=True, help="Read only the headers of images: quicker, and finds no damage inside.")
def data_check_command(folder: Path, headers: bool) -> None:
    """What FOLDER holds, in the layout of ImageNet, COCO 2017 or ADE20K: counts, and what is missing or damaged.

    Ends with status 1 where anything is.
    """
    from frepro.data.check import check

    report = check(folder, decode=not headers)
    click.echo(report.text())
    if report.faults:
        raise FreproError(f"{folder} is not sound: mend or fetch again what is named above")


@data_group.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "layout", required=True, help="imagenet (digits), coco or ade20k (scenes).")
@click.option("--count", type=int, nargs=2, help="Training and test images, as: --count 64 16. Default: all.")
@click.option("--size", type=click.IntRange(32), default=128, show_default=True, help="Pixels of a scene's side.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the scenes.")
def data_export_command(folder: Path, layout: str, count: tuple[int, int] | None, size: int, seed: int) -> None:
    """Write the embedded data to FOLDER as the files of a real data set."""
    from frepro.data.export import export

    written = export(layout, folder, count, size, seed)
    click.echo(f"{written['train']:,} training and {written['test']:,} test images -> {reproduce.shown(folder)}")


@cli.command("sizes")
def sizes_command() -> None:
    """Parameters and FLOPs of every model, and drawings of their blocks, into results/models. Half a minute."""
    from frepro import report, sizes

    found = sizes.write(lambda line: click.echo(line, err=True))
    click.echo(report.sizes(found).text())
    click.echo(f"  {reproduce.shown(sizes.folder())}")


@cli.command("bench")
@click.option("--only", callback=blank_as_none, help="Pattern of what to measure, as scan, models/ or resolution/c*.")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each side. Default: 5.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    help="A Python file that makes models or operations of others, to be timed in the same rounds \
(see frepro/bench/beside.py).",
)
@click.option("--smoke", is_flag=True, help="Everything tiny, to see that it runs.")
def bench_command(only: str | None, rounds: int | None, device: str, beside: Path | None, smoke: bool) -> None:
    """Speed and memory, measured side by side, in turn: ours, the plain reference, timm's models.

    Minutes on a CPU; keep the machine free meanwhile. The book's page on performance is made from the results.
    """
    from frepro.bench import report
    from frepro.bench.results import SECTIONS
    from frepro.bench.run import run
    from frepro.experiment import device_name

    kind = device_name(device)[0]
    found, folder = run(kind, rounds, only, beside, smoke, lambda line: click.echo(line, err=True))
    for section in SECTIONS:
        for variant in dict.fromkeys(line.variant for line in found.section(section)):
            click.echo(f"\n{section}, {variant}, {found.provenance['device']['name']}")
            click.echo(
                (report.models(found, variant) if section == "models" else getattr(report, section)(found)).text()
            )
    click.echo("")
    for file in sorted(folder.iterdir()):
        click.echo(f"  {reproduce.shown(file)}")


@cli.command("list")
@click.argument("what", type=click.Choice(["all", "models", "papers", "recipes"]), default="all")
def list_command(what: str) -> None:
    """Models, papers with their tables and figures, and recipes."""
    if what in ("all", "models"):
        click.echo("models (timm.create_model after `import frepro`)")
        for module in sorted(set(provenance.own_models().values())):
            names = [name for name, of in provenance.own_models().items() if of == module]
            click.echo(f"  {module.rpartition('.')[2]}: {', '.join(names)}")
    if what in ("all", "papers"):
        click.echo("papers (frepro reproduce --paper ... --table ... or --figure ...)")
        for name in papers.names():
            paper = papers.load(name)
            click.echo(f"  {name}: {paper.title}, {paper.venue} {paper.year}")
            for artefact in reproduce.artefacts(name):
                caption = shorten(papers.title(dict(paper.artefacts())[artefact.name]), 80, placeholder=" ...")
                state = "" if artefact.is_built else " [not built yet]"
                click.echo(f"    {artefact.name.replace('_', ' ')}{state}: {caption}")
    if what in ("all", "recipes"):
        click.echo(f"recipes: {', '.join(recipes.names())}, each with profiles {', '.join(recipes.PROFILES)}")


@cli.command("doctor")
def doctor_command() -> None:
    """What this machine has, what loads, and why not what does not."""
    record = provenance.record()
    machine = record["machine"]
    click.echo(f"frepro {frepro.__version__}, commit {record['commit']}{' with changes' if record['dirty'] else ''}")
    click.echo(f"python {record['python']} at {sys.prefix}")
    click.echo(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}")
    for name in (
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "scikit-learn",
        "papermill",
        "jupyter-book",
        "mamba-ssm",
    ):
        optional = " (optional)" if name in ("papermill", "jupyter-book", "mamba-ssm") else ""
        click.echo(f"  {name}{optional}: {provenance.version(name) or 'not installed'}")
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            click.echo(f"CUDA device {index}: {torch.cuda.get_device_name(index)}")
    else:
        click.echo("no CUDA device: training and timing run on the CPU")
    from frepro.ops import backends, cpu

    for name, reason in backends.reasons().items():
        built = f", kernels for {cpu.instruction_set()}" if name == "cpu" else ""
        click.echo(f"backend {name}: {f'can be used{built}' if reason is None else f'not here, {reason}'}")
    folder = paths.results()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    state = "can be written" if os.access(existing, os.W_OK) and existing.is_dir() else "can NOT be written"
    click.echo(f"results in {folder}: {state}")
    click.echo(f"data: {locate(None)}")


def main() -> None:
    """Run the command line; what a user can mend ends in one line and status 1, Ctrl-C in status 130."""
    # After Ctrl-C the processes that tidy up behind Python's own would warn of what they found to do.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    warnings.filterwarnings("ignore", message=".*tasks which were still being processed")  # by joblib, of the same
    try:
        cli(standalone_mode=False)
    except FreproError as error:
        fail(one_line(error))
    except click.Abort:
        click.echo("\nstopped; what was done is kept, and the same command goes on from there", err=True)
        os._exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def fail(message: str) -> None:
    click.echo(f"frepro: error: {message}", err=True)
    sys.exit(1)
