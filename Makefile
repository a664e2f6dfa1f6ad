# bitexp: `make train` and `make test` set up what they need on a fresh machine.

PYTHON      ?=
VENV        := .venv
PY          := $(VENV)/bin/python
OUTPUTS     := $(or $(BITEXP_OUTPUTS),outputs)
EXPERIMENT  ?= vit_ternary
ARGS        ?=
PYTEST_ARGS ?=
BENCH       ?= $(OUTPUTS)/bench
FASHION     := /usr/share/datasets/fashion-mnist

# Two workers with one thread each: torch crawls where threads outnumber cores. Tests of more than ten
# seconds are named: `make test` is to take five minutes.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --durations=5 --durations-min=10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train test test-all test-gpu lint format revisions data bench figures sync clean

help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.dev ## install bitexp with all that developing it needs into .venv (PYTHON=... picks one)

train: $(VENV)/.runtime ## train the ternary ViT; EXPERIMENT=... another, ARGS="..." passes overrides on
	@$(PY) -m bitexp +experiment=$(EXPERIMENT) $(ARGS)

test: lint ## lint, then the tests of a few minutes; PYTEST_ARGS="..." narrows them down
	@$(PYTEST) -n 2 --dist loadfile $(PYTEST_ARGS)

test-all: lint ## lint, then all tests but those for a GPU
	@$(PYTEST) -n 2 --dist loadfile -m "not gpu" $(PYTEST_ARGS)

test-gpu: $(VENV)/.dev ## the tests for a GPU
	@$(PYTEST) -m gpu $(PYTEST_ARGS)

lint: $(VENV)/.dev ## check format, style and types
	@$(PY) -m ruff format --quiet --check . || { echo "run 'make format' to fix the formatting"; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy --no-error-summary

format: $(VENV)/.dev ## format the code and fix what ruff can fix
	@$(PY) -m ruff check --fix --quiet . || true
	@$(PY) -m ruff format .

revisions: $(VENV)/.dev ## after a change in quant, kernels, models, data or tasks: keep what it computes now
	@OMP_NUM_THREADS=1 $(PY) -m tests.support.revisions

data: ## install Fashion-MNIST (a package of Debian and Ubuntu)
	@if [ -e $(FASHION)/train-images-idx3-ubyte.gz ]; then \
		echo "Fashion-MNIST is in $(FASHION)"; \
	elif command -v apt-get >/dev/null; then \
		sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
		$$sudo apt-get update -qq && $$sudo apt-get install -y -qq dataset-fashion-mnist; \
	else \
		echo "No apt-get here: data.download=true fetches it at the first run, or data.data_dir=FOLDER"; \
		echo "names a folder with its four files (train-images-idx3-ubyte.gz and so on)."; \
		exit 1; \
	fi

bench: $(VENV)/.dev ## measure steps, layers and whole models here; BENCH=... keeps the tables elsewhere
	@$(PY) -m bitexp bench step --rounds 20
	@$(PY) -m bitexp bench layers --output $(BENCH)
	@$(PY) -m bitexp bench models --output $(BENCH)
	@$(PY) -m bitexp bench decode --output $(BENCH)

figures: $(VENV)/.runtime ## run the benchmarks behind the figures of the README (hours)
	@for experiment in vit_ternary fashion_mlp fashion_cnn fashion_vit lm_ternary; do \
		$(PY) -m bitexp -m +experiment=$$experiment +sweeps=precisions || exit 1; \
	done
	@$(PY) -m bitexp -m +experiment=lm_doubling +sweeps=doubling
	@$(PY) -m bitexp bench --rounds 100
	@$(PY) -m bitexp bench --rounds 100 --model decoder --batch 8

sync: $(VENV)/.runtime ## upload the offline wandb runs under outputs/ (after `wandb login`)
	@runs="$$(find $(OUTPUTS) -type d -path '*/wandb/offline-run-*' -prune 2>/dev/null)"; \
	if [ -n "$$runs" ]; then $(VENV)/bin/wandb sync $$runs; else echo "no offline wandb runs under $(OUTPUTS)"; fi

clean: ## remove caches and build products; keeps .venv/ and outputs/
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find bitexp tests -type d -name __pycache__ -prune -exec rm -rf {} +

# One environment, two stamps: who only trains does not install the tools and oracles of the tests.
# $(call install,EXTRAS) shows pip's own words only when it fails.
define install
@echo "Installing bitexp$(1) into $(VENV) (a few minutes the first time) ..."
@$(PY) -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.$(1)' \
	>$(VENV)/install.log 2>&1 || { tail -n 40 $(VENV)/install.log >&2; exit 1; }
endef

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,[dev])
	@touch $@ $(VENV)/.runtime

# 3.11 first: constraints.txt was made with it. A name on the PATH may be a shim that does not run.
$(VENV)/bin/pip:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
		"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
			&& exec "$$python" -m venv $(VENV); \
	done; \
	echo "bitexp needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv)." >&2; \
	echo "Found none$(if $(PYTHON), in PYTHON=$(PYTHON),: name one with make PYTHON=/path/to/python3 ...)." >&2; \
	exit 1
