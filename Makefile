# Every target does its own set-up: a machine with Python 3.11+, pip and make is enough, and none needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: install smoke test lint ci fuzz faults wheel figures findings bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

smoke: $(READY) ## the whole pipeline, small and real
	$(BIN)/husai smoke

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint ## lint, types, and all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

ci: $(READY) ## slower checks: the wheel from another folder, the pipeline script, and a smoke run opened by SAELens
	$(BIN)/python scripts/check_wheel.py
	$(BIN)/python scripts/test_sae_pipeline.py --transformer-checkpoint results/reference/add-p113-0
	$(BIN)/husai smoke
	$(BIN)/python scripts/check_saelens.py results/smoke/runs

fuzz: $(READY) ## hostile input: 2,550 cases, the same ones every time, counted by kind in results/fuzz.md
	FUZZ_CASES=150 FUZZ_REPORT=results/fuzz.md OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:xdist tests/fuzz

faults: $(READY) ## sweeps killed, disks full, files damaged; kills survived and cells lost in results/benchmarks/faults.md
	HUSAI_FAULTS=all FAULTS_REPORT=results/benchmarks/faults.md OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) tests/faults

wheel: $(READY)
	$(BIN)/python -m build --wheel

figures: $(READY) ## redraw the committed figures from the committed tables
	for suite in default matched long planted planted-32 ladder stability stability-long stability-resampled crossed; do $(BIN)/husai report results/$$suite || exit 1; done

findings: $(READY) ## FINDINGS.md and the table of its numbers, from the committed records
	$(BIN)/husai findings

bench: $(READY)
	$(BIN)/python scripts/benchmark.py

clean:
	rm -rf $(VENV) build dist runs results/smoke
