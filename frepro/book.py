"""Sphinx extension of the book: lays executed notebooks beside its pages, and writes the status page.

The book is built from results alone and runs nothing. Sphinx reads pages below ``book/`` only, so what is in
``results/demo`` is laid into ``book/results`` (which git ignores) each time the book is built.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from frepro import papers, provenance, report, sizes
from frepro.bench import report as bench_report
from frepro.bench import results as bench
from frepro.reproduce import Artefact, artefacts
from frepro.runs import model_code

STATES = {
    "paper": "measured",
    "demo": "demo",
    "costs": "costs only",
    "": "not run",
}
COMPLETE = "complete"
NOT_BUILT = "not built"


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx before it looks for pages. Warnings are errors from here on."""
    app.warningiserror = True
    app.add_css_file("frepro.css")
    lay_out(Path(app.srcdir) / "results")
    return {"version": provenance.version("frepro") or "", "parallel_read_safe": True}


def lay_out(folder: Path) -> None:
    """Write the pages that come from results."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "status.md").write_text(status(), encoding="utf-8")
    for artefact in artefacts():
        if artefact.is_built:
            page(artefact, folder / artefact.paper)
    models(folder / "models")
    performance(folder / "performance")


def models(folder: Path) -> None:
    """What the pages of the families include: a table of sizes for each, and the drawings."""
    folder.mkdir()
    source = sizes.folder()
    if not (source / "provenance.json").exists():
        for family in {module.rpartition(".")[2] for module in provenance.own_models().values()} | {"vim_flops"}:
            (folder / f"{family}.md").write_text("Not counted yet: `frepro sizes`\n", encoding="utf-8")
        return
    for picture in source.glob("*.svg"):
        shutil.copy(picture, folder)
    made = json.loads((source / "provenance.json").read_text(encoding="utf-8"))
    where = f"Counted {made['time'][:10]} with commit {made['commit'][:12]}, {_versions(made)}."
    found = sizes.read()
    tables = {
        family: report.sizes([size for size in found if size.family == family])
        for family in dict.fromkeys(size.family for size in found)
    }
    tables["vim_flops"] = report.vim_flops(sizes.read_vim_flops())
    for name, table in tables.items():
        text = f'<div class="frepro-scroll">{table.html()}</div>\n\n<p class="frepro-origin">{where}</p>\n'
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


# What the benchmark gives to the page on performance.
BENCHMARK = {
    "models": "Models",
    "operations": "Operations",
    "roofline": "What the machine allows",
    "resolution": "Throughput and memory against resolution",
    "slower": "Where ours loses",
    "origin": "Where these numbers come from",
}


def performance(folder: Path) -> None:
    """What the page on performance includes: each part of a CPU's benchmark, and all of a GPU's."""
    folder.mkdir()
    parts = {}
    for device in ("cpu", "gpu"):
        source = bench.folder(device)
        if (source / "provenance.json").exists():
            parts[device] = _benchmark(bench.read(source), folder, device)
    for name in BENCHMARK:
        text = parts["cpu"][name] if "cpu" in parts else "*not run* yet: `make bench`\n"
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    text = "*not run* yet: `make bench` on a machine with a CUDA device\n"
    if "gpu" in parts:
        text = "".join(f"### {title}\n\n{parts['gpu'][name]}" for name, title in BENCHMARK.items())
    (folder / "gpu.md").write_text(text, encoding="utf-8")


def _benchmark(found: bench.Found, folder: Path, device: str) -> dict[str, str]:
    """The parts of ``BENCHMARK`` as Markdown, with their pictures in the folder."""
    from frepro.figures import speed  # torch takes seconds

    pictures = speed.pictures(found)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{device}_{name}.png")

    def part(name: str, title: str, view: report.View) -> str:
        picture = f"![{title}](results/performance/{device}_{name}.png)\n\n" if name in pictures else ""
        return f'{picture}<div class="frepro-scroll">{view.html()}</div>\n\n'

    variants = list(dict.fromkeys(line.variant for line in found.section("models")))
    models = [
        part(bench_report.picture_of_models(variant), f"Models, {variant}", bench_report.models(found, variant))
        for variant in variants
    ]
    if len(variants) > 1:
        models = [f"#### {variant}\n\n{text}" for variant, text in zip(variants, models, strict=True)]
    slower = bench_report.slower(found)
    return {
        "models": "".join(models),
        "operations": part("operations", BENCHMARK["operations"], bench_report.operations(found)),
        "roofline": part("roofline", BENCHMARK["roofline"], bench_report.roofline(found)),
        "resolution": part("resolution", BENCHMARK["resolution"], bench_report.resolution(found)),
        "slower": part("slower", BENCHMARK["slower"], slower) if slower.rows else "Nowhere in this run.\n\n",
        "origin": _benchmark_origin(found.provenance),
    }


def _benchmark_origin(made: dict[str, Any]) -> str:
    settings, beside = made["settings"], made["beside"]
    lines = [
        f"measured {made['time']} in {made['seconds'] / 60:.0f} minutes on {_machine(made)}, "
        f"{made['device']['threads']} threads; before it began, {made['load_before']} processes wanted to run",
        f"code of commit {str(made['commit'])[:12]}{' with uncommitted changes' if made['dirty'] else ''}; "
        f"{_versions(made)}",
        f"{settings['rounds']} rounds; operations and models on batches of {settings['batch_size']}, images of "
        f"{settings['img_size']} pixels; by resolution on batches of {settings['resolution_batch']}",
    ]
    if beside:
        lines.append(f"beside: {beside['source']} (file with SHA-256 `{beside['sha256']}`)")
    return "".join(f"- {line}\n" for line in lines) + "\n"


def state(artefact: Artefact) -> str:
    """The fullest profile in which there is a result: "paper", "demo" or none."""
    return next((p for p in ("paper", "demo") if (artefact.folder(p) / "provenance.json").exists()), "")


def progress(artefact: Artefact) -> str:
    """How far an artefact that has a notebook has come, as the status page says it."""
    profile = state(artefact)
    if profile and artefact.kind == "table" and papers.load(artefact.paper).tables[artefact.number].is_of_backbones:
        return STATES["costs"]
    if artefact.kind == "figure" and profile:
        found = json.loads((artefact.folder(profile) / "origin.json").read_text(encoding="utf-8"))
        return STATES["demo"] if found["stands_in"] else COMPLETE
    return STATES[profile]


def page(artefact: Artefact, folder: Path) -> None:
    """The executed notebook with where its numbers come from beneath; a line where there is none yet."""
    folder.mkdir(exist_ok=True)
    profile = state(artefact)
    if not profile:
        text = f"# {artefact.title}\n\nNot run yet: `make reproduce PAPER={artefact.paper} "
        text += f"{artefact.kind.upper()}={artefact.number}`\n"
        (folder / f"{artefact.name}.md").write_text(text, encoding="utf-8")
        return
    source = artefact.folder(profile)
    notebook = json.loads((source / f"{artefact.name}.ipynb").read_text(encoding="utf-8"))
    notebook["cells"].append(
        {"cell_type": "markdown", "id": "origin", "metadata": {}, "source": origin(source)},
    )
    (folder / f"{artefact.name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def origin(folder: Path) -> str:
    """Where the numbers of a result come from, folded away."""
    made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    found = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    if "figure" in found:
        return _figure_origin(made, found)
    timing, measured = found["timing"], [*found["runs"], *filter(None, [found["timing"]])]
    if not measured:
        return f"""## Where these numbers come from

