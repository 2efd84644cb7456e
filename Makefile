PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export MPLBACKEND := Agg
# What is imported is compiled then: compiling all that is installed would double the time of setup.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Each process takes one half of the tests as they come, so that a module's fixtures are made once, and helps in the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
export PYTHONDONTWRITEBYTECODE :=  # tests start many processes; each would compile the package again

.PHONY: help setup demo test test-slow test-architectures lint bench bench-stopping bench-balancing clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.ready  ## Make .venv from the pinned constraints (on first use by the other targets, too).

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned versions need Python >= 3.11; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(PIP) --editable ".[dev]"
	touch $@

demo: setup  ## Train on scikit-learn's digits with wrong labels until the stop; table, picture and page.
	$(BIN)/lightning-stiffness demo

test: setup  ## The quick test suite.
	$(PYTEST) -m "not slow and not architectures"

test-slow: setup  ## The tests marked slow.
	$(PYTEST) tests -m slow

test-architectures: setup  ## The engine on models of transformers and timm (random weights, nothing is downloaded but the packages).
	PIP_CONSTRAINT=constraints.txt $(PIP) --editable ".[architectures]"
	$(PIP) --no-deps timm==1.0.31
	$(PYTEST) tests/gram/test_architectures_slow.py -m architectures

lint: setup  ## Format, lint, types, import rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## Time and memory of the Gram engine against the floor and the peers.
	PIP_CONSTRAINT=constraints.txt $(PIP) --editable ".[bench]"
	$(PIP) --no-deps backpack-for-pytorch==1.7.1
	$(BIN)/python benchmarks/gram_speed.py --output benchmark_results
	$(BIN)/python benchmarks/gram_scale.py --output benchmark_results/scale

bench-stopping: setup  ## Rules for stopping on a few small trainings (ten minutes; --full is hours).
	$(BIN)/python benchmarks/early_stopping.py --quick --output benchmark_results/stopping

bench-balancing: setup  ## Methods for imbalanced classes on small tables and digits (two minutes; --full is an hour).
	$(BIN)/python benchmarks/balancing.py --quick --output benchmark_results/balancing

clean:  ## Remove what setup and the tests made.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
