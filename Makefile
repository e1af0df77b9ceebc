# `make demo` and `make test` are all a newcomer needs; both make .venv first.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test test-slow test-gpu lint clean

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[hf,fisher,monitor,dev]'
# comes with backpack, which needs it for its examples alone; beside torch's CPU build it does not load, and
# transformers, which loads what is there, would not load either
	$(BIN)/pip uninstall --quiet --yes torchvision
	touch $@

demo: $(VENV)/.base
	$(BIN)/quantvane demo

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf $(VENV) quantvane-demo quantvane-runs
