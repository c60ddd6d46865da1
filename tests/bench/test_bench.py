"""The benchmark, run tiny in a process of its own; nothing here asks how fast anything is."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from statistics import median

import pytest
import torch

from frepro.bench import beside, models, parts, results
from frepro.bench.run import run
from frepro.book_pages import pages
from frepro.errors import FreproError
from frepro.ops import cpu
from frepro.report import benchmark as report
from tests.conftest import OFFLINE, ROOT

CPU = results.folder("cpu", cpu.instruction_set()).name  # of this processor's instruction set

BESIDE = """
import torch
from torch import nn

SOURCE = "a net of one layer, made for this test"


def models():
    def tiny():
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))

    return {"dfformer_s18": tiny, "one_layer": tiny}


def operations():
    def star_relu(x, scale, bias):
        return lambda: scale * torch.relu(x) ** 2 + bias

    return {"star_relu": star_relu}
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A whole tiny run with code beside: what the process said, and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "others.py").write_text(BESIDE)
    environment = {
        **os.environ,
        "FREPRO_RESULTS": str(folder / "results"),
        "PYTHONPATH": os.pathsep.join([str(OFFLINE), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "frepro", "bench", "--smoke", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--beside", str(folder / "others.py")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done, folder / "results" / "bench-smoke" / CPU


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


KEY = ("section", "name", "size", "variant", "work", "side")


def test_all_files_are_there_and_all_was_timed(bench):
    done, folder = bench
    assert sorted(path.name for path in folder.iterdir()) == [
        "models.csv",
        "models.png",
        "operations.csv",
        "operations.png",
        "parts.csv",
        "parts.png",
        "provenance.json",
        "ratios.csv",
        "resolution.csv",
        "resolution.png",
        "roofline.png",
        "rounds.csv",
        "vim.png",
    ]
    assert "rounds.csv" in done.stdout
    found = results.read(folder)
    assert [line.note for line in found.lines if line.note] == []
    assert all(line.rounds == 2 and line.low <= line.seconds <= line.high for line in found.lines)
    assert all(line.low > 0 for line in found.lines if line.section != "parts")  # a model may have no norms
    sides = {(line.name, line.side) for line in found.section("operations")}
    assert {name for name, side in sides if side == "reference"} == {name for name, side in sides if side == "frepro"}
    assert {(line.name, line.side) for line in found.section("models")} >= {
        ("vim_tiny", "frepro"),
        ("vim_tiny", "reference"),
        ("deit_tiny_patch16_224", "timm"),
    }
    works = {line.work: line.images for line in found.section("models", variant="float32")}
    assert works == {"inference": 1, "training step": 1, "latency": 1}
    few = {(line.variant, line.name) for line in found.section("models") if line.variant != "float32"}
    variants = models.variants(torch.device("cpu"))[1:]
    assert few == {(variant, "deit_tiny_patch16_224") for variant in variants}
    assert "float32 compiled" in variants
    assert all(line.weights_mib > 0 and line.forward_mib > 0 for line in found.section("resolution"))


def test_ratios_and_lines_follow_from_the_rounds(bench):
    _, folder = bench
    times = {}
    for row in rows(folder / "rounds.csv"):
        times.setdefault(tuple(row[name] for name in KEY), []).append(float(row["seconds"]))
    for section in results.SECTIONS:
        for row in rows(folder / f"{section}.csv"):
            assert float(row["seconds"]) == pytest.approx(median(times[tuple(row[name] for name in KEY)]))
    ratios = rows(folder / "ratios.csv")
    for row in ratios:
        section, name, size, variant, work, side = (row[field] for field in KEY)
        other = row["against"] if row["against"] in ("reference", "beside") else "timm"
        other = (section, row["against"] if other == "timm" else name, size, variant, work, other)
        values = [b / a for a, b in zip(times[section, name, size, variant, work, side], times[other], strict=True)]
        found = [float(row[field]) for field in ("ratio", "low", "high")]
        assert found == pytest.approx([median(values), min(values), max(values)])
    compared = {(row["section"], row["name"], row["side"], row["against"]) for row in ratios}
    assert ("models", "dfformer_s18", "frepro", "caformer_s18") in compared
    assert ("models", "vim_tiny", "frepro", "deit_tiny_patch16_224") in compared
    assert ("resolution", "dfformer_s18", "frepro", "caformer_s18") in compared
    assert ("operations", "selective_scan", "frepro", "reference") in compared


def test_the_time_of_a_pass_is_divided_among_its_layers(bench):
    _, folder = bench
    found = results.read(folder)
    spent = {(line.name, line.side, line.work): line.seconds for line in found.section("parts")}
    assert {model[:2] for model in spent} == {
        (line.name, line.side) for line in found.section("models") if line.side != "reference"
    }
    assert spent["one_layer", "beside", "matrix products"] > 0
    assert spent["one_layer", "beside", "norms"] == spent["one_layer", "beside", "convolutions"] == 0
    assert all(spent["caformer_s18", "timm", part] > 0 for part in results.PARTS)
    (row,) = [cells for cells in report.parts(found).rows if cells[0] == "vim_tiny"]
    ceiling = sum(spent["deit_tiny_patch16_224", "timm", part] for part in results.PARTS)
    # The fixture's operations give the rate, 12 blocks of DeiT-Ti on 17 tokens and its head the products.
    deit = next(line for line in found.section("parts", name="deit_tiny_patch16_224") if line.flops)
    assert deit.flops == 2 * (12 * (17 * 12 * 192**2 + 2 * 17**2 * 192) + 192 * 1000)
    share = deit.flops / report.peak_rates(found)[1] / ceiling
    (peer,) = [cells for cells in report.parts(found).rows if cells[0] == "deit_tiny_patch16_224"]
    assert float(peer[-3]) == pytest.approx(100 * share, abs=0.5)
    assert float(row[-2]) == pytest.approx(ceiling / spent["vim_tiny", "frepro", "matrix products"], abs=0.005)


def test_layers_inside_of_layers_count_once_and_all_time_is_counted():
    class Slow(torch.nn.Module):
        def __init__(self, seconds, *inner):
            super().__init__()
            self.seconds, self.inner = seconds, torch.nn.Sequential(*inner)

        def forward(self, x):
            time.sleep(self.seconds)
            return self.inner(x)

    class SlowNorm(Slow):
        pass

    class NormHead(Slow):
        pass

    inner_norm = SlowNorm(0.02)
    found = parts.seconds(NormHead(0.03, SlowNorm(0.02, inner_norm), torch.nn.Linear(3, 3)), torch.randn(2, 3))
    assert found["norms"] >= 0.04
    assert found["the rest"] >= 0.03
    assert found["matrix products"] > 0
    assert found["convolutions"] == found["activations"] == 0


def test_code_beside_is_timed_compared_and_named(bench):
    _, folder = bench
    made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert made["beside"] == {
        "source": "a net of one layer, made for this test",
        "sha256": hashlib.sha256(BESIDE.encode()).hexdigest(),
    }
    assert str(folder.parents[2]) not in json.dumps(made)  # no path of this machine
    found = results.read(folder)
    assert {line.name for line in found.lines if line.side == "beside"} == {"dfformer_s18", "one_layer", "star_relu"}
    against = {(ratio.name, ratio.work) for ratio in found.ratios if ratio.against == "beside"}
    assert against == {
        *(("dfformer_s18", work) for work in ("inference", "training step", "latency")),
        *(("star_relu", work) for work in ("forward", "forward and backward")),
    }
    text = report.models(found).text()
    assert "× beside" in text
    assert "one_layer (beside)" in text


def test_what_is_written_is_what_is_read(bench, tmp_path):
    _, folder = bench
    found = results.read(folder)
    results.write(found, tmp_path)
    for name in (
        "operations.csv",
        "models.csv",
        "parts.csv",
        "resolution.csv",
        "rounds.csv",
        "ratios.csv",
        "provenance.json",
    ):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


def test_the_page_is_made_from_results(bench, store, tmp_path):
    pages.performance(tmp_path / "none")
    assert {path.read_text() for path in (tmp_path / "none").glob("[mors]*.md")} == {"*not run* yet: `make bench`\n"}

    shutil.copytree(bench[1], store / "bench" / CPU)
    pages.performance(tmp_path / "page")
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "page").glob("*.md")}
    assert set(texts) == {*pages.BENCHMARK, "gpu"}
    assert "not run" in texts["gpu"]
    for name in ("models", "parts", "operations", "roofline", "resolution", "vim"):
        assert f"![{'Models, float32' if name == 'models' else pages.BENCHMARK[name]}]" in texts[name]
        assert f"results/performance/{CPU}_{name}.png" in texts[name]
        assert (tmp_path / "page" / f"{CPU}_{name}.png").stat().st_size > 10_000
        assert '<th scope="row">' in texts[name]
    assert "a net of one layer" in texts["origin"]
    assert f"CPU kernels for {cpu.instruction_set()} (`-march=" in texts["origin"] or cpu.reason()
    page = (ROOT / "book" / "performance.md").read_text(encoding="utf-8")
    assert all(f"results/performance/{name}.md" in page for name in texts)

    shutil.copytree(bench[1], store / "bench" / "gpu")
    pages.performance(tmp_path / "both")
    gpu = (tmp_path / "both" / "gpu.md").read_text(encoding="utf-8")
    assert "### Where frepro is slower" in gpu
    assert "gpu_resolution.png" in gpu


def test_the_page_shows_each_instruction_set_by_itself(bench, store, tmp_path):
    for name in ("AVX-512", "AVX2"):
        target = results.folder("cpu", name)
        shutil.copytree(bench[1], target)
        made = json.loads((target / "provenance.json").read_text(encoding="utf-8"))
        held = {"ATEN_CPU_CAPABILITY": "avx2"} if name == "AVX2" else {}
        made["kernels"] = {"instruction_set": name, "march": "x", "processor": "AVX-512", "held": held}
        (target / "provenance.json").write_text(json.dumps(made), encoding="utf-8")
    assert [path.name for path in results.folders()] == ["cpu-avx-512", "cpu-avx2"]
    pages.performance(tmp_path / "page")
    processor = made["device"]["name"]
    for name in pages.BENCHMARK:
        text = (tmp_path / "page" / f"{name}.md").read_text(encoding="utf-8")
        first, second = f"\n{text}".split("\n### ")[1:]
        assert first.startswith(f"{processor}, AVX-512\n")
        assert second.startswith(f"{processor}, AVX2\n")
        assert "cpu-avx2_" not in first
        assert "cpu-avx-512_" not in second
    said = "AVX2 on a processor with AVX-512: all libraries held to AVX2 (`ATEN_CPU_CAPABILITY=avx2`)"
    assert said in second
    assert said not in first


def test_an_unknown_pattern_is_one_line(frepro_command):
    done = frepro_command("bench", "--smoke", "--only", "nosuch")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no benchmark matches 'nosuch': choose from operations/ copy," in done.stderr


def test_a_part_stands_apart_and_brings_what_it_is_compared_with(store):
    found, folder = run("cpu", rounds=1, only="scan", smoke=True, log=lambda line: None)
    assert {line.name for line in found.lines} == {"selective_scan", "copy", "matrix_product"}
    assert {line.rounds for line in found.lines} == {1}
    assert folder == store / "bench-smoke" / CPU
    assert not (folder / "models.csv").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "operations: its process was killed, possibly because memory ran out"),
        ("raise FreproError('not on this machine')", "not on this machine"),
    ],
)
def test_a_section_that_fails_ends_the_benchmark_and_keeps_its_results(bench, store, tmp_path, body, message):
    folder = store / "bench-smoke" / CPU
    shutil.copytree(bench[1], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = "import os, signal\nfrom frepro.errors import FreproError\nSOURCE = 'x'\n"
    (tmp_path / "others.py").write_text(
        f"{code}def operations(): return {{'star_relu': stop}}\ndef stop(*tensors): {body}"
    )
    said = []
    with pytest.raises(FreproError, match=message):
        run("cpu", rounds=1, only="star", beside=tmp_path / "others.py", smoke=True, log=said.append)
    assert said == ["operations: copy, matrix_product, star_relu"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "no file .*others.py: --beside takes a Python file"),
        ("1 / 0", "cannot be used by --beside: ZeroDivisionError"),
        ("def models(): return {'a': print}", "must define SOURCE"),
        ("SOURCE = 'x'", r"must define SOURCE, a string, and models\(\) or operations\(\)"),
    ],
)
def test_a_file_that_cannot_stand_beside(tmp_path, code, message):
    path = tmp_path / "others.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(FreproError, match=message):
        beside.load(path)


def test_code_beside_is_a_file_that_python_imports(tmp_path):
    (tmp_path / "others.txt").write_text("SOURCE = 'x'\ndef models(): return {'a': print}")
    with pytest.raises(FreproError, match=r"others\.txt cannot be used by --beside: its name does not end in \.py"):
        beside.load(tmp_path / "others.txt")


def test_an_operation_beside_must_be_one_of_ours(tmp_path):
    (tmp_path / "others.py").write_text("SOURCE = 'x'\ndef operations(): return {'star_relo': print}")
    with pytest.raises(FreproError, match="unknown operation of --beside 'star_relo': did you mean star_relu"):
        run("cpu", only="star", beside=tmp_path / "others.py", smoke=True)


def test_a_forced_backend_would_compare_nothing(monkeypatch):
    monkeypatch.setenv("FREPRO_BACKEND", "torch")
    with pytest.raises(FreproError, match="FREPRO_BACKEND is set: unset it"):
        run("cpu", smoke=True)
