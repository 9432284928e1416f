# Each does its own set-up in .venv:
#   make demo   the whole path on a laptop: tiles, shards, pretraining, stop and resume, evaluation
#   make sample the shards of the demo alone, for the other demo configs
#   make test   all tests but the nightly ones
#   make lint   style, types, imports between packages
#   make docs   the documentation's site, in site/
#   make gpu-check   what this machine's GPU computes, and how fast (docs/performance.md)
# WHEELS=DIR installs from a folder of wheels, and from what the machine's Python has, where nothing can be downloaded.
# make demo TILES=DIR [LABELS=DIR] [TASK=NAME] takes your own tiles; SHORT=1 makes it quick.

# The newest Python that our constraints have versions for; make PYTHON=... takes another one.
NOT_OURS := not (3, 11) <= sys.version_info[:2] <= (3, 14)
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit($(NOT_OURS))' >/dev/null 2>&1 && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := $(if $(WHEELS),gpu,dev,docs$(shell command -v nvidia-smi >/dev/null 2>&1 && echo ,gpu))
# Beside a GPU, the torch that xformers is built for, and the cuDNN that goes with it (the file says why).
PINS := $(shell command -v nvidia-smi >/dev/null 2>&1 && [ "$$(uname -m)" = x86_64 ] && echo constraints-gpu.txt || echo constraints.txt)
CUDNN := nvidia-cudnn-cu12==9.20.0.48

# Hundreds of processes load the same modules: they are compiled once, also where the environment says otherwise.
export PYTHONDONTWRITEBYTECODE :=

FROM := $(if $(WHEELS),--no-index --find-links "$(WHEELS)" --no-build-isolation,-c $(PINS))

.PHONY: demo sample test lint docs nightly gpu-check clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready
	@$(BIN)/python -m tools.demo $(if $(TILES),--tiles "$(TILES)") $(if $(LABELS),--labels "$(LABELS)") $(if $(TASK),--task "$(TASK)") $(if $(SHORT),--short)

sample: $(VENV)/.ready
	@$(BIN)/python -m tools.demo --shards-only

# Process groups spend much of their time waiting: the other tests fill the gaps, at a lower priority so as to delay none.
# Files of long tests go first, since the last one runs alone.
PYTEST := $(BIN)/python -m pytest -m "not nightly" --durations=15
OTHERS := $(VENV)/other-tests.log
test: $(VENV)/.ready
	@PYTHONPATH=. $(BIN)/python tests/support/compiled_loops.py
	@nice -n 10 $(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder \
	    tests/integration tests/parity tests/unit/tools tests/unit >$(OTHERS) 2>&1 & others=$$!; \
	trap 'trap - TERM; kill 0' INT TERM; \
	$(PYTEST) tests/distributed; code=$$?; \
	wait $$others || code=1; cat $(OTHERS); exit $$code

lint: $(VENV)/.ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# A warning is an error (mkdocs.yml); the site is in site/.
docs: $(VENV)/.ready
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

nightly: $(VENV)/.ready
	@$(BIN)/python -m pytest -m nightly

gpu-check: $(VENV)/.ready
	@$(BIN)/python -m tools.gpu_check

# The environment of another Python is replaced: packages of two versions do not mix.
$(VENV)/.ready: setup.cfg pyproject.toml constraints-common.txt $(PINS)
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.11 to 3.14 with its venv module found: sudo apt install python3-venv (Ubuntu 24.04, Debian 12 and newer), load a module, activate a conda environment, or make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit($(NOT_OURS))' || { echo "error: $(PYTHON) is not Python 3.11 to 3.14, which $(PINS) is for" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module: sudo apt install python3-venv" >&2; exit 2; }
	@echo "installing into $(VENV) with $$($(PYTHON) --version) (once, about a minute)"
	@[ "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V)" ] || rm -rf $(VENV)
	@$(PYTHON) -m venv$(if $(WHEELS), --system-site-packages) $(VENV)
	@[ -z "$(WHEELS)" ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade $(FROM) setuptools
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(FROM) -e ".[$(EXTRAS)]"
	@[ -n "$(WHEELS)" ] || [ $(PINS) = constraints.txt ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(CUDNN)
	@touch $@

clean:
	rm -rf $(VENV) demo runs site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
