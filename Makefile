# make smoke: the main job on tiny models and data made on the spot
# make table: README's first table, from the runs in results/runs
# make test: the fast tests; make test-slow: the others; make lint: linters and types
# make check-gpu: do runs do on this machine's GPU what they do on a CPU? A minute
# make figures: the figures of README and docs/; make lock: requirements.lock anew
# All but lock install the packages of requirements.lock into .venv. Linux, Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The tiny job needs no network, caches in this folder, and is too small to gain from a second thread.
SMOKE := smoke
SMOKE_JOB := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HOME=$(SMOKE)/cache PYTHON=$(RUN) RESULTS=$(SMOKE)/results \
	MODELS=$(SMOKE)/roberta TASKS="mrpc stsb" SEEDS="1 2" bash train_all.sh --dataset_path $(SMOKE)/glue \
	--num_train_epochs 4 --per_device_train_batch_size 16 --log_level error --disable_tqdm True
PYTEST := $(RUN) -m pytest --numprocesses auto --maxprocesses 8

.PHONY: smoke table test test-slow lint check-gpu lock figures clean

smoke: $(VENV)/ready
	rm -rf $(SMOKE)
	$(RUN) tests/make_tiny.py $(SMOKE)
	ADAPTERS="lora:4 randlora:8" $(SMOKE_JOB) --learning_rate 5e-3
	ADAPTERS=vera:16 $(SMOKE_JOB) --learning_rate 5e-2
	@$(RUN) parse_results.py $(SMOKE)/results --format html > $(SMOKE)/page.html
	@$(RUN) parse_results.py $(SMOKE)/results | sed '/^$$/,$$d'
	@echo "the same with figures and comparisons: $(SMOKE)/page.html"
	@echo OK

table: $(VENV)/ready
	@$(RUN) parse_results.py results/runs --format markdown

# PYTEST_FLAGS is for .ci/run, which adds the coverage.
test: $(VENV)/ready
	$(PYTEST) $(PYTEST_FLAGS)

test-slow: $(VENV)/ready
	$(PYTEST) -m slow

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check-gpu: $(VENV)/ready
	@$(RUN) -m benchmarks.check_gpu

# After a change of requirements.txt or tests/requirements.txt. Asks pip's index, installs nothing.
lock:
	$(PYTHON) .ci/lock.py

# The speed figure needs only the numbers in results/; the others need a sweep's folders, one an adapter:
# make figures STUDY="finetuned_results/lora4 finetuned_results/randlora64" NSEEDS=5
NSEEDS ?= 5
figures: $(VENV)/ready
	$(RUN) -m benchmarks.plot_benchmarks results/bench_adapters.json results/bench_grid.json results/speed.png
	$(if $(STUDY),$(RUN) plot_results.py $(STUDY) $(NSEEDS) results/scores.png)
	$(if $(STUDY),$(RUN) plot_spectrum.py $(STUDY:%=%/1/mrpc) results/spectrum.png)

$(VENV)/ready: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

clean:
	rm -rf $(VENV) $(SMOKE)
