# Each does its own set-up in .venv:
#   make demo   the whole path on a laptop: tiles, shards, pretraining, stop and resume, evaluation
#   make sample the shards of the demo alone, for the other demo configs
#   make test   all tests but the nightly ones
# make demo TILES=DIR [LABELS=DIR] [TASK=NAME] takes your own tiles; SHORT=1 makes it quick.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev$(shell command -v nvidia-smi >/dev/null 2>&1 && echo ,gpu)

.PHONY: demo sample test lint nightly clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready
	@$(BIN)/python -m tools.demo $(if $(TILES),--tiles "$(TILES)") $(if $(LABELS),--labels "$(LABELS)") $(if $(TASK),--task "$(TASK)") $(if $(SHORT),--short)

sample: $(VENV)/.ready
	@$(BIN)/python -m tools.demo --shards-only

test: $(VENV)/.ready lint
	@$(BIN)/python -m pytest -m "not nightly" --durations=15 tests/distributed tests/integration
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not nightly" --durations=5 -n 2 --dist loadfile tests/unit tests/parity

nightly: $(VENV)/.ready
	@$(BIN)/python -m pytest -m nightly

lint: $(VENV)/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "error: $(PYTHON) is missing: sudo apt install python3.11 python3.11-venv, or make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: $(PYTHON) is not Python 3.11, for which constraints.txt is" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: Python's venv module is missing: sudo apt install python3.11-venv" >&2; exit 2; }
	@echo "installing into $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

clean:
	rm -rf $(VENV) demo runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
