# What one does with this repository. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Only for making .venv; everything else runs inside it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Keyed on content: made anew when the lock file or the project file says something else.
KEY := $(shell cat requirements.lock pyproject.toml | cksum | cut -d ' ' -f 1)
READY := .venv/.ready-$(KEY)
CODE := pilotage tests benchmarks examples
# Empty means all tests: make test TESTS=tests/unit
TESTS ?=
WORKERS ?= 2
# Which tests by their marks; `make full` takes the long ones too.
MARKED ?= not long
# Without it pyright asks the registry at each start whether it is the newest.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY)  ## make .venv from the lock file; does nothing when it is up to date

$(READY):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11' >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv || \
		{ echo 'Python lacks its venv module (Debian and Ubuntu: the package python3-venv)' >&2; exit 1; }
	@echo 'Installing the locked packages into .venv (once) ...'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f .venv/.ready-*
	@touch $@

.PHONY: demo
demo: setup  ## start a server, run an example workflow and show its progress
	@$(BIN)/python -m pilotage.cli demo

.PHONY: test
test: lint types weaknesses tests coverage  ## everything that CI checks: lint, types, audit, tests, coverage

.PHONY: full
full: lint types weaknesses  ## everything of `make test`, and the long tests
	@$(MAKE) tests MARKED='long or not long'
	@$(MAKE) coverage

.PHONY: lint
lint: setup  ## ruff: rules and format
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

.PHONY: types
types: setup  ## mypy strict and pyright strict
	@$(BIN)/mypy
	@$(BIN)/pyright

.PHONY: tests
tests: setup  ## the tests alone: make tests TESTS=tests/unit
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal --cov --cov-branch --cov-report= --cov-fail-under=0 -m '$(MARKED)' $(TESTS)

.PHONY: simulate
SEEDS ?= 1000
FIRST ?= 0
simulate: setup  ## the whole system under faults, one story a seed: make simulate SEEDS=1000 FIRST=0
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

.PHONY: chaos
SECS ?= 120
chaos: setup  ## kill, pause and cut off server and store: make chaos SECS=120 SEED=n JUDGE=1 RUNS=n
	@$(BIN)/python -m tests.chaos --secs $(SECS) $(if $(SEED),--seed $(SEED)) \
		$(if $(RUNS),--runs $(RUNS)) $(if $(JUDGE),--judge)

.PHONY: coverage
coverage: setup  ## the branch coverage of the last tests against the gates
	@$(BIN)/coverage report
	@$(BIN)/coverage report --include='pilotage/runtime/*' --fail-under=100

.PHONY: format
format: setup  ## mend what ruff can mend by itself
	@$(BIN)/ruff check --fix --exit-zero $(CODE)
	@$(BIN)/ruff format $(CODE)

.PHONY: bench
SIZE ?= smoke
bench: setup  ## measure: make bench SCENARIO=name SIZE=smoke|full MINUTES=n (of the soak)
	@$(BIN)/python -m benchmarks --size $(SIZE) $(if $(SCENARIO),--scenario $(SCENARIO)) \
		$(if $(MINUTES),--minutes $(MINUTES))

.PHONY: weaknesses
weaknesses: setup  ## known weaknesses of locked packages; goes on where nobody can be asked
	@$(BIN)/python -m tests.audit --go-on

.PHONY: audit
audit: setup  ## the same, and fails where nobody can be asked (needs the network)
	@$(BIN)/python -m tests.audit

.PHONY: lock
lock:  ## newest allowed versions into requirements.lock (needs uv)
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-header --no-emit-index-url --no-emit-find-links --quiet -o requirements.lock

.PHONY: clean
clean:  ## remove what building, testing and running left behind, .venv and .pilotage included
	@rm -rf .venv .pilotage .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* \
		build dist htmlcov coverage.xml benchmarks/results
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
