# Two commands set everything up: `make demo` runs the main job, `make test` the tests.
# Needs Python 3.11, git and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
ARM := data/robot_arm
PORT ?= 3000
# Runs, events and schedules of `make demo` and `make ui`; set it to a folder with a dagster.yaml
# of your own to keep them elsewhere, such as in PostgreSQL (deploy/README.md).
export DAGSTER_HOME ?= $(CURDIR)/.dagster
QUIET := --config-json '{"loggers": {"console": {"config": {"log_level": "INFO"}}}}'

.PHONY: help setup pytest home demo demo-cmapss demo-sepsis ui system test lint format bench bench-quick soak screenshots lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(STAMP)  ## make .venv with the trialshards command and all tools in it

# pip is renewed first: the one that comes with Python 3.11 takes twice as long. torch goes next and
# alone: with it in place nothing pulls another build of it. Of 16,000 files most are never
# imported: Python compiles the others when it first meets them.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile pip==26.3
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

home: setup
	@mkdir -p "$(DAGSTER_HOME)"
	@test -f "$(DAGSTER_HOME)/dagster.yaml" || cp deploy/local/dagster.yaml "$(DAGSTER_HOME)/"

demo: home  ## generate a robot-arm data set, build it, train an LSTM, report
	$(BIN)/python $(ARM)/generate.py
	$(BIN)/dg launch --job robot_arm $(QUIET)
	@echo "make ui shows these runs, their tables and plots on http://127.0.0.1:$(PORT)"

demo-cmapss: home  ## the same for C-MAPSS FD001, whose files you get by data/cmapss/README.md
	$(BIN)/dg launch --job cmapss_fd001 $(QUIET)

demo-sepsis: home  ## the same for 20,336 patients, whose files you get by data/sepsis/README.md
	$(BIN)/dg launch --job sepsis $(QUIET)

ui: home  ## the web page, on this machine alone; stop it with Ctrl-C
	$(BIN)/dg dev --host 127.0.0.1 --port $(PORT)

system:  ## install Debian's PostgreSQL and Chromium, which some tests use (needs root)
	@.ci/packages

# The tests start some hundred processes: with an empty string these keep what they compile.
test: export PYTHONDONTWRITEBYTECODE =
test:  ## everything the gate checks
	@$(MAKE) --no-print-directory --jobs=2 setup system
	@$(MAKE) --no-print-directory --jobs=2 lint pytest

# Beside the linters, of which the types take a minute on one core.
pytest: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

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
	$(BIN)/python bench/limits.py
	$(BIN)/python bench/dagster.py
	$(BIN)/python bench/ingest.py --many 100000
	$(BIN)/python bench/again.py
	$(BIN)/python bench/shapes.py
	$(BIN)/python bench/index.py
	$(BIN)/python bench/train.py
	$(BIN)/python bench/scores.py --jobs 2

soak: setup system  ## the long trials of the tests: 10,000 damaged files, 200 killed builds, every crash
	$(BIN)/python tests/soak/ingest.py --count 10000 --out bench/results/soak_ingest.json
	$(BIN)/python tests/soak/kills.py --count 200 --out bench/results/soak_kills.json
	$(BIN)/python tests/soak/kills.py --count 40 --layout windows --format parquet --beside
	SOAK=1 $(BIN)/python -m pytest tests/crash tests/shards/test_shards_flips.py \
		tests/loaders/test_exact.py tests/test_examples.py tests/test_command_study.py \
		tests/training tests/data tests/deploy tests/pipeline/test_build_laws.py \
		tests/pipeline/test_columnar.py tests/web

screenshots: setup system  ## pictures of the web page; two go to docs/pictures
	$(BIN)/python tests/web/screenshots.py

bench-quick: setup  ## the read, rerun, shape and index benchmarks at a size that takes minutes
	$(BIN)/python bench/read.py --quick
	$(BIN)/python bench/limits.py --quick
	$(BIN)/python bench/again.py --quick
	$(BIN)/python bench/shapes.py --quick
	$(BIN)/python bench/index.py --quick

# The pins hold for every platform, so a local build tag such as +cpu is cut off.
lock:  ## write constraints.txt from a fresh environment
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0
	.venv-lock/bin/pip install --quiet --editable '.[dev]'
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -rf .venv-lock

clean:  ## remove what the targets made, except raw data
	rm -rf .venv .dagster runs bench/scratch data/*/store
