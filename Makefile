# Everything runs in .venv, which any target makes on first use. Needs Python 3.11+ (with venv), git and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow lint bench gpu-proof gpu-data clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "eosin needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing eosin into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	@touch $(STAMP)

demo: $(STAMP)  ## the whole way on procedural slides: demo/report.html in about five minutes
	$(BIN)/eosin quickstart -o demo

test: $(STAMP)  ## lint, types, import contract, tests
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist worksteal

test-slow: $(STAMP)  ## end-to-end runs
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## side-by-side measurements of benchmarks/RESULTS.md; DATA = folder of real data for the learning proof
	$(BIN)/python benchmarks/views.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/whole_slide/memory.py --encoders tiny
	$(BIN)/python benchmarks/cohorts.py -o bench-slides/cohorts
	$(BIN)/python benchmarks/object_store.py
	@if [ -n "$(DATA)" ]; then $(BIN)/python benchmarks/foreground.py "$(DATA)" -o foreground.png; fi
	@if [ -n "$(DATA)" ]; then $(BIN)/python benchmarks/slides.py "$(DATA)" -o bench-slides --side 12288; fi
	@if [ -n "$(DATA)" ]; then $(BIN)/python benchmarks/learning.py "$(DATA)"; else echo "learning proof skipped: give DATA=folder"; fi

gpu-proof: $(STAMP)  ## speed, learning, reading and torchrun on one CUDA GPU, in 8 minutes; DATA, START=weights, OUT (docs/gpu.md)
	$(BIN)/python benchmarks/gpu_proof.py $(or $(DATA),$(wildcard gpu-data)) -o $(or $(OUT),gpu-proof) $(if $(START),--start $(START))

gpu-data: $(STAMP)  ## copy what gpu-proof reads of DATA into gpu-data/, which git ignores: licences forbid passing it on
	$(BIN)/python benchmarks/carry_data.py $(DATA) -o gpu-data

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