Read off the models, with nothing trained or timed; page made {made["time"]} with commit {str(made["commit"])[:12]},
{_versions(made)}.
"""
    machines = sorted({_machine(item["origin"]) for item in measured})
    versions = sorted({_versions(item["origin"]) for item in measured})
    commits = sorted({str(item["origin"]["commit"])[:12] for item in measured})
    changed = any(item["origin"]["dirty"] for item in measured)
    return f"""## Where these numbers come from

````{{dropdown}} Machine, versions, commit and every run
- measured on {"; ".join(machines)}; page made {made["time"]}
- code of commit {", ".join(commits)}{" with uncommitted changes" if changed else ""}
- {"; ".join(versions)}
- throughput: batches of {timing["benchmark"]["batch_size"]} at {timing["benchmark"]["img_size"]} pixels,
  {timing["benchmark"]["rounds"]} rounds in which all models take turns, {timing["origin"]["device"]["threads"]} threads
{_training(found) if found["runs"] else "- nothing was trained"}
````
"""


def _training(found: dict[str, Any]) -> str:
    """Data and every training run of a table."""
    is_current = all(item["origin"]["code"] == model_code("frepro.train", item["model"]) for item in found["runs"])
    rows = "\n".join(
        f"| `{run['model']}` | {run['seed']} | {run['values']['top1']:.2f} | {run['seconds']:.0f} | `{run['key']}` |"
        for run in found["runs"]
    )
    data = found["data"]
    return f"""- data: {data["name"]}, {data["train"]} training and {data["test"]} test images,
  fingerprint `{data["fingerprint"]}`
