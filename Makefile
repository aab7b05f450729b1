# The two commands of a fresh machine are `make demo` and `make test`; all need only python3 with pip and venv.

PYTHON ?= python3
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check format schema clean

help:
	@echo "make demo    install into .venv and run the main job on what ships with the package"
	@echo "make test    install the development tools too and run the tests; ARGS='-k dpo' goes on to pytest"
	@echo "make check   lint, format and types, without changing anything"
	@echo "make format  bring the sources into form"
	@echo "make schema  write src/tunesmith/schema.json anew, after options or help have changed"
	@echo "make clean   remove .venv and what was built"
	@echo "PYTHON=python3.12 before the first of them chooses another Python."

demo: $(VENV)/core.stamp
	@$(VENV)/bin/tunesmith demo

# One torch thread a worker: two workers with a thread for each core would only get in each other's way.
test: $(VENV)/dev.stamp
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) -m pytest --quiet --numprocesses 2 --dist worksteal $(ARGS)

check: $(VENV)/dev.stamp
	@echo "lint" && $(RUN) -m ruff check --quiet .
	@echo "format" && $(RUN) -m ruff format --quiet --check .
	@echo "types" && $(RUN) -m pyright --pythonpath $(RUN)

format: $(VENV)/dev.stamp
	@$(RUN) -m ruff check --quiet --fix . && $(RUN) -m ruff format .

schema: $(VENV)/core.stamp
	@$(RUN) -m tunesmith.core.schema

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "tunesmith needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)."; \
		echo "Name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core.stamp: $(VENV)/venv.stamp pyproject.toml constraints.txt
	@echo "Installing tunesmith into $(VENV) (the first time this takes some minutes)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@echo "Installing the development tools"
	@$(PIP) --editable '.[dev]'
	@touch $@
