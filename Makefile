# Short names for the commands of this repository. Everything runs in the test lab, one folder that `make clean`
# deletes; see tests/support/lab. Without make: PYTHONPATH=tests/support python3 -m lab.install, and so on.
#
#   PYTHON=python3.12      the interpreter to make the lab with
#   LYCORIS_LAB=/else      another place for the lab (10 GB)
#   COMFYUI_PATH=/ComfyUI  test against that ComfyUI instead of the bundled 0.3.75
#   PORT=8188              for serve
#   PYTEST_ARGS="-k lokr"  for test
#   EXAMPLES=100000        for fuzz
#   SAMPLE=400 SEED=1 WORKERS=1 FILES="lycoris_algos/ops lycoris_algos/adapters/lokr.py:70"  for mutants

PYTHON ?= python3
LYCORIS_LAB ?= $(CURDIR)/.host
export LYCORIS_LAB
export PYTHONPATH := $(CURDIR)/tests/support
export PYTHONDONTWRITEBYTECODE := 1
export DO_NOT_TRACK := 1

LAB_PYTHON := $(LYCORIS_LAB)/venv/bin/python

.PHONY: help demo serve test lint format typecheck validate pytest bench fuzz mutants install models clean

help:
	@echo "make demo       run an example workflow in the real ComfyUI, on the CPU, and compare the pictures"
	@echo "make serve      open ComfyUI with this pack and tiny models on 127.0.0.1:8188 (PORT=...)"
	@echo "make test       everything that must pass: lint, types, the registry's checks, all tests"
	@echo "make lint       ruff: rules and formatting       make format     let ruff repair what it can"
	@echo "make typecheck  mypy                             make bench      measure against ComfyUI core"
	@echo "make fuzz       damage files at random (EXAMPLES=...) and hold the library to what it makes of them"
	@echo "make mutants    which small mistakes in the library do the tests notice? (hours; SAMPLE=500: 16 minutes and more)"
	@echo "make clean      delete the lab and all caches"

demo:
	@$(PYTHON) -m lab.install --no-dev
	@$(LAB_PYTHON) -m lab.demo

serve:
	@$(PYTHON) -m lab.install --no-dev
	@$(LAB_PYTHON) -m lab.serve

test: install
	@$(PYTHON) -m lab.chromium --install
	@$(MAKE) --no-print-directory lint typecheck validate models pytest

install:
	@$(PYTHON) -m lab.install

models:
	@$(LAB_PYTHON) -m lab.models
	@$(LAB_PYTHON) -m lab.adapters

pytest:
	$(LAB_PYTHON) -m pytest $(PYTEST_ARGS)

lint: install
	$(LAB_PYTHON) -m ruff check .
	$(LAB_PYTHON) -m ruff format --check .

format: install
	$(LAB_PYTHON) -m ruff check --fix .
	$(LAB_PYTHON) -m ruff format .

typecheck: install
	$(LAB_PYTHON) -m mypy

# What the Comfy registry checks before it accepts a pack.
validate: install
	$(LYCORIS_LAB)/venv/bin/comfy --skip-prompt node validate </dev/null

mutants: install
	$(LAB_PYTHON) -m mutants $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) \
		$(if $(WORKERS),--workers $(WORKERS)) $(FILES)

bench: install
	@for file in benchmarks/*.py; do echo "$$file"; $(LAB_PYTHON) $$file $(BENCH_ARGS) || exit 1; done

EXAMPLES ?= 100000

fuzz: install
	FUZZ_EXAMPLES=$(EXAMPLES) $(LAB_PYTHON) -m pytest tests/unit/test_fuzz.py --hypothesis-show-statistics

clean:
	rm -rf "$(LYCORIS_LAB)" .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
