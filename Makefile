# Two commands: `make run` does the main job, `make test` passes the tests. Each does all the set-up it needs.
# Python 3.11+ and make are assumed. uv is used where it exists, else brought into .venv/.
PYTHON ?= python3
CONFIG ?= configs/quickstart.yaml
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export GRADIO_ANALYTICS_ENABLED = False
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: run test test-slow test-browser browser lint types check wheel constraints base clean help

run: $(STAMP)  ## the main job: federated private training, the audited report, what it bought
	$(BIN)/mmslm run $(CONFIG)

test: $(STAMP)  ## the tests (under ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(STAMP)  ## what is too slow for every change
	$(BIN)/python -m pytest -m slow

test-browser: $(STAMP) browser  ## the pages in a real Chromium (make test runs them too where one is found)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/apps

browser: node_modules/axe-core/axe.min.js  ## Chromium and axe-core, for the accessibility tests
	@command -v chromium >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ]; then SUDO=; else SUDO=sudo; fi; \
	  $$SUDO apt-get update -q && $$SUDO apt-get install -y -q --no-install-recommends chromium fonts-noto-core fonts-noto-cjk; }

node_modules/axe-core/axe.min.js: package.json
	npm install --no-audit --no-fund --silent
	@touch $@

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy over the four packages
	$(BIN)/mypy

check: lint types test  ## everything that runs before a change lands

wheel: $(STAMP)  ## build the wheel and try it in an empty environment
	rm -rf dist
	$(BIN)/python -m build --wheel --installer uv
	sh .ci/try-wheel

constraints: $(STAMP)  ## pin anew what pyproject.toml asks for
	@echo "# The versions that this release was built and tested with. Made by \`make constraints\`; holds no addresses." > constraints.new
	@$(BIN)/uv pip compile -q pyproject.toml --extra dev --extra ray --extra lora --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links >> constraints.new
	mv constraints.new constraints.txt

base: $(STAMP)  ## train the base model anew from its recipe (about an hour)
	$(BIN)/mmslm base configs/base_scenes.yaml

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"mmslm needs Python 3.11 or newer, this is {v.major}.{v.minor}; run: make PYTHON=python3.11 ...")'
	@if command -v uv >/dev/null 2>&1; then uv venv -q --allow-existing --seed --python $(PYTHON) $(VENV) && UV=uv; \
	 else test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); $(BIN)/python -m pip install -q uv && UV=$(BIN)/uv; fi; \
	 $$UV pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt uv -e '.[dev,ray]'
	@touch $@

clean:  ## remove what was made (never runs/)
	rm -rf $(VENV) dist build node_modules .mypy_cache .ruff_cache .pytest_cache

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
