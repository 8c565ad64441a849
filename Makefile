# Everything a fresh machine needs is Python 3.11+ and make: each target does its own set-up, in .venv.

# The newest Python there is; make PYTHON=/path/to/python3 ... names another.
# Each is run, not only looked up: a pyenv shim exists for Pythons that are off, and Debian splits ensurepip off.
PYTHONS = python3.14 python3.13 python3.12 python3.11 python3
PYTHON ?= $(shell for python in $(PYTHONS); do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	echo $$python && break; done)
VENV = .venv
BIN = $(VENV)/bin

# Extra arguments for demo, bench, bench-peers and pytest: make demo ARGS="--limit 20"
ARGS =

# Where it is set (containers love it), each of the 1,700 Python processes that the tests start compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL = help
.PHONY: help demo test test-all lint bench bench-peers chaos chaos-long clean
# A stamp whose recipe was interrupted must not count.
.DELETE_ON_ERROR:

help: ## Show this list
	@echo "underway: durable step functions on Postgres. Needs Python 3.11+; the rest is set up in .venv."
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo
	@echo 'Arguments go through ARGS, as in: make demo ARGS="--limit 20"  or  make test ARGS="-k retry"'

demo: $(VENV)/.examples ## Render 185 PDF reports about real flights; Ctrl-C, and again: it goes on
	@$(BIN)/python -m examples.flights.demo $(ARGS)

test: lint ## Lint, types, and the tests on a real Postgres (a few minutes)
	@echo "pytest"
	@$(BIN)/python -m pytest -n 4 --dist worksteal -m "not chaos and not chaos_long" $(ARGS)

test-all: ## Tests, demo and a quick benchmark on each Python that is here, 3.11 or newer (half an hour each)
	@$(PYTHON) -m tests.every_python

lint: $(VENV)/.test ## Ruff and mypy --strict
	@echo "ruff, mypy"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "not formatted; run: $(BIN)/ruff format"; exit 1; }
	@$(BIN)/mypy --no-error-summary

bench: $(VENV)/.bench ## Measure: how fast, beside process pools of the same size; a table, and plots of it
	@$(BIN)/python -m benchmarks $(ARGS)
	@$(BIN)/python -m benchmarks.plots

bench-peers: $(VENV)/.test ## Measure: beside celery, dramatiq and four other queues (half an hour; needs redis-server)
	@$(BIN)/python -m benchmarks.peers $(ARGS)

chaos: $(VENV)/.test ## Kill and stop things at random (a quarter of an hour); CHAOS_SEED=1848 says in which order
	@$(BIN)/python -m pytest -m chaos --timeout=300 $(ARGS)

chaos-long: $(VENV)/.test ## The same for hours: Postgres stopped for ten minutes, a soak and chaos for an hour each
	@$(BIN)/python -m pytest -m chaos_long $(ARGS)

clean: ## Remove the environments and the caches; the reports stay
	rm -rf .venv .venv-3.* benchmarks/peers/.envs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra. By environment, since -c alone leaves the packages that build packages to chance.
$(VENV)/.%: export PIP_CONSTRAINT = constraints.txt
$(VENV)/.%: export PIP_BUILD_CONSTRAINT = constraints.txt
$(VENV)/.%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "underway needs Python 3.11 or newer with venv (Debian: apt install python3-venv)" \
		"and found none. If there is one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ $(PYTHON) --version && echo "making $(VENV)" && $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing underway[$*] into $(VENV) (once; a minute or so)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$*]'
	@touch $@
