# Needs make and Python 3.11 or newer; everything else comes from the requirements files.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .venv/demo-installed
VENV := .venv/installed

.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## what this file can do
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo dev
demo: $(DEMO) ## the whole path on this machine: every event, to the end, in a table
	@$(BIN)/python -m dev.demo
dev: $(DEMO) ## the same processes, to work with; Ctrl-C stops them (PORT, SANDBOX_PORT, REDIS_PORT)
	@$(BIN)/python -m dev.local

.PHONY: test lint types contracts unit integration e2e coverage chaos-short containers
test: lint types contracts docs unit integration e2e $(if $(CI),coverage) chaos-short ## everything that must hold; stops at the first group that does not
	@echo "== all groups passed"
lint: $(VENV) ## style and formatting
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/hadolint --ignore DL3059 --ignore DL3022 deploy/Dockerfile deploy/Dockerfile.sbom
types: $(VENV) ## types, strictly
	@echo "== types"
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q --no-header tests/typing
contracts: $(VENV) ## who may import whom
	@echo "== contracts"
	@$(BIN)/lint-imports
unit: $(VENV) ## no I/O
	@echo "== unit"
	@$(if $(CI),$(BIN)/coverage erase)
	@$(PYTEST) -n 2 tests/unit
integration: $(VENV) ## on a real Redis
	@echo "== integration$(if $(CI),, (without what takes longest: CI=1 runs it))"
	@$(PYTEST) -n 6 tests/integration
e2e: $(VENV) ## real processes only
	@echo "== e2e$(if $(CI),, (without what takes longest: CI=1 runs it))"
	@$(PYTEST) -n 6 tests/e2e
coverage: $(VENV) ## of the last unit, integration and e2e runs with CI=1, branches and processes included
	@echo "== coverage"
	@$(BIN)/coverage combine -q --append
	@$(BIN)/coverage report --skip-covered

chaos-short: $(VENV) ## a sample of what `make chaos` does
	@echo "== chaos-short"
	@$(BIN)/python -m pytest -q --no-header -n 6 -m "not walk" tests/chaos

containers: $(VENV) ## image and compose.yaml on a container engine (Debian, as root: it starts one)
	@echo "== containers"
	@$(BIN)/python -m pytest -q --no-header --timeout 900 tests/containers
# Measuring coverage nearly doubles the CPU that tests take, and walks are what takes longest: both
# are CI's.
PYTEST = $(BIN)/$(if $(CI),coverage run,python) -m pytest -q --no-header $(if $(CI),,-m "not walk")

.PHONY: bench profile distance soak chaos mutants mutants-sample
bench: $(VENV) ## how fast, with the numbers printed
	@$(BIN)/python -m pytest tests/benchmarks -s
profile: $(VENV) ## flame graphs of receiver and worker under load, in var/bench (Linux, as root)
	@$(BIN)/python -m tests.benchmarks.profile
distance: $(VENV) ## what a Redis far away costs: the table in docs/scaling.md
	@$(BIN)/python -m tests.benchmarks.latency.distance
soak: $(VENV) ## steady load for long; nothing may grow (MINUTES, RATE)
	@$(BIN)/python -m tests.benchmarks.soak --minutes $(or $(MINUTES),30) --rate $(or $(RATE),40)
chaos: $(VENV) ## kill, freeze and cut everything; nothing may be lost
	@$(BIN)/python -m pytest -q --no-header -n 4 tests/chaos
	@$(BIN)/python -m tests.chaos.storm --events 5000 --kills 100 --redis-kills 5 --forms both
	@$(BIN)/python -m tests.chaos.storm
	@$(BIN)/python -m tests.chaos.storm --plain-rq
	@$(BIN)/python -m tests.chaos.page
mutants: $(VENV) ## put faults into the code, and see whether tests notice; goes on where it was (COUNT, SEED)
	@$(BIN)/python -m tests.mutants --count $(or $(COUNT),300) --seed $(or $(SEED),1)
mutants-sample: $(VENV) ## ten of them, in lines that changed in the last ten commits (SINCE)
	@echo "== mutants-sample"
	@$(BIN)/python -m tests.mutants --count 10 --since $(or $(SINCE),$$(git rev-list -n 11 HEAD | tail -n 1))

