# Everything starts from python3 (3.11 to 3.13), git and make: `make demo` and `make test` set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHMARKS := $(filter-out $(addprefix benchmarks/,real_data.py real_audit.py cohorts.py simulation.py simulation_table.py edit_synthetic.py edit_reach.py ham_edits.py nih_edits.py queries.py patch_synthetic.py patch_real.py search_setups.py searched_masks.py search_cost.py pretrain_vit.py),$(wildcard benchmarks/*.py))
LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock"
DATA ?= ../shared
OUT ?= results

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint bench results simulation docs reference lock check-lock wheel test-wheel clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY) ## make the environment in .venv: uv from the lock, every package by hash, then this package

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"python3 is {v[0]}.{v[1]}, but must be 3.11, 3.12 or 3.13; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^ .*--hash/p;}' requirements.lock > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r $(VENV)/uv.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## the whole story on a synthetic cohort, offline, in minutes
	$(BIN)/evenhand demo

test: setup ## all tests but the long ones, a stated sample of those (marker slow_sample), and the examples in docstrings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests src -n 2 --dist worksteal -m "not slow or slow_sample"

test-slow: setup ## every test, the long ones included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests src -n 2 --dist worksteal

lint: setup ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup ## every speed claim: figure, floor and peer
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

results: setup ## every method on the real data sets in DATA, five seeds, audited and compared; writes OUT
	$(BIN)/python benchmarks/real_data.py --shared $(DATA) --out $(OUT)
	$(BIN)/python benchmarks/real_audit.py --results $(OUT)

simulation: setup ## does the audit claim what it should? cohorts with known true values, 500 audits of each; resumes; writes OUT
	@mkdir -p $(OUT)
	$(BIN)/python benchmarks/simulation.py --results $(OUT)/simulation.jsonl --json $(OUT)/simulation.json

reference: setup ## docs/reference from the code
	$(BIN)/python docs/make_reference.py

docs: reference ## the pages in site/ (docs/ reads without a build)
	$(BIN)/zensical build --clean

lock: setup ## re-resolve requirements.lock from the ranges in pyproject.toml
	$(BIN)/uv pip compile --quiet $(LOCK_FLAGS) --group dev pyproject.toml -o requirements.lock

check-lock: ## the lock holds versions and hashes, and no addresses
	@! grep -nE '://|index-url|find-links|file:|[[:space:]]@[[:space:]]' requirements.lock

wheel: setup ## dist/*.whl
	rm -rf dist
	$(BIN)/python -m hatchling build -t wheel

test-wheel: wheel ## the wheel in a bare environment, with the locked versions of what it needs, passes the demo
	rm -rf build/bare && mkdir -p build
	$(PYTHON) -m venv build/bare
	$(BIN)/uv pip install --quiet --python build/bare/bin/python --constraints requirements.lock dist/*.whl
	cd build/bare && bin/evenhand doctor && bin/evenhand demo

clean: ## remove what was built; .venv stays
	rm -rf build dist site
