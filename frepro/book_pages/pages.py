"""Sphinx extension of the book: add executed notebooks to its pages, and write the status page.

The book is built only from stored results and runs nothing. Sphinx reads only pages below ``book/``, so each build
copies the contents of ``results/demo`` to ``book/results``, which git ignores.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from frepro import papers, recipes, report
from frepro.analysis import sizes
from frepro.bench import results as bench
from frepro.book_pages import api_reference, audit
from frepro.errors import printable
from frepro.experiment.claims import did_train
from frepro.experiment.findings import from_csv
from frepro.report import benchmark as bench_report
from frepro.reproduce import Artefact, Notebook, artefacts
from frepro.store import provenance

STATES = {
    "paper": "measured",
    "demo": "demo",
    "": "not run",
}
COMPLETE = "complete"
# Display name of the main metric, by its key in the record of a run.
SCORES = {"top1": "top-1", "box_ap": "box AP", "miou": "mIoU"}
NOT_BUILT = "not built"


def setup(app: Any) -> dict[str, Any]:
    """Set up the extension for Sphinx before it looks for pages. Later warnings are errors."""
    app.warningiserror = True
    app.add_css_file("frepro.css")
    app.connect("html-page-context", without_thebe)
    lay_out(Path(app.srcdir) / "results")
    return {"version": provenance.version("frepro") or "", "parallel_read_safe": True}


def without_thebe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove, for each page, the scripts that Jupyter Book adds to run cells on a remote server."""
    scripts = context["script_files"]
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s.filename} {s.attributes.get('body')}".lower()]


def lay_out(folder: Path) -> None:
    """Write the pages that are generated from results."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "status.md").write_text(status(), encoding="utf-8")
    for artefact in artefacts():
        if artefact.is_built:
            page(artefact, folder / artefact.paper)
    models(folder / "models")
    performance(folder / "performance")
    front(folder)
    (folder / "audit.md").write_text(audit.page(), encoding="utf-8")
    api_reference.lay_out(folder / "api")


# The table and figure on the front page.
FRONT = Artefact("dfformer", "table", 4)


def front(folder: Path) -> None:
    """Write what the front page includes: a table with published and measured values and its figure, or "not run"."""
    profile = state(FRONT)
    if not profile:
        command = f"make reproduce PAPER={FRONT.paper} TABLE={FRONT.number}"
        (folder / "front.md").write_text(f"*not run* yet: `{command}`\n", encoding="utf-8")
        return
    source, paper = FRONT.folder(profile), papers.load(FRONT.paper)
    shutil.copy(source / "comparison.png", folder / "front.png")
    findings = from_csv((source / "findings.csv").read_text(encoding="utf-8"))
    view = report.published_beside_measured(findings, paper.tables[FRONT.number], ["params", "flops", "top1"])
    text = f"""```{{figure}} results/front.png
:figclass: drawing
:alt: Three panels with a line for each variant of DFFormer-S18. Accuracy on ImageNet as published, accuracy on\
 embedded data as measured here with its spread over seeds, and throughput relative to the baseline.

[Table {FRONT.number}](results/{FRONT.paper}/{FRONT.name}) of *{paper.title}*, as published and as measured here.
```

