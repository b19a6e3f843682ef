# egnn_md needs Debian (or another Linux), Python 3.11 with venv, and make. `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.sha256
INPUTS := setup.cfg pyproject.toml

# One demo: liquid water, NVT from the shipped box, then NVE from where that ended.
DEMO_DIR ?= runs/demo
DEMO_STRUCTURE ?= systems/water/water64.pdb
DEMO_MODEL ?= water
DEMO_TIMESTEP ?= 0.5
DEMO_TEMPERATURE ?= 300
DEMO_NVT_STEPS ?= 3000
DEMO_NVE_STEPS ?= 4000
DEMO_FLAGS ?=

PYTEST_FLAGS ?=

.PHONY: help environment demo test lint docs cluster clean distclean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  settings (make demo DEMO_NVE_STEPS=20000): DEMO_NVT_STEPS DEMO_NVE_STEPS DEMO_TIMESTEP (fs)"
	@echo "  DEMO_TEMPERATURE (K) DEMO_MODEL DEMO_STRUCTURE DEMO_DIR; PYTHON; PYTEST_FLAGS"

environment: $(STAMP)  ## make .venv with everything installed (once; again when setup.cfg or pyproject.toml change)

# The stamp holds the digest of the inputs, and is written last: a checkout that only touched the files
# installs nothing, an install that was interrupted starts again. An environment whose interpreter no longer
# starts (a moved folder, a removed Python) is made anew.
$(STAMP): $(INPUTS)
	@"$(PYTHON)" -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or sys.exit(f"egnn_md needs Python 3.11 or newer, $(PYTHON) is {v}; choose another with: make PYTHON=python3.11")'
	@"$(PYTHON)" -c 'import venv, ensurepip' || { echo "Python has no venv here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@digest="$$(cat $(INPUTS) | sha256sum | cut -d' ' -f1)"; \
	if [ -x $(BIN)/python ] && $(BIN)/python -c 'import sys' 2>/dev/null; then :; \
	else echo "making $(VENV)"; "$(PYTHON)" -m venv --clear $(VENV); fi; \
	if [ -f $@ ] && [ "$$(cat $@)" = "$$digest" ]; then touch $@; \
	else echo "installing egnn-md and what it needs into $(VENV) (about 5.5 GB)"; \
	  $(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[all]'; \
	  echo "$$digest" > $@; fi

demo: $(STAMP)  ## liquid water (64 molecules), NVT then NVE in OpenMM, and its report
	@start=$$SECONDS; \
	$(BIN)/egnn-md md $(DEMO_STRUCTURE) --model $(DEMO_MODEL) --engine openmm --implementation torch \
	  --ensemble nvt --friction 10 --temperature $(DEMO_TEMPERATURE) --timestep $(DEMO_TIMESTEP) --steps $(DEMO_NVT_STEPS) \
	  --trajectory dcd --output $(DEMO_DIR)/nvt --overwrite $(DEMO_FLAGS); \
	$(BIN)/egnn-md md --model $(DEMO_MODEL) --engine openmm --implementation torch \
	  --ensemble nve --timestep $(DEMO_TIMESTEP) --steps $(DEMO_NVE_STEPS) \
	  --trajectory dcd --continue-from $(DEMO_DIR)/nvt --output $(DEMO_DIR)/nve --overwrite $(DEMO_FLAGS); \
	$(BIN)/egnn-md report $(DEMO_DIR)/nvt $(DEMO_DIR)/nve --output $(DEMO_DIR)/report.html \
	  --title "Liquid water, 64 molecules: NVT, then NVE"; \
	echo; echo "The demo took $$((SECONDS - start)) s. Open in a browser: $(abspath $(DEMO_DIR))/report.html"

# one thread: the systems are tiny, and threads that wait for a busy core at every barrier are slower than none
test: $(STAMP)  ## the tests (slow, GPU and multi-process ones are chosen with PYTEST_FLAGS="-m slow")
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)  ## the API reference from docstrings, into site/api
	$(BIN)/python docs/make_api.py site/api
	@echo "open in a browser: $(abspath site/api)/index.html"

# torch-cluster has no wheel: it is compiled, 5 to 10 minutes on 2 cores, and must see the torch it is built for,
# hence no build isolation. Its setup switches ninja off, so its extensions are built side by side through
# setuptools (not with CUDA: torch swaps the compiler for nvcc in a way that is not safe between threads). pip keeps
# the wheel it built and would hand the same one to a later torch, so one that does not import is built again.
cluster: $(STAMP)  ## compile torch-cluster (needs a C++ compiler), unless it is there
	@if $(BIN)/python -c 'import torch_cluster' 2>/dev/null; then \
	  echo "torch-cluster is there: $$($(BIN)/python -c 'import torch_cluster; print(torch_cluster.__version__)')"; \
	else \
	  command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "torch-cluster is compiled and no C++ compiler was found; on Debian: apt-get install g++ python3-dev" >&2; exit 1; }; \
	  jobs="$$($(BIN)/python -c 'import os, torch; print(1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))')"; \
	  printf '[build_ext]\nparallel = %s\n' "$$jobs" > $(VENV)/build_ext.cfg; \
	  echo "compiling torch-cluster, $$jobs files at a time"; \
	  build="env DIST_EXTRA_CONFIG=$(abspath $(VENV))/build_ext.cfg $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-build-isolation"; \
	  $$build --editable '.[cluster]'; \
	  $(BIN)/python -c 'import torch_cluster' 2>/dev/null || \
	    $$build --no-cache-dir --no-deps --force-reinstall \
	      "torch-cluster==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch-cluster"))')"; \
	  $(BIN)/python -c 'import torch_cluster; print("torch-cluster", torch_cluster.__version__)'; \
	fi

clean:  ## remove caches and build output; keeps .venv and runs/
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./runs -o -path ./.git \) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean  ## clean, and remove .venv too
	rm -rf $(VENV) egnn_md.egg-info
