# A fresh machine needs only Python 3.11+ and make: each target installs what it needs in .venv.

# The newest installed Python; make PYTHON=/path/to/python3 ... selects another.
# Each candidate is run: a pyenv shim also exists for inactive Pythons, and Debian packages ensurepip separately.
PYTHONS = python3.14 python3.13 python3.12 python3.11 python3
PYTHON ?= $(shell for python in $(PYTHONS); do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	echo $$python && break; done)
VENV = .venv
BIN = $(VENV)/bin

# Extra arguments for demo, bench, bench-peers and pytest: make demo ARGS="--limit 20"
ARGS =

# Many container images set it. Each of the 1,700 Python processes that the tests start would then compile the package.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL = help
.PHONY: help demo test test-all lint bench bench-peers chaos chaos-long clean
# Delete the stamp of an interrupted recipe.
.DELETE_ON_ERROR:

help: ## Show this list
	@echo "underway: durable jobs of typed steps on Postgres. Needs Python 3.11+; all else is installed in .venv."
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo
	@echo 'Pass arguments in ARGS: make demo ARGS="--limit 20"  or  make test ARGS="-k retry"'

demo: $(VENV)/.examples ## Render 185 PDF reports about real flights; resumes after Ctrl-C
	@$(BIN)/python -m examples.flights.demo $(ARGS)

test: lint ## Lint, type checks, and tests on a real Postgres (a few minutes)
	@echo "pytest"
	@$(BIN)/python -m pytest -n 4 --dist worksteal -m "not chaos and not chaos_long" $(ARGS)

test-all: ## Tests, demo and a quick benchmark on each installed Python 3.11+ (half an hour each)
	@$(PYTHON) -m tests.support.every_python

lint: $(VENV)/.test ## Ruff, mypy --strict, and the language of texts
	@echo "ruff, mypy, phrases"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "not formatted; run: $(BIN)/ruff format"; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python tests/support/lint_phrases.py

bench: $(VENV)/.bench ## Measure throughput and latency beside process pools of the same size; table and plots
	@$(BIN)/python -m benchmarks $(ARGS)
	@$(BIN)/python -m benchmarks.plots

bench-peers: $(VENV)/.test ## Measure beside celery, dramatiq and four other queues (half an hour; needs redis-server)
	@$(BIN)/python -m benchmarks.peers $(ARGS)

chaos: $(VENV)/.test ## Kill and stop processes at random (a quarter of an hour); CHAOS_SEED=1848 seeds the order
	@$(BIN)/python -m pytest -m chaos --timeout=300 $(ARGS)

chaos-long: $(VENV)/.test ## The same for hours: Postgres stopped for ten minutes, a soak and chaos for an hour each
	@$(BIN)/python -m pytest -m chaos_long $(ARGS)

clean: ## Remove environments and caches; keep the reports
	rm -rf .venv .venv-3.* benchmarks/peers/.envs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra. Constraints are set in the environment, because -c alone does not pin build dependencies.
$(VENV)/.%: export PIP_CONSTRAINT = constraints.txt
$(VENV)/.%: export PIP_BUILD_CONSTRAINT = constraints.txt
$(VENV)/.%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "underway needs Python 3.11 or newer with venv (Debian: apt install python3-venv)" \
		"but found none. To select one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ $(PYTHON) --version && echo "making $(VENV)" && $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing underway[$*] into $(VENV) (once; a minute or so)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$*]'
	@touch $@
