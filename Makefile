# Everything below creates .venv on its own. PYTHON is the interpreter it is made with.
PYTHON ?= python3
# Torch comes first and by its exact version. Where pip's own build is the one for CUDA (several GB, on Linux), another one
# can be named, with the options that pytorch.org gives: make demo TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 1
DEMO_ENV := dm_control/cheetah-run-v0

.PHONY: demo test full gpu conformance lint format type docs clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/installed  ## train a sparse SimBa agent on a DeepMind Control task, draw its curve beside SB3's MlpPolicy
	$(BIN)/sb3-sparse train --algo sac --env $(DEMO_ENV) -conf examples/demo.yml --seed $(SEED) --progress \
		--log-folder logs --tensorboard-log logs/tensorboard --eval-freq 1000 --eval-episodes 3
	$(BIN)/python examples/demo_curve.py

test: $(VENV)/installed  ## all tests, and a few minutes' worth of SB3's own
	$(BIN)/python -m pytest -n 2
	$(BIN)/python scripts/conformance.py --fast

full: $(VENV)/installed  ## what takes too long for every change: long tests, 2,000 calls of the fuzz, all of SB3's own tests
	SB3_SPARSE_FUZZ_CALLS=2000 $(BIN)/python -m pytest -n 2 --full
	$(BIN)/python scripts/conformance.py

gpu: $(VENV)/installed  ## on a machine with a GPU: its tests, then the benchmarks, less than ten minutes
	$(BIN)/python -m pytest -m cuda -W default tests
	$(BIN)/python benchmarks/gpu.py --markdown gpu.md --csv gpu.csv

conformance: $(VENV)/installed  ## the whole test suites of SB3 and sb3-contrib, on our policies
	$(BIN)/python scripts/conformance.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

type: $(VENV)/installed
	$(BIN)/mypy

docs: $(VENV)/installed  ## the site, into docs/_build/html, and what can be measured of it; needs Python 3.11
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	$(BIN)/python scripts/check_site.py docs/_build/html

clean:
	rm -rf $(VENV) .conformance dist docs/_build
