# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-gpus test check install docs soak train-digits bench-gpu bench-search clean campaign-sim campaign-faults campaign-odd campaign-devices bench-packing bench-planner bench-dispatch bench-shim bench-recovery bench-libraries

demo: $(STAMP) ## Measure the built-in digits models to the end and print the table of bounds
	$(BIN)/boundd run --config examples/digits.toml --until-idle

demo-gpus: $(STAMP) ## The daemon packing eight simulated GPUs by memory, in half a minute; needs gcc
	$(BIN)/python -m tests.fake_nvml.demo

test: $(STAMP) ## The whole suite
	$(BIN)/python -m pytest

campaign-sim: $(STAMP) ## 50,000 seeds of the simulation (SEEDS=…), on all cores
	$(BIN)/python -m tests.sim.campaign --seeds $(or $(SEEDS),50000)

campaign-faults: $(STAMP) ## Every fault campaign at full length: many hours; SHARE=0.1 for a tenth, ONLY=kill for some
	BOUNDD_CAMPAIGN_SHARE=$(or $(SHARE),1) BOUNDD_CAMPAIGN_RECORD=$(or $(RECORD),campaigns.jsonl) \
		$(BIN)/python -m pytest tests/faults -m campaign $(if $(ONLY),-k $(ONLY))

campaign-odd: campaign-devices ## 20,000 of each kind of odd input: devices, model folders, schedulers, hubs, scripts' outputs (hours)
	$(BIN)/python -m pytest tests/worker tests/service/test_log_reading.py -m campaign
	BOUNDD_VARIANTS=20000 $(BIN)/python -m pytest tests/core/lifecycle/test_environment_evidence.py tests/worker/test_hub.py

campaign-devices: $(STAMP) ## 20,000 of each kind of odd device, list of processes and choice of devices
	$(BIN)/python -m pytest tests/devices tests/protocol tests/service/test_processes.py -m campaign

check: $(STAMP) ## ruff, format, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP) ## What in docs/ is made from the code: the drawing of the lifecycle, the tables of the worker
	$(BIN)/python -m tools.lifecycle_drawing > docs/lifecycle.md
	$(BIN)/python -m tools.docs_tables

soak: $(STAMP) ## An hour under everything that goes on around a daemon (DURATION=… seconds): what grows
	$(BIN)/python -m benchmarks.soak --seconds $(or $(DURATION),3600)

install: $(STAMP) ## The environment alone

# The acceleration libraries state loose requirements of their own; the constraints keep what was tested together.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'torch'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[diffusion]' --group dev
	touch $@

bench-search: $(STAMP) ## The lazy search beside the exhaustive one over the digits matrix: images, seconds, bounds
	$(BIN)/python -m benchmarks.search --output benchmarks/results/search.txt

bench-gpu: ## Published speed-ups and peak memory on this GPU, by $(PYTHON) as it is: no environment, no network
	$(PYTHON) -m benchmarks.gpu

bench-packing: $(STAMP) ## Five traces under six policies, simulated and with real processes (half an hour; needs gcc)
	$(BIN)/python -m benchmarks.packing

bench-planner: $(STAMP) ## What one planning step costs, and how it grows
	$(BIN)/python -m benchmarks.planner

bench-dispatch: $(STAMP) ## 300 cells of no length, beside a bare subprocess loop
	$(BIN)/python -m benchmarks.dispatch

bench-shim: $(STAMP) ## What starting a shim takes, and the memory of one, beside peers
	$(BIN)/python -m benchmarks.shim

bench-libraries: $(STAMP) ## What a library would cost in place of a few lines of boundd's own
	$(BIN)/python -m benchmarks.libraries

bench-recovery: $(STAMP) ## A start with 10,000 cells and 50,000 attempts in the store, until it answers
	$(BIN)/python -m benchmarks.recovery

train-digits: $(STAMP) ## Train the built-in digits models again, from nothing
	$(BIN)/python -m tools.digits.train --out boundd/worker/digits/models

clean: ## Remove the environment and what demo runs left
	rm -rf $(VENV) examples/digits-state examples/gpus-state examples/speedup_bounds.json
