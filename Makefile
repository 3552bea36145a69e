# Two commands set everything up: `make demo` runs the main job, `make test` the tests.
# Needs Python 3.11, git and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
ARM := data/robot_arm

.PHONY: help setup demo demo-cmapss test lint format types bench bench-quick lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(STAMP)  ## make .venv with the trialshards command and all tools in it

# torch goes first and alone: with it in place nothing pulls another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## generate a robot-arm data set, build it, train an LSTM, report
	$(BIN)/python $(ARM)/generate.py
	$(BIN)/trialshards build $(ARM)/dataset.yaml --store $(ARM)/store
	$(BIN)/trialshards train $(ARM)/train.yaml --fresh

demo-cmapss: setup  ## the same for C-MAPSS FD001, whose files you get by data/cmapss/README.md
	$(BIN)/trialshards build data/cmapss/fd001.yaml --store data/cmapss/store
	$(BIN)/trialshards train data/cmapss/fd001_train.yaml --fresh

test: setup lint  ## everything the gate checks
	$(BIN)/python -m pytest

lint: setup  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## all benchmarks at full size; results go to bench/results
	$(BIN)/python bench/read.py

bench-quick: setup  ## the read benchmark at a size that takes seconds
	$(BIN)/python bench/read.py --quick

# The pins hold for every platform, so a local build tag such as +cpu is cut off.
lock:  ## write constraints.txt from a fresh environment
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0
	.venv-lock/bin/pip install --quiet --editable '.[dev]'
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -rf .venv-lock

clean:  ## remove what the targets made, except raw data
	rm -rf .venv runs bench/scratch $(ARM)/store data/cmapss/store