- the code that these training runs pass through has {"not changed" if is_current else "changed"} since

| model | seed | test top-1 (%) | seconds | run |
| --- | --- | --- | --- | --- |
{rows}
"""


def _figure_origin(made: dict[str, Any], found: dict[str, Any]) -> str:
    is_current = made["code"] == provenance.code_fingerprint("frepro.illustration", *made["modules"])
    stands_in = [f"- {found['stands_in']}"] if found["stands_in"] else []
    sources = [f"- {', '.join(f'{key}: {value}' for key, value in source.items())}" for source in found["sources"]]
    facts = "\n".join(
        [
            f"- made {made['time']} on {_computer(made)}",
            f"- code of commit {str(made['commit'])[:12]}{' with uncommitted changes' if made['dirty'] else ''}; what",
            f"  this notebook uses has {'not changed' if is_current else 'changed'} since: "
            + ", ".join(f"`{name}`" for name in made["modules"]),
            f"- {_versions(made)}",
            *stands_in,
            *sources,
        ]
    )
    return f"""## Where this comes from

````{{dropdown}} Machine, versions, commit and what was measured
{facts}
````
"""


def _computer(origin: dict[str, Any]) -> str:
    machine = origin["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"


def _machine(origin: dict[str, Any]) -> str:
    device = origin["device"]
    gpu = "" if device["device"].startswith("cpu") else f", {device['name']}"
    return f"{_computer(origin)}{gpu}"


def _versions(origin: dict[str, Any]) -> str:
    return ", ".join([f"Python {origin['python']}", *(f"{name} {v}" for name, v in origin["versions"].items())])


def status() -> str:
    """A page with every table and figure of every paper and how far it has come."""
    lines = [
        "# Status",
        "",
        "Every table and figure of the papers, and how far it has come: **measured** is the published recipe on the",
        "data set that it was published for; **complete** is a figure that needs neither data set nor trained weights;",
        "**demo** is embedded data, with cost and throughput of the models at full size; **costs only** has backbones",
        "counted and timed, and accuracies not run, since there is no task yet for detection and segmentation;",
        "**not run** has a notebook and no result, **not built** no notebook yet.",
        "",
    ]
    for name in papers.names():
        paper = papers.load(name)
        captions = {key: papers.title(item) for key, item in paper.artefacts()}
        lines += [f"## {paper.title} ({paper.venue} {paper.year})", "", "| | caption | state |", "| --- | --- | --- |"]
        for artefact in artefacts(name):
            title = artefact.name.replace("_", " ").capitalize()
            if artefact.is_built:
                title = f"[{title}]({artefact.paper}/{artefact.name})"
            has_come = progress(artefact) if artefact.is_built else NOT_BUILT
            lines.append(f"| {title} | {captions[artefact.name]} | {has_come} |")
        lines.append("")
    return "\n".join(lines)