.PHONY: checkov sbom
checkov: $(VENV) ## what checkov says about deploy/, offline (needs kubectl; installs checkov: minutes)
	@test -x .venv/checkov/bin/checkov || { $(PYTHON) -m venv .venv/checkov && .venv/checkov/bin/pip install -q checkov==3.3.30; }
	@mkdir -p var/checkov
	@for overlay in dev prod; do kubectl kustomize deploy/kubernetes/overlays/$$overlay > var/checkov/$$overlay.yaml || exit 1; done
	@.venv/checkov/bin/checkov --config-file deploy/checkov.yaml
sbom: ## what is in the image identity-webhooks: a CycloneDX document and the licences, in var/sbom
	@docker build -q -f deploy/Dockerfile.sbom -t identity-webhooks-sbom . >/dev/null
	@mkdir -p var/sbom && docker run --rm --network none identity-webhooks-sbom | tar -C var/sbom -xf -

.PHONY: docs format lock env-example readme-demo handlers-page privacy-page trial scaling-page reference release-check sandbox-pictures console-pictures
format: $(VENV) ## let ruff write
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
lock: $(VENV) ## requirements*.txt from pyproject.toml; UPGRADE=1 takes newer releases
	@test -x $(BIN)/uv || $(BIN)/pip install -q uv
	@$(LOCK) pyproject.toml --extra service -o requirements.txt
	@$(LOCK) pyproject.toml --extra service --extra otel --extra sentry --group dev -o requirements-dev.txt
	@$(LOCK) pyproject.toml --extra service --group demo -c requirements-dev.txt -o requirements-demo.txt
env-example: $(VENV) ## deploy/env.example from the settings
	@$(BIN)/python -m dev.env_example > deploy/env.example
handlers-page: $(VENV) ## the tables of docs/handlers.md, from the code
	@$(BIN)/python -m dev.handlers_page
privacy-page: $(VENV) ## docs/privacy.md, from the code
	@$(BIN)/python -m dev.privacy_page
trial: $(VENV) ## make a plugin from nothing, and put the transcript into docs/handlers.md
	@$(BIN)/python -m dev.trial --write
scaling-page: $(VENV) ## the tables of docs/scaling.md, from docs/performance.md and the code
	@$(BIN)/python -m tests.scaling_page
docs: $(VENV) ## the docs as a site, in var/site/public; fails on a dead link
	@echo "== docs"
	@$(BIN)/python -m dev.docs_site
reference: $(VENV) ## docs/reference: settings, metrics, commands, handler API, events, from the code
	@$(BIN)/python -m dev.reference
release-check: $(VENV) ## whether this commit can be released: version, changelog, label, tag
	@$(BIN)/python -m dev.release_check
readme-demo: $(DEMO) ## run the demo and put its output into README.md
	@$(BIN)/python -m dev.readme_demo

sandbox-pictures: $(VENV) ## docs/images: the pages of the sandbox (needs Chromium)
	@$(BIN)/python tests/e2e/sandbox/screenshots.py

console-pictures: $(VENV) ## docs/images: the pages of the console (needs Chromium)
	@$(BIN)/python -m tests.console_pictures

LOCK = $(BIN)/uv pip compile -q --universal --generate-hashes \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

# What a file lists is the whole of it: pip looks for no more. Left to compile, it would take one file
# after the other, also the 1,600 of stripe that no process reads.
INSTALL := install -q --disable-pip-version-check --no-compile --no-deps --require-hashes
# Putting a pip into .venv takes as long as half of the packages: the demo uses that of $(PYTHON).
HAS_PIP := import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (22, 3))

# Made anew when either file changes, so that nothing is left of what they no longer list.
$(DEMO): requirements-demo.txt requirements-dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python 3.11 or newer, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 or newer is needed; name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "building .venv from requirements-demo.txt (about 10 seconds) ..."
	@$(PYTHON) -m venv --clear --without-pip .venv
	@if $(PYTHON) -c '$(HAS_PIP)' 2>/dev/null; then pip="$(PYTHON) -m pip --python .venv"; else \
		$(BIN)/python -m ensurepip --default-pip >/dev/null; pip=$(BIN)/pip; fi; \
		$$pip $(INSTALL) -r requirements-demo.txt
	@$(BIN)/python -m compileall -q -j 0 -x '/stripe/' .venv/lib
	@touch $@

$(VENV): $(DEMO)
	@echo "adding requirements-dev.txt to .venv (about a minute) ..."
	@$(BIN)/python -m ensurepip --default-pip >/dev/null
	@$(BIN)/pip $(INSTALL) -r requirements-dev.txt
	@$(BIN)/python -m compileall -q -j 0 .venv/lib
	@touch $@
