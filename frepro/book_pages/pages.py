"""Sphinx extension of the book: add executed notebooks to its pages, and write the status page.

The book is built only from stored results and runs nothing. Sphinx reads only pages below ``book/``, so each build
copies the contents of ``results/demo`` to ``book/results``, which git ignores.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frepro import papers, recipes, report
from frepro.analysis import sizes
from frepro.bench import results as bench
from frepro.bench import scaling
from frepro.book_pages import audit, verdicts
from frepro.book_pages.markdown import render
from frepro.book_pages.verdicts import state
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
    verdicts.write(folder)
    (folder / "audit.md").write_text(audit.page(), encoding="utf-8")


# The table and figure on the front page.
FRONT = Artefact("dfformer", "table", 4)


def front(folder: Path) -> None:
    """Write what the front page includes: a table with published and measured values and its figure, or "not run"."""
    profile, paper, view = state(FRONT), papers.load(FRONT.paper), None
    if profile:
        source = FRONT.folder(profile)
        shutil.copy(source / "comparison.png", folder / "front.png")
        findings = from_csv((source / "findings.csv").read_text(encoding="utf-8"))
        view = report.published_beside_measured(findings, paper.tables[FRONT.number], ["params", "flops", "top1"])
    text = render("front", artefact=FRONT, paper=paper, view=view)
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
    found = sizes.read()
    tables = {
        family: report.sizes([size for size in found if size.family == family])
        for family in dict.fromkeys(size.family for size in found)
    }
    tables["vim_flops"] = report.vim_flops(sizes.read_vim_flops())
    for name, table in tables.items():
        counted = "vim_flops.csv" if name == "vim_flops" else "sizes.csv"
        files = copied([source / counted], folder)
        text = render("sizes", view=table, made=made, versions=_versions(made), files=files)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def copied(files: Iterable[Path], folder: Path, prefix: str = "") -> list[str]:
    """Copy CSV files to a folder of the book under unique names, and return these names."""
    return [shutil.copyfile(file, folder / f"{prefix}{file.name}").name for file in files]


# The parts of the performance page that show the benchmark.
BENCHMARK = {
    "models": "Models",
    "parts": "Where the time goes",
    "operations": "Operations",
    "roofline": "What the machine allows",
    "resolution": "Throughput and memory against resolution",
    "vim": "Vim against resolution",
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
    "vim": "resolution.csv",
    "slower": "ratios.csv",
    "origin": "rounds.csv",
}


def performance(folder: Path) -> None:
    """Write what the performance page includes: each part of the benchmark on CPUs, and all parts of that on a GPU.

    The results of each instruction set have a heading of their own.
    """
    folder.mkdir()
    on_cpus: dict[str, list[str]] = {name: [] for name in BENCHMARK}
    gpu = "*not run* yet: `make bench` on a machine with a CUDA device\n"
    for source in bench.folders():
        found = bench.read(source)
        parts = _benchmark(found, folder, source)
        if source.name == "gpu":
            gpu = "".join(f"### {title}\n\n{parts[name]}" for name, title in BENCHMARK.items())
            continue
        for name, text in parts.items():
            on_cpus[name].append(f"### {found.machine}\n\n{text}")
    for name, texts in on_cpus.items():
        (folder / f"{name}.md").write_text("".join(texts) or "*not run* yet: `make bench`\n", encoding="utf-8")
    (folder / "gpu.md").write_text(gpu, encoding="utf-8")


def _benchmark(found: bench.Found, folder: Path, source: Path) -> dict[str, str]:
    """Return the parts of ``BENCHMARK`` as Markdown, and write their figures to the folder.

    Args:
        source: The folder that the results are from; its name tells the files of the page apart.
    """
    from frepro.figures import speed  # importing torch takes seconds

    pictures = speed.pictures(found)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{source.name}_{name}.png")

    def table(name: str, title: str, view: report.View, heading: str = "") -> tuple[str, str, str, report.View]:
        """Return a table as ``benchmark_part`` prints it, with its image if there is one."""
        return heading, title, f"{source.name}_{name}.png" if name in pictures else "", view

    variants = list(dict.fromkeys(line.variant for line in found.section("models")))
    formers, vims = (scaling.only(found, names) for names in (scaling.MODELS, scaling.VIM))
    views = {
        "parts": [bench_report.parts(found)] if found.section("parts") else [],
        "operations": [bench_report.operations(found)],
        "roofline": [bench_report.roofline(found)],
        "resolution": [bench_report.resolution(formers)],
        "vim": [bench_report.vim(found)] if vims.lines else [],
        "slower": [view] if (view := bench_report.slower(found)).rows else [],
    }
    tables = {name: [table(name, BENCHMARK[name], view) for view in some] for name, some in views.items()}
    tables["models"] = [
        table(
            bench_report.picture_of_models(variant),
            f"Models, {variant}",
            bench_report.models(found, variant),
            variant if len(variants) > 1 else "",
        )
        for variant in variants
    ]
    files = {name: copied(source.glob(data), folder, f"{source.name}_") for name, data in BENCHMARK_DATA.items()}
    empty = {"slower": "Nowhere in this run."}
    parts = {
        name: render("benchmark_part", tables=some, empty=empty.get(name, "*not run*"), files=files[name])
        for name, some in tables.items()
    }
    made = found.provenance
    parts["origin"] = render(
        "benchmark_origin",
        made={"kernels": None, **made},
        machine=_machine(made),
        versions=_versions(made),
        files=files["origin"],
    )
    return parts


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
        title, caption = Notebook(artefact.notebook).title, " ".join(item.caption.split())
        text = render("not_run", title=title, caption=caption, artefact=artefact)
        (folder / f"{artefact.name}.md").write_text(text, encoding="utf-8")
        return
    source = artefact.folder(profile)
    notebook = json.loads((source / f"{artefact.name}.ipynb").read_text(encoding="utf-8"))
    describe_pictures(notebook, f" In the paper: {item.shows}" if isinstance(item, papers.Figure) else "")
    files = copied(sorted(source.glob("*.csv")), folder, f"{artefact.paper}_{artefact.name}_")
    text = render("artefact_end", origin=origin(source), folder=artefact.paper, files=files)
    fold_code(notebook)
    title, rest = "".join(notebook["cells"][0]["source"]).split("\n", 1)
    notebook["cells"][0]["source"] = f"{title}\n\n{answer(artefact, profile, folder, files)}\n{rest}"
    notebook["cells"].append({"cell_type": "markdown", "id": "origin", "metadata": {}, "source": text})
    (folder / f"{artefact.name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def answer(artefact: Artefact, profile: str, folder: Path, files: list[str]) -> str:
    """Return the box at the top of a page: a claim and its test, the verdicts of all claims, and the command.

    Args:
        files: Names of the CSV files of the page, which are in the folder already.
    """
    source, prefix = artefact.folder(profile), f"{artefact.paper}_{artefact.name}_"
    found = verdicts.of(artefact, profile)
    data = [name for name in files if name == f"{prefix}{verdicts.NAME}"] or files[:1]
    command = f"make reproduce PAPER={artefact.paper} {artefact.kind.upper()}={artefact.number}"
    return render(
        "answer",
        main=verdicts.main(found),
        total=len(found),
        counts=verdicts.totals(found),
        stands_in=read(source)[1].get("stands_in", ""),
        command=command + (f" PROFILE={profile}" if profile == "paper" else ""),
        folder=artefact.paper,
        files=copied([source / f"{artefact.name}.ipynb"], folder, prefix)
        + data
        + copied([source / "provenance.json"], folder, prefix),
    )


def fold_code(notebook: dict[str, Any]) -> None:
    """Fold the code of every cell, and remove from it the markers of nbval, which mean nothing to a reader."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = re.sub(r"(?m)^# NBVAL_\w+\n?", "", "".join(cell["source"]))
            tags = cell["metadata"].setdefault("tags", [])
            if not {"remove-input", "remove-cell", "hide-cell", "hide-input"} & set(tags):
                tags.append("hide-input")


