# Needs Python 3.11 or newer and make, nothing else: everything is installed into .venv, and again only when
# pyproject.toml or constraints.txt changed. ARGS goes to the command: make serve ARGS="--port 8080".

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test torture failovers lint format bench

# The first of these that is new enough, unless PYTHON names one.
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
NEW_ENOUGH := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development

# The second is for the build backend, which newer versions of pip install under constraints of its own.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip

help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

serve: $(RUNTIME) ## start the tracker on http://localhost:3013 (options: ARGS="--port 8080")
	@$(BIN)/tracker serve $(ARGS)

test: lint ## lint, then run the tests (some of them: ARGS="tests/store -k sweep")
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

torture: $(DEVELOPMENT) ## freeze and kill pods and Redis under load for two minutes, then judge (ARGS="--seed 7", ARGS="--cluster")
	$(BIN)/python -m tests.torture $(ARGS)

failovers: $(DEVELOPMENT) ## ten failovers under load, three minutes: Sentinel's, or of a Redis Cluster (ARGS="--cluster")
	$(BIN)/python -m tests.failovers $(ARGS)

lint: $(DEVELOPMENT) ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(DEVELOPMENT) ## put the code into the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(RUNTIME) ## run the benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

$(BIN)/python:
	@python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
		for candidate in $(PYTHONS); do \
			if $$candidate -c '$(NEW_ENOUGH)' 2>/dev/null; then python=$$candidate; break; fi; \
		done; \
	elif ! "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
		python=; \
	fi; \
	if [ -z "$$python" ]; then \
		echo "make: tracker needs Python 3.11 or newer with the venv module (Debian: apt-get install python3-venv);" \
			"tried: $(or $(PYTHON),$(PYTHONS)). Name one with make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	"$$python" -m venv --clear $(VENV)

$(RUNTIME): $(BIN)/python pyproject.toml constraints.txt
	@echo "installing the tracker into $(VENV)"
	@$(PIP) install --quiet --editable .
	@touch $@

# Dependency groups need pip 25.1.
$(DEVELOPMENT): $(BIN)/python pyproject.toml constraints.txt
	@echo "installing the tracker and its development tools into $(VENV)"
	@$(PIP) install --quiet --upgrade pip
	@$(PIP) install --quiet --editable . --group dev
	@touch $(RUNTIME) $@
