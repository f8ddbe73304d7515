# Everything a developer does here; `make help` lists it. Needs Python 3.11 or newer and a package index.

PYTHON ?= $(shell for candidate in python3.11 python3; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$candidate" && break; \
	done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test check format openapi migration bench faults clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Install everything pinned into .venv

# The lock names every package, setuptools included, so the last step needs neither index nor isolation.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

run: $(STAMP) ## Start everything in this terminal; Ctrl-C stops it
	@exec $(BIN)/postroad run

# Two processes, each with servers of its own: most tests wait more than they compute.
test: $(STAMP) ## Run the tests (ARGS="-k name" chooses)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

check: $(STAMP) ## Lint, format, types, import contracts, OpenAPI and migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m app.openapi --check
	$(BIN)/python -m app.migrate --check

format: $(STAMP) ## Let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(STAMP) ## Write openapi/openapi.json anew
	$(BIN)/python -m app.openapi

migration: $(STAMP) ## Write a migration for changed models (SLUG=what_changes)
	@test -n "$(SLUG)" || { echo "say what changes: make migration SLUG=add_templates" >&2; exit 1; }
	$(BIN)/python -m app.migrate --revise "$(SLUG)"

bench: $(STAMP) ## Measure against Postfix + OpenDKIM (ARGS="--help" lists the loads)
	$(BIN)/python -m tests.bench $(ARGS)

faults: $(STAMP) ## Kill and stop everything under load, 50 times each (ARGS="--help")
	$(BIN)/python -m tests.faults $(ARGS)

clean: ## Remove .venv and caches; DATA_DIR stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
	find app workers migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +
