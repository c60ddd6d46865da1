# The main commands of frepro. They need only python3 and make: each target first sets up the environment it uses.
#
#   make reproduce                                           every table and figure, on embedded data
#   make reproduce TABLE=4                                   Table 4 of every paper that has one
#   make reproduce PAPER=dfformer PROFILE=paper TABLE=4 DATA=/data/imagenet

.DEFAULT_GOAL := help
.PHONY: help reproduce bench test test-lowest book lint format lock clean

PYTHON3 ?= python3
VENV := .venv
UV_VERSION := 0.13.8

# An active conda or virtual environment that contains frepro is used as it is. Otherwise, .venv is used: it is created
# if it is missing, and updated if the lock file is newer. Paths and values reach recipes through the environment, where
# blanks, quotes and dollar signs mean nothing.
export ACTIVE := $(shell [ -n "$$VIRTUAL_ENV$$CONDA_PREFIX" ] \
	&& python -I -c 'from importlib.metadata import version; version("frepro")' 2>/dev/null \
	&& [ "$$(command -v python)" != "$$(pwd)/$(VENV)/bin/python" ] && command -v python)
ifeq ($(ACTIVE),)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
else
BIN := "$${ACTIVE%/*}"
READY :=
endif
PYTHON := $(BIN)/python

# Without this check, a misspelled variable would be ignored silently, and everything would be reproduced.
KNOWN := TABLE FIGURE PAPER PROFILE DATA CHECKPOINT BACKBONES SEEDS BUDGET DEVICE JOBS PER_DEVICE ADOPT RETRAIN ONLY ROUNDS BESIDE COVERAGE \
	PYTHON3
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
ifneq ($(filter-out $(KNOWN) -%,$(GIVEN)),)
$(error unknown variable $(filter-out $(KNOWN) -%,$(GIVEN)): use $(KNOWN))
endif
$(foreach name,$(filter $(KNOWN),$(GIVEN)),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

reproduce: $(READY)  ## make all, or: TABLE= FIGURE= PAPER= PROFILE= DATA= CHECKPOINT= BACKBONES= SEEDS= JOBS= RETRAIN=1 ...
	@$(PYTHON) -m frepro reproduce $${TABLE:+--table "$$TABLE"} $${FIGURE:+--figure "$$FIGURE"} \
		$${PAPER:+--paper "$$PAPER"} $${PROFILE:+--profile "$$PROFILE"} $${DATA:+--data "$$DATA"} \
		$${SEEDS:+--seeds "$$SEEDS"} $${BUDGET:+--budget "$$BUDGET"} $${DEVICE:+--device "$$DEVICE"} $${JOBS:+--jobs "$$JOBS"} \
		$${PER_DEVICE:+--per-device "$$PER_DEVICE"} $${CHECKPOINT:+--checkpoint "$$CHECKPOINT"} \
		$${BACKBONES:+--backbones "$$BACKBONES"} $(if $(filter-out 0,$(ADOPT)),--adopt) $(if $(filter-out 0,$(RETRAIN)),--retrain)

bench: $(READY)  ## measure speed and memory, needs an idle machine; options: ONLY= ROUNDS= BESIDE= DEVICE=
	@$(PYTHON) -m frepro bench $${ONLY:+--only "$$ONLY"} $${ROUNDS:+--rounds "$$ROUNDS"} \
		$${BESIDE:+--beside "$$BESIDE"} $${DEVICE:+--device "$$DEVICE"}

# One process per core, each with one thread. All tests of a file, and a notebook, run in the same process. COVERAGE=1
# prints the files of which less than 90 % of the lines ran; notebooks are not measured, as nbval waits in vain for
# coverage in their kernels. From Python 3.12, sys.monitoring makes coverage cheaper.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n logical --maxprocesses 8 --dist loadfile
test: $(READY)  ## run the tests, and the notebooks in profile smoke; COVERAGE=1 measures line coverage
ifeq ($(filter-out 0,$(COVERAGE)),)
	$(PYTEST) --nbval-lax tests notebooks
else
	$(SYSMON) $(PYTEST) --cov --cov-report= tests
	$(PYTEST) --nbval-lax notebooks
	@$(PYTHON) -m coverage report --sort=cover | awk '/^TOTAL/ || $$NF + 0 < 90'
endif
SYSMON = $(shell $(PYTHON) -c 'import sys; print("COVERAGE_CORE=sysmon" if sys.version_info >= (3, 12) else "")')

# In an environment of its own, in the same way: what pyproject.toml declares as the least is tried, not guessed.
test-lowest: $(READY)  ## test models and operations with the lowest declared versions; in .venv-lowest
	@$(PYTHON) -m uv venv --quiet --allow-existing --python $(PYTHON) .venv-lowest
	@$(PYTHON) -m uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct \
		--editable . 'pytest>=8' 'pytest-xdist>=3.6'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile tests/models tests/ops

book: $(READY)  ## build the report from committed results: _build/html/index.html
	$(BIN)/jupyter-book build -W -n --keep-going book

lint: $(READY)  ## check the style, the types and the direction of imports, as CI does
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(BIN)/lint-imports

format: $(READY)  ## fix style problems automatically where possible
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lock: $(READY)  ## update requirements.lock from pyproject.toml; pins that still fit stay
	@grep -v '^#' requirements.lock > requirements.lock.new
	@$(PYTHON) -m uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --extra book --extra cluster --extra dense --extra test --quiet \
		--output-file requirements.lock.new pyproject.toml > /dev/null
	@{ grep '^#' requirements.lock; cat requirements.lock.new; } > requirements.lock.full
	@mv requirements.lock.full requirements.lock && rm requirements.lock.new

clean:  ## remove build outputs; keep results and the environment
	rm -rf _build book/results build *.egg-info .pytest_cache .ruff_cache .coverage

# uv installs in seconds what pip installs in minutes. pip is the fallback if uv cannot reach the packages, as with a
# mirror that only pip is configured for. Modules are compiled here: where Python cannot write, each process would
# compile them again.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "frepro needs Python 3.11 or newer: make PYTHON3=/path/to/python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV), once (about 6 GB with torch) ..."
	@$(PYTHON3) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(VENV)/bin/python -m uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python \
		-r requirements.lock --editable . \
		|| $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock --editable .
	@touch $@
