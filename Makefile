# SPDX-License-Identifier: Apache-2.0
# Every target sets itself up: a virtual environment in .venv, the versions of constraints.txt, the compiled extension.
#
#   make demo     prune a real model and see what is left of it
#   make test     lint and tests, with the newest transformers and with transformers 4
#   make help     the rest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Also for pip before 25.3, which reads the first of these when it builds in isolation.
PIN := PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt
PIP := $(PIN) $(BIN)/python -m pip --disable-pip-version-check --quiet
# Two at a time: many tests are of one thread. A file's tests stay together, and share what they build.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
TRANSFORMERS4 := .compat/transformers4
# What a release of transformers cannot change: files of ours and damage to them, kernels and their choice, numbers.
APART := methods/test_plan.py cli/test_progress.py sparse/test_detect.py sparse/test_fuzz.py sparse/test_linear.py \
  sparse/test_replace.py sparse/test_storage.py tasks/test_metrics.py
BUILD := setup.py pyproject.toml constraints.txt pyprune/attack/requirements.txt CMakeLists.txt $(shell find csrc -type f)
CPP := $(shell find csrc tests/cuda -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: help demo test test-transformers4 test-gpu lint format bench bench-solver bench-gpu env clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 30

demo: $(VENV)/.run ## prune the model that comes with pyprune, and compare
	@$(BIN)/pyprune demo

test: $(VENV)/.test lint ## everything: lint, tests, tests with transformers 4
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)
	@$(MAKE) --no-print-directory test-transformers4

test-transformers4: $(VENV)/.test $(TRANSFORMERS4)/.installed ## the tests of models, methods and data with transformers 4
	PYTHONPATH=$(TRANSFORMERS4) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -q tests/models tests/methods tests/tasks tests/cli tests/sparse \
	  tests/training -m "not slow" $(APART:%=--ignore=tests/%)

test-gpu: $(VENV)/.test ## the tests that need a CUDA device; without one each is skipped, and says so
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.test ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.test ## bring all sources into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.test ## all benchmarks (an hour); results under benchmarks/results
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

bench-solver: $(VENV)/.test ## one matrix beside other solvers, and docs/solver-pareto.svg; PUBLIC="--sparsegpt DIR --alps DIR" runs their code
	$(BIN)/python benchmarks/solver/run.py --resume $(PUBLIC)
	$(BIN)/python benchmarks/solver/plot.py

bench-gpu: $(VENV)/.test ## every op on a GPU beside torch (ten minutes); results under benchmarks/results
	$(BIN)/python benchmarks/gpu/run.py

env: $(VENV)/.test ## the environment for development, and nothing else

clean: ## remove what these targets made
	rm -rf $(VENV) .compat build dist *.egg-info pyprune/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python $(BUILD)
	@echo "building pyprune and installing what it needs into $(VENV): some minutes, the first time"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.test: $(BIN)/python $(BUILD)
	@echo "building pyprune and installing what its tests need into $(VENV): some minutes, the first time"
	@$(PIP) install --editable '.[test,lint,gpu,bench]'
	@$(PIP) install --no-deps -r pyprune/attack/requirements.txt
	@touch $(VENV)/.run $@

# One old release beside the new one; the rest of what it needs comes from $(VENV).
$(TRANSFORMERS4)/.installed: tests/transformers4.txt $(VENV)/.test
	@rm -rf $(TRANSFORMERS4)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps --target $(TRANSFORMERS4) -r $<
	@touch $@