<div class="frepro-scroll">{view.html()}</div>
"""
    (folder / "front.md").write_text(text, encoding="utf-8")


def models(folder: Path) -> None:
    """Write what the pages of the model families include: a table of sizes for each, and the drawings."""
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
        counted = "vim_flops.csv" if name == "vim_flops" else "sizes.csv"
        text = f'<div class="frepro-scroll">{table.html()}</div>\n\n<p class="frepro-origin">{where}</p>\n\n'
        (folder / f"{name}.md").write_text(text + downloads([source / counted], folder), encoding="utf-8")


def downloads(files: Iterable[Path], folder: Path, prefix: str = "") -> str:
    """Copy CSV files to a folder of the book under unique names, and return a line of links to them."""
    links = []
    for file in files:
        shutil.copyfile(file, folder / f"{prefix}{file.name}")
        links.append(f"{{download}}`{prefix}{file.name} </results/{folder.name}/{prefix}{file.name}>`")
    return f"Download: {', '.join(links)}\n\n" if links else ""


# The parts of the performance page that show the benchmark.
BENCHMARK = {
    "models": "Models",
    "parts": "Where the time goes",
    "operations": "Operations",
    "roofline": "What the machine allows",
    "resolution": "Throughput and memory against resolution",
    "slower": "Where frepro is slower",
    "origin": "Where these numbers come from",
}
# The source file of each part.
BENCHMARK_DATA = {
    "models": "models.csv",
    "parts": "parts.csv",
    "operations": "operations.csv",
    "roofline": "operations.csv",
    "resolution": "resolution.csv",
    "slower": "ratios.csv",
    "origin": "rounds.csv",
}


def performance(folder: Path) -> None:
    """Write what the performance page includes: each part of the benchmark on a CPU, and all parts of that on a GPU."""
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
    """Return the parts of ``BENCHMARK`` as Markdown, and write their figures to the folder."""
    from frepro.figures import speed  # importing torch takes seconds

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
    parts = {
        "models": "".join(models),
        "parts": part("parts", BENCHMARK["parts"], bench_report.parts(found))
        if found.section("parts")
        else "*not run*\n\n",
        "operations": part("operations", BENCHMARK["operations"], bench_report.operations(found)),
        "roofline": part("roofline", BENCHMARK["roofline"], bench_report.roofline(found)),
        "resolution": part("resolution", BENCHMARK["resolution"], bench_report.resolution(found)),
        "slower": part("slower", BENCHMARK["slower"], slower) if slower.rows else "Nowhere in this run.\n\n",
        "origin": _benchmark_origin(found.provenance),
    }
    source = bench.folder(device)
    return {
        name: text + downloads(source.glob(BENCHMARK_DATA[name]), folder, f"{device}_") for name, text in parts.items()
    }


def _benchmark_origin(made: dict[str, Any]) -> str:
    settings, beside = made["settings"], made["beside"]
    kernels = made.get("kernels")  # results of before it was recorded have none
    lines = [
        f"measured {made['time']} in {made['seconds'] / 60:.0f} minutes on {_machine(made)}, "
        f"{made['device']['threads']} threads; load average before the start: {made['load_before']}",
        f"code of commit {escaped(made['commit'])[:12]}{' with uncommitted changes' if made['dirty'] else ''}; "
        f"{_versions(made)}",
        f"{settings['rounds']} rounds; operations and models on batches of {settings['batch_size']}, images of "
        f"{settings['img_size']} pixels; by resolution on batches of {settings['resolution_batch']}",
    ]
    if kernels and kernels["instruction_set"]:
        lines.append(f"CPU kernels for {kernels['instruction_set']} (`-march={kernels['march']}`)")
    if beside:
        lines.append(f"code given by --beside: {escaped(beside['source'])} (file with SHA-256 `{beside['sha256']}`)")
    return "".join(f"- {line}\n" for line in lines) + "\n"


def state(artefact: Artefact) -> str:
    """Return the most complete profile with a result: "paper", "demo", or empty."""
    return next((p for p in ("paper", "demo") if (artefact.folder(p) / "provenance.json").exists()), "")


def progress(artefact: Artefact) -> str:
    """Return the state of an artefact with a notebook for the status page."""
    profile = state(artefact)
    if artefact.kind == "figure" and profile:
        _, found = read(artefact.folder(profile))
        return STATES["demo"] if found["stands_in"] else COMPLETE
    return STATES[profile]


def page(artefact: Artefact, folder: Path) -> None:
    """Write the executed notebook with the origin of its numbers, or a line if there is no result yet."""
    folder.mkdir(exist_ok=True)
    profile, item = state(artefact), dict(papers.load(artefact.paper).artefacts())[artefact.name]
    if not profile:
        text = f"# {Notebook(artefact.notebook).title}\n\n> {' '.join(item.caption.split())}\n\nNot run yet: `make "
        text += f"reproduce PAPER={artefact.paper} {artefact.kind.upper()}={artefact.number}`\n"
        (folder / f"{artefact.name}.md").write_text(text, encoding="utf-8")
        return
    source = artefact.folder(profile)
    notebook = json.loads((source / f"{artefact.name}.ipynb").read_text(encoding="utf-8"))
    describe_pictures(notebook, f" In the paper: {item.shows}" if artefact.kind == "figure" else "")
    data = downloads(sorted(source.glob("*.csv")), folder, f"{artefact.paper}_{artefact.name}_")
    notebook["cells"].append(
        {"cell_type": "markdown", "id": "origin", "metadata": {}, "source": f"{origin(source)}\n{data}"},
    )
    (folder / f"{artefact.name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def describe_pictures(notebook: dict[str, Any], more: str) -> None:
    """Add an alternative text to every image output: the headings above it, and an additional text."""
    headings: list[str] = []
    for cell in notebook["cells"]:
        for line in "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else ():
            if found := re.match(r"(#+) (.+)", line):
                headings[len(found[1]) - 1 :] = [found[2].strip()]
        if any(kind.startswith("image/") for output in cell.get("outputs", ()) for kind in output.get("data", ())):
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["alt"] = f"{'; '.join(headings)}.{more}"


def escaped(name: object) -> str:
    """Return a name from a result as Markdown that shows it literally: it may be that of a user's file or machine."""
    return re.sub(r"[\\`*_{}\[\]<>|$~&#^]", r"\\\g<0>", printable(name))


