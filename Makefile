# Two commands matter: `make demo` (sets up, runs the whole way) and `make test` (sets up, passes the tests).
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= 2.13.0
CUDA   ?=# anything: install torch for GPUs, though this machine (a cluster's login node) has none

BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt

# Without it each of the tests' interpreters, and each worker of pytest, would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint style setup setup-test clean
help:
	@echo "make demo   set up and run the whole way on real text: less than 8 minutes on 2 cores"
	@echo "make test   set up, lint, and pass the tests: some 11 minutes on 2 cores, with Slurm"
	@echo "make lint   ruff and pyright alone"
	@echo "make clean  remove the environment and what the demo made"

demo: setup
	$(BIN)/lmscale demo

# Twice the cores that they are made for: jobs in Slurm's queue keep no core busy. Each computes on
# one: torch's threads would wait for each other by spinning. pyright, which uses one core, runs
# beside them.
test: style
	@$(BIN)/pyright >$(VENV)/pyright.log 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/pyright.log; exit $$((tests || types))

lint: style
	$(BIN)/pyright

style: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(VENV)/.ready
setup-test: $(VENV)/.ready-test

# torch comes first and apart: the default build brings several GB of CUDA, which a machine without a GPU
# cannot use. There the CPU build is taken from wherever pip is configured to look, else from PyTorch's own
# index, which uv knows by name; and if neither can be reached, the default build, which runs as well.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "lmscale needs Python 3.10 to 3.13; set PYTHON="'
	$(PYTHON) -m venv $(VENV)
	@if [ -n '$(CUDA)' ] || nvidia-smi -L >/dev/null 2>&1; then \
		echo "for GPUs: installing torch $(TORCH) with CUDA"; \
		$(PIP) install -q 'torch==$(TORCH)'; \
	else \
		echo "no GPU found: installing torch $(TORCH) for the CPU"; \
		$(PIP) install -q 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| { $(PIP) install -q uv && VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --torch-backend cpu 'torch==$(TORCH)'; } \
		|| $(PIP) install -q 'torch==$(TORCH)'; \
	fi
	@touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml $(CONSTRAINTS)
	$(PIP) install -q -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[test,lint]'
	@touch $@

clean:
	rm -rf $(VENV) data/demo runs/demo
