# Two commands do all set-up on a fresh machine: `make pretrain` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RANKS ?= 2
# Test files side by side: they wait for processes more than they compute.
JOBS ?= 2

.PHONY: pretrain test test-matrix test-slow test-faults lint setup setup-test check-machine clean

pretrain: setup  ## shards, pretraining on two FSDP ranks, probe, report: runs/debug/
	$(BIN)/frontier shards write --scenes 2400 --sensors rgb --seed 0 shards/scenes
	$(BIN)/frontier pretrain jobs/configs/mae_debug.yaml --ranks $(RANKS)
	$(BIN)/frontier probe runs/debug --data shards/scenes --method linear,knn
	$(BIN)/frontier report runs/debug
	@echo "done: shards/scenes  runs/debug/{checkpoints,metrics.jsonl,probe.json,report.html}"

test: setup-test lint  ## the default suite: under 20 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not gpu"

test-matrix: setup-test  ## every parallelism on 1 to 8 ranks, every stop-and-resume between them: the same curve
	$(BIN)/python -m tests.matrix

test-slow: setup-test  ## the long ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-faults: setup-test  ## every fault on real runs, 100 random kills in a row, a table: half an hour on two idle cores
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.data_prep.kills

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test

check-machine:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: $(PYTHON) 3.11 or newer is needed: install it, or pass PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: the venv module is missing: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@[ "$$(df -Pk . | awk 'NR==2 {print $$4}')" -gt 4000000 ] || \
	  { echo "make: less than 4 GB free here: the environment needs about 2 GB" >&2; exit 2; }

# torch first and alone, so that nothing else chooses another build of it.
$(VENV)/.torch: | check-machine
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	touch $@

$(VENV)/.installed: setup.py pyproject.toml requirements.txt $(VENV)/.torch
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps -e .
	touch $@

$(VENV)/.installed-test: requirements-test.txt tools/system_packages.sh $(VENV)/.installed
	tools/system_packages.sh
	$(BIN)/pip install --quiet -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info runs shards