def code(name: object) -> str:
    """Return a name as literal text, or as plain text if a literal in a table cannot contain it."""
    return f"`{name}`" if re.fullmatch(r"[\w.,:=/+ -]*\w", str(name)) else escaped(name)


def is_current(made: dict[str, Any]) -> bool:
    """Return whether the code of a result is unchanged; false if an earlier version did not record the code."""
    code = {name: found for name, found in made.get("made_from", {}).items() if name.startswith("frepro.")}
    return bool(code) and provenance.code(*code) == code


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the provenance and the origin of a result."""
    names = ("provenance.json", "origin.json")
    made, found = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
    return made, found


def origin(folder: Path) -> str:
    """Return the origin of the numbers of a result as Markdown with a collapsed section."""
    made, found = read(folder)
    if "figure" in found:
        return _figure_origin(made, found)
    timings, measured = found["timings"], [*found["runs"], *found["timings"]]
    if not measured:
        return f"""## Where these numbers come from

Determined from the models; nothing was trained or timed. Page made {made["time"]} with commit
{str(made["commit"])[:12]}, {_versions(made)}.
"""
    machines = sorted({_machine(item["origin"]) for item in measured})
    versions = sorted({_versions(item["origin"]) for item in measured})
    commits = sorted({str(item["origin"]["commit"])[:12] for item in measured})
    changed = any(item["origin"]["dirty"] for item in measured)
    return f"""## Where these numbers come from

````{{dropdown}} Machine, versions, commit and every run
- measured on {"; ".join(machines)}; page made {made["time"]}
- code of commit {", ".join(commits)}{" with uncommitted changes" if changed else ""}; what this page
  was made with has {"not changed" if is_current(made) else "changed"} since
