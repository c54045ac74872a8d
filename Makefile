# One command each on a machine with Python 3.11-3.13 and make: `make run`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test test-cluster test-slow lint format docs bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "superft needs Python 3.11-3.13; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "no venv: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

run: setup
	$(BIN)/superft run quickstart

# Tests of one file stay together: they share what was trained for them.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Nodes that die and join, submitted jobs, a search on PostgreSQL: minutes.
test-cluster: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'cluster and not slow'

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The manual as a site in site/; a warning (a dead link, a page that nothing leads to) is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

bench: setup
	$(BIN)/python -m benchmarks.convolution
	$(BIN)/python -m benchmarks.training_loop
	$(BIN)/python -m benchmarks.engine_overhead
	$(BIN)/python -m benchmarks.quickstart
	$(BIN)/python -m benchmarks.growth

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
