"""Without Jupyter, pandas and matplotlib the package imports, trains, evaluates and times."""

import subprocess
import sys

from tests.conftest import ROOT

WITHOUT = """
import sys

class Without:
    names = {"IPython", "ipykernel", "jupyter_book", "jupyter_client", "matplotlib", "nbformat", "pandas", "papermill",
             "pydantic", "seaborn", "sphinx", "mamba_ssm"}

    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return None
        return next((spec for f in self.finders if (spec := f.find_spec(name, path, target))), None)

    def find_distributions(self, *arguments):
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda *a: ())(*arguments)

sys.meta_path[:] = [Without(list(sys.meta_path))]
"""


def test_a_bare_machine_trains_evaluates_and_times(store):
    code = WITHOUT + (
        "import importlib.util\n"
        "assert importlib.util.find_spec('pandas') is None\n"
        "sys.argv = ['frepro', 'train', '--model', 'gfformer_s18', '--profile', 'smoke', '--device', 'cpu']\n"
        "import runpy\n"
        "try: runpy.run_module('frepro', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "from pathlib import Path\n"
        "from frepro import paths\n"
        "(weights,) = (paths.results() / 'runs').glob('*/model.safetensors')\n"
        "sys.argv = ['frepro', 'eval', '--model', 'gfformer_s18', '--profile', 'smoke', '--checkpoint', str(weights)]\n"
        "try: runpy.run_module('frepro', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "from frepro.analysis.cost import throughput\n"
        "from frepro.recipes import Benchmark\n"
        "from frepro.training.runs import Throughput\n"
        "print(throughput([Throughput('x/table_1', 'resnet18', {}, Benchmark(1, 32, 1), 'cpu', 'x')])[0]['kind'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "gfformer_s18, seed 0: test top-1" in done.stdout
    assert "gfformer_s18: top1" in done.stdout
    assert done.stdout.endswith("throughput\n")


def test_import_registers_models_and_reads_no_command_line():
    code = "import frepro, timm; print(timm.create_model('dfformer_s18', features_only=True).feature_info.channels())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout == "[64, 128, 320, 512]\n", done.stderr
