# The commands of the project. Each sets up what it needs in .venv; the pins are in requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORK := runs/demo
CONFIG := configs/complete_journey.toml
HOUSEHOLD := 1
export TF_USE_LEGACY_KERAS := 1
export TF_CPP_MIN_LOG_LEVEL := 3

.PHONY: help demo test test-slow test-cluster coverage lint docs-settings lock clean

help:
	@echo "make demo          the whole nightly job on Complete Journey, into $(WORK)/"
	@echo "make test          lint and the tests"
	@echo "make test-slow     the tests that take longer"
	@echo "make test-cluster  the Beam jobs on a Flink cluster on this machine"
	@echo "make coverage      the tests, and which lines they run, into runs/coverage/"
	@echo "make lint          ruff, mypy, import-linter"
	@echo "make docs-settings docs/settings.md and its JSON Schema, from the code"
	@echo "make lock          resolve the pins again (uv)"
	@echo "make clean         remove $(VENV) and runs/"

# One stamp file per set of extras: an install is repeated only when the pins or the metadata change.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: setup.cfg requirements.lock | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-all,demo
	$(BIN)/python -m pipelines.complete_journey $(WORK)/tables
	$(BIN)/towerline refresh --config $(CONFIG) --work $(WORK)
	$(BIN)/towerline evaluate --config $(CONFIG) --work $(WORK)
	$(BIN)/towerline retrieve --config $(CONFIG) --work $(WORK) --user $(HOUSEHOLD) --k 10

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check pipelines towers index towerline tests benchmarks
	$(BIN)/ruff check pipelines towers index towerline tests benchmarks notebooks
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n auto --maxprocesses 4 -m "not slow and not cluster" --durations=10 -o faulthandler_timeout=600

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -m "slow and not cluster" --durations=10

test-cluster: $(VENV)/.installed-dev
	$(BIN)/pytest -m cluster --durations=10

docs-settings: $(VENV)/.installed-dev
	$(BIN)/python -m towerline.settings_reference docs

# Pass PYTEST to choose tests: make coverage PYTEST="tests/towers -m 'not slow'"
coverage: PYTEST = -m "not slow and not cluster"
coverage: $(VENV)/.installed-dev
	$(BIN)/pytest $(PYTEST) --cov --cov-report=term --cov-report=html:runs/coverage/html

lock: | $(VENV)/bin/python
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile setup.cfg --all-extras --python-version 3.11 --no-emit-index-url -o requirements.lock

clean:
	rm -rf $(VENV) runs
