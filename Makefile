# `make` alone lists the targets. Everything happens in .venv, which `setup` makes and keeps up to date.

PYTHON ?= python3
# passed on by `run` and `lab`: make run OPTIONS=--fresh, or, for the root of a container,
# make lab OPTIONS=--allow-root
OPTIONS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Written last, so that a failed installation is never taken for a finished one. It holds the path of the
# folder: an environment that was moved or copied with it, or has lost its Python, must be made anew.
STAMP := .venv/.ready
BROKEN := $(shell test ! -e $(STAMP) || \
	{ test "$$(cat $(STAMP))" = "$$(pwd)" && $(BIN)/python -c ''; } >/dev/null 2>&1 || echo yes)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-all lab clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1\t/p' Makefile | expand -t 17

setup: $(STAMP) ## make or update the environment in .venv (the first time: some minutes and a large download)
	@echo "the environment .venv is ready"

run: $(STAMP) ## run all notebooks and show what their claims came to; copies go to runs/
	@$(BIN)/alignkit run --profile standard --seeds 0 --jobs 2 $(OPTIONS)

# One thread a process: two that share two cores would wait for each other.
SUITE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(STAMP) ## run the test suite, some minutes: all that a contribution needs
	@$(SUITE) -m "not slow"

test-all: test ## run the slow rest as well: whole pretrainings, every notebook, an installed wheel
	@$(SUITE) -m slow

lab: $(STAMP) ## open the notebooks in JupyterLab, reachable from this machine only
	@$(BIN)/python -m jupyterlab --ServerApp.ip=127.0.0.1 $(OPTIONS) notebooks

clean: ## remove the environment and all caches; your results in runs/ stay
	rm -rf .venv .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

ifeq ($(BROKEN),yes)
.PHONY: $(STAMP)
endif

# torch goes first, at the version constraints.txt names: the rest must not pull in another one.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: alignkit needs Python 3.11 or newer, and '$(PYTHON)' is not; name one that is:" \
			"make PYTHON=python3.12" >&2; exit 1; }
	@rm -f $@
	@"$(PYTHON)" -m venv $(if $(BROKEN),--clear) .venv || { \
		echo "error: could not make the environment .venv; on Debian and Ubuntu first install python3-venv" >&2; \
		exit 1; }
	@{ $(PIP) install -c constraints.txt torch && $(PIP) install -c constraints.txt -e '.[dev]'; } || { \
		echo "error: the installation did not finish (see above); the same command goes on with it" >&2; \
		exit 1; }
	@pwd > $@
