# make repro      set everything up, train the active suite (by default laptop) and write report/index.html
# make test       set everything up; lint, types and all tests
# make quick      lint, types and the quick tests (no training, no Ray, no server); run it before every commit
# make numeric    the tests that train, as if on another processor: CPU=avx2 or CPU=default, THREADS=2
# make fuzz       random input to every reader, for ten minutes
# make dashboard  the results in MLflow, with the addresses of its views
# make benchmark  training rates against minimal PyTorch loops
# make clean      delete datasets and results; downloads in data/ stay

PYTHON ?= python3
VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The instructions of an older processor, which round differently. `make test` takes CPU and THREADS, too.
ifeq ($(CPU),avx2)
export ATEN_CPU_CAPABILITY := avx2
export ONEDNN_MAX_CPU_ISA := AVX2
export MKL_ENABLE_INSTRUCTIONS := AVX2
else ifeq ($(CPU),default)
export ATEN_CPU_CAPABILITY := default
export ONEDNN_MAX_CPU_ISA := SSE41
export MKL_ENABLE_INSTRUCTIONS := SSE4_2
else ifdef CPU
$(error CPU is $(CPU); expected avx2, default, or nothing for this processor as it is)
endif
ifdef THREADS
export OMP_NUM_THREADS := $(THREADS)
endif

.PHONY: repro test quick numeric fuzz lint dashboard benchmark install home outside-git clean

# pipelines.train trains all benchmarks at once, their seeds packed side by side. `dvc repro` alone gives the same results,
# one stage after another.
repro: install outside-git
	dvc repro fetch
	python -m pipelines.train
	dvc repro

# MNIST first, or each process of tests would fetch its own. Tests with time limits that other work could break are `alone`.
test: install lint
	python -m pipelines.fetch mnist
	python -m pytest -m "not alone" -n 3 --dist loadfile --no-loadscope-reorder
	python -m pytest -m alone

quick: install lint
	python -m pytest -m "not slow" -n 2 --dist loadfile -o tmp_path_retention_policy=failed

numeric: install
	python -m pytest -m numeric -n 2 --dist loadfile

fuzz: install
	python -m tests.fuzz

lint: install
	ruff check .
	ruff format --check .
	mypy

dashboard: install
	python -m pipelines.dashboard

benchmark: install
	python -m benchmarks.families

install: home $(VENV)/installed

# Where HOME is a file, DVC ends in a traceback; where there is none, it works.
home:
	@test ! -e "$$HOME" || test -d "$$HOME" || { echo "error: HOME is $$HOME; expected a folder" >&2; exit 2; }

$(VENV)/installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); expected Python 3.11 or newer (make PYTHON=python3.12)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev]'
	touch $@

# DVC refuses to work in an unpacked archive, which is no clone, without this setting.
outside-git:
	@git rev-parse --git-dir > /dev/null 2>&1 || test -e .git || dvc config --local core.no_scm true

clean:
	rm -rf datasets runs evaluations report store mlflow.db mlartifacts
