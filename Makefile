# Each target sets up its own virtual environment when it is missing or out of date.
#   make PYTHON=python3.12 test     another interpreter
#   make VENV=/tmp/venv test        another place for the environment
# PyPI's torch for Linux brings CUDA with it. For the small CPU build, name PyTorch's CPU index once, when the
# environment is made:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-cluster verify lint format bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.ready ## set up the virtual environment

# torch goes first and by itself, so that pip takes the plain CPU build wherever the index offers one.
$(VENV)/.ready: pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		command -v "$(PYTHON)" >/dev/null || { echo "error: there is no '$(PYTHON)'; name a Python >= 3.11: make PYTHON=python3.11" >&2; exit 1; }; \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Coterie needs Python >= 3.11, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.11" >&2; exit 1; }; \
		echo "setting up $(VENV) (a few minutes, once)"; \
		"$(PYTHON)" -m venv "$(VENV)"; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Coterie needs Python >= 3.11, and $(VENV) has $$($(BIN)/python --version 2>&1); remove it and try again" >&2; exit 1; }
	@$(PIP) install --upgrade pip
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready ## train a tiny model from scratch and watch it learn, minutes on two cores
	@$(BIN)/coterie demo

test: $(VENV)/.ready ## run the tests
	TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-cluster: $(VENV)/.ready ## run the tests that start and kill many processes
	TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster

verify: $(VENV)/.ready ## run the tests that verify methods and record what passed
	TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --record-verification

lint: $(VENV)/.ready ## check style, formatting and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(VENV)/.ready ## fix style and formatting in place
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

bench: $(VENV)/.ready ## run the side-by-side benchmarks
	$(BIN)/python -m bench

docs: $(VENV)/.ready ## build the documentation into site/
	@$(PIP) install -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove caches and build outputs (keeps the environment and runs/)
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