- {"; ".join(versions)}
{_timing(timings) if timings else "- nothing was timed"}
{_training(found) if found["runs"] else "- nothing was trained"}
````
"""


def _timing(timings: list[dict[str, Any]]) -> str:
    """Return how the models of a table were timed: interleaved in one session, unless some were timed later."""
    benchmark, sessions = timings[0]["benchmark"], {timing["values"]["session"] for timing in timings}
    order = "interleaved" if len(sessions) == 1 else f"interleaved in {len(sessions)} sessions"
    return f"""- throughput: batches of {benchmark["batch_size"]} at {benchmark["img_size"]} pixels,
  {benchmark["rounds"]} rounds with all models {order}, {timings[0]["origin"]["device"]["threads"]} threads"""


def _training(found: dict[str, Any]) -> str:
    """Return the data and every training run of a table. An evaluated file of weights replaces the seed."""
    runs, data = found["runs"], found["data"]
    metric, name = next((key, name) for key, name in SCORES.items() if key in runs[0]["values"])
    network_heading = ["network"] if any(run.get("network") for run in runs) else []
    seed = "weights" if any(run.get("weights") for run in runs) else "seed"
    headings = ["model", *network_heading, seed, f"test {name} (%)", "seconds", "run"]
    lines = [headings, ["---"] * len(headings)]
    for run in runs:
        network = [recipes.NETWORKS[run["network"]]] if network_heading else []
        source = code(run["weights"]) if run.get("weights") else str(run["seed"])
        score, seconds = f"{run['values'][metric]:.2f}", f"{run['seconds']:.0f}"
        if not did_train(run["values"], data["classes"]):
            score += ", did not train"
        lines.append([code(run["model"]), *network, source, score, seconds, code(run["key"])])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"""- data: {escaped(data["name"])}, {data["train"]} training and {data["test"]} test images,
  fingerprint `{data["fingerprint"]}`

{rows}
"""


def _figure_origin(made: dict[str, Any], found: dict[str, Any]) -> str:
    stands_in = [f"- {escaped(found['stands_in'])}"] if found["stands_in"] else []
    sources = [
        f"- {', '.join(f'{escaped(key)}: {escaped(value)}' for key, value in source.items())}"
        for source in found["sources"]
    ]
    facts = "\n".join(
        [
            f"- made {made['time']} on {_computer(made)}",
            f"- code of commit {str(made['commit'])[:12]}{' with uncommitted changes' if made['dirty'] else ''}; what",
            f"  this notebook uses has {'not changed' if is_current(made) else 'changed'} since: "
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
    cpu, system = escaped(machine["cpu"]), escaped(machine["system"])
    return f"{cpu}, {machine['cores']} cores, {machine['memory_gib']} GiB, {system}"


def _machine(origin: dict[str, Any]) -> str:
    device = origin["device"]
    gpu = "" if device["device"].startswith("cpu") else f", {escaped(device['name'])}"
    return f"{_computer(origin)}{gpu}"


def _versions(origin: dict[str, Any]) -> str:
    return ", ".join(
        [f"Python {origin['python']}", *(escaped(f"{name} {v}") for name, v in origin["versions"].items())]
    )


def status() -> str:
    """Return the status page: every table and figure, its state, and the commit that its result was made with."""
    lines = [
        "# Status",
        "",
        "The state of every table and figure of the papers. **measured**: the published recipe on the published data",
        "set. **complete**: a figure that needs neither a data set nor trained weights. **demo**: embedded data; cost",
        "and throughput are those of the models at full size. **not run**: there is a notebook, but no result. **not",
        "built**: there is no notebook yet. The last column shows whether the code has changed since the result was",
        "made.",
        "",
    ]
    for name in papers.names():
        paper = papers.load(name)
        captions = {key: papers.title(item) for key, item in paper.artefacts()}
        lines += [f"## {paper.title} ({paper.venue} {paper.year})", "", ":::{container} frepro-status"]
        lines += ["| | caption | state | made | commit | code since |", "| --- | --- | --- | --- | --- | --- |"]
        for artefact in artefacts(name):
            title = f"{artefact.kind.capitalize()} {artefact.number}"
            if artefact.is_built:
                title = f"[{title}]({artefact.paper}/{artefact.name})"
            come = [progress(artefact), *_made(artefact)] if artefact.is_built else [NOT_BUILT, "", "", ""]
            lines.append(f"| {title} | {captions[artefact.name]} | {' | '.join(come)} |")
        lines += [":::", ""]
    return "\n".join(lines)


def _made(artefact: Artefact) -> list[str]:
    """Return date and commit of a result, and whether its code has changed since; empty strings without a result."""
    if not (profile := state(artefact)):
        return ["", "", ""]
    made, _ = read(artefact.folder(profile))
    commit = f"`{str(made['commit'])[:10]}`{' and changes' if made['dirty'] else ''}"
    return [made["time"][:10], commit, "the same" if is_current(made) else "changed"]
