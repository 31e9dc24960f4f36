# Two commands for a newcomer: `make demo` and `make test`. Both make .venv and install when needed.
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/demo
# Where pip takes torch from, if not from its usual index; plain PyPI has the CUDA build, gigabytes larger than
# the CPU's: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
STAMP  := $(VENV)/.installed
BIN    := $(VENV)/bin

.PHONY: demo reproduce reproduce-real test test-slow oldest parity lint bench clean

demo: $(STAMP)          ## the whole pipeline on the embedded sample world; writes runs/demo/report.html
	$(BIN)/internvideo demo --output $(RUN) $(DEMO)

reproduce: $(STAMP)     ## every table of RESULTS.md on the sample world; resumable; make reproduce REPRODUCE="--only zero_shot"
	$(BIN)/python scripts/reproduce.py --output runs/reproduce $(REPRODUCE)

reproduce-real: $(STAMP) ## the same on folders of real sets (scripts/real_sets.py): make reproduce-real DATA=FOLDER
	$(BIN)/python scripts/reproduce.py --output runs/reproduce_real --data $(DATA) $(REPRODUCE)

test: $(STAMP)          ## the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile $(TEST)

test-slow: $(STAMP)     ## the tests that are longer than that suite allows
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not gpu" $(TEST)

# Warnings of old libraries about each other are not ours: -W default. UV=--torch-backend=cpu takes the small torch.
OLDEST := tests/test_silent_settings.py tests/data/test_loader.py tests/data/test_tables.py tests/video/test_video.py \
  tests/metrics tests/models/test_internvideo2.py tests/weights/test_layouts_loading.py tests/weights/test_convert.py tests/training/test_training_checkpoint.py \
  tests/inference/test_hub_layout.py tests/cli/test_cli.py tests/inference/test_export.py tests/probing/test_fit_learn.py \
  tests/search/test_server.py tests/search/test_approximate.py tests/apps/test_report.py
EXTRAS ?= plots,report,fit,navigation,track,export,parquet,cloud,search,ann,captions
oldest:                 ## part of the suite with the oldest versions that pyproject.toml allows, torch 2.6 among them; needs uv
	uv venv --quiet --clear $(VENV)-oldest
	uv pip install --quiet --python $(VENV)-oldest $(UV) --resolution lowest-direct -e ".[$(EXTRAS)]" \
	  "pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.6" "hypothesis>=6.100" "filelock>=3.12" "httpx>=0.27" "pillow>=10"
	$(VENV)-oldest/bin/python -m pytest -n auto --dist loadfile -W default $(or $(TEST),$(OLDEST))

parity: $(STAMP)        ## equality with the stored reference tensors and results
	$(BIN)/python -m pytest -m parity $(TEST)

lint: $(STAMP)          ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	MYPYPATH=src $(BIN)/mypy --config-file scripts/mypy.ini scripts benchmarks examples

bench: $(STAMP)         ## benchmarks, as ratios measured side by side
	$(BIN)/python benchmarks/decode.py && $(BIN)/python benchmarks/train_step.py

# Debian's python3 comes without venv: install it where that is allowed, and say so where it is not.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 14) else f"Python 3.11 to 3.14 is needed, found {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq python3-venv; \
	  else echo "python3 has no venv module here: sudo apt-get install python3-venv" >&2; exit 1; fi; \
	  $(PYTHON) -m venv $(VENV); }

$(STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet -c constraints.txt --index-url $(TORCH_INDEX) torch)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

clean:                  ## remove the environment and the runs
	rm -rf $(VENV) $(VENV)-oldest runs .pytest_cache .mypy_cache .ruff_cache