def describe_pictures(notebook: dict[str, Any], more: str) -> None:
    """Add an alternative text to every image output: the headings above it, and an additional text."""
    headings: list[str] = []
    for cell in notebook["cells"]:
        for line in "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else ():
            if found := re.match(r"(#+) (.+)", line):
                headings[len(found[1]) - 1 :] = [found[2].strip()]
        if any(kind.startswith("image/") for output in cell.get("outputs", ()) for kind in output.get("data", ())):
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["alt"] = f"{'; '.join(headings)}.{more}"


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
        facts = {"is_current": is_current(made), "computer": _computer(made), "versions": _versions(made)}
        return render("figure_origin", made=made, found=found, **facts)
    runs, timings = found["runs"], found["timings"]
    origins = [item["origin"] for item in [*runs, *timings]]
    main = [kind.main_metric() for kind in recipes.TASKS.values()]
    return render(
        "table_origin",
        made=made,
        versions=_versions(made),
        is_current=is_current(made),
        machines=sorted({_machine(origin) for origin in origins}),
        builds=sorted({_versions(origin) for origin in origins}),
        commits=sorted({str(origin["commit"])[:12] for origin in origins}),
        dirty=any(origin["dirty"] for origin in origins),
        timings=timings,
        sessions=len({timing["values"]["session"] for timing in timings}),  # interleaved in one, unless some came later
        data=found["data"],
        runs=runs,
        metric=next((metric for metric in main if runs and metric.name in runs[0]["values"]), None),
        has_network=any(run.get("network") for run in runs),
        has_weights=any(run.get("weights") for run in runs),  # files of weights that were evaluated have no seed
        networks=recipes.NETWORKS,
        did_train=did_train,
    )


def _computer(origin: Mapping[str, Any]) -> str:
    machine = origin["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"


def _machine(origin: Mapping[str, Any]) -> str:
    device = origin["device"]
    gpu = "" if device["device"].startswith("cpu") else f", {device['name']}"
    return f"{_computer(origin)}{gpu}"


def _versions(origin: Mapping[str, Any]) -> str:
    return ", ".join([f"Python {origin['python']}", *(f"{name} {v}" for name, v in origin["versions"].items())])


def status() -> str:
    """Return the status page: every table and figure, its state, and the commit that its result was made with."""
    rows = []
    for name in papers.names():
        paper = papers.load(name)
        captions = {key: papers.title(item) for key, item in paper.artefacts()}
        rows.append((paper, [(each, captions[each.name], *_state(each)) for each in artefacts(name)]))
    return render("status", papers=rows)


def _state(artefact: Artefact) -> tuple[str, dict[str, Any] | None]:
    """Return the state of an artefact, and the provenance of its result if there is one."""
    if not artefact.is_built:
        return NOT_BUILT, None
    if not (profile := state(artefact)):
        return progress(artefact), None
    made, _ = read(artefact.folder(profile))
    return progress(artefact), made | {"is_current": is_current(made)}
