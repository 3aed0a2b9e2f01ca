# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check install train-digits clean

demo: $(STAMP) ## Measure the built-in digits models to the end and print the table of bounds
	$(BIN)/boundd run --config examples/digits.toml --until-idle

test: $(STAMP) ## The whole suite
	$(BIN)/python -m pytest

check: $(STAMP) ## ruff, format, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(STAMP) ## The environment alone

# The acceleration libraries state loose requirements of their own; the constraints keep what was tested together.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'torch'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[diffusion]' --group dev
	touch $@

train-digits: $(STAMP) ## Train the built-in digits models again, from nothing
	$(BIN)/python -m boundd.worker.digits.train --out boundd/worker/digits/models

clean: ## Remove the environment and what demo runs left
	rm -rf $(VENV) examples/digits-state examples/speedup_bounds.json
