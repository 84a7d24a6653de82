# make smoke: the main job on tiny models and data made on the spot; make test: the tests; make figures: README's.
# All install what they need into .venv, and want Linux with bash 4.4 or later and Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The tiny job needs no network, caches in this folder, and is too small to gain from a second thread.
SMOKE := smoke
SMOKE_JOB := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HOME=$(SMOKE)/cache PYTHON=$(RUN) RESULTS=$(SMOKE)/results \
	MODELS=$(SMOKE)/roberta TASKS="mrpc stsb" SEEDS="1 2" bash train_all.sh --dataset_path $(SMOKE)/glue \
	--num_train_epochs 4 --per_device_train_batch_size 16 --log_level error --disable_tqdm True

.PHONY: smoke test lint figures clean

smoke: $(VENV)/ready
	rm -rf $(SMOKE)
	$(RUN) tests/make_tiny.py $(SMOKE)
	ADAPTERS="lora:4 randlora:8" $(SMOKE_JOB) --learning_rate 5e-3
	ADAPTERS=vera:16 $(SMOKE_JOB) --learning_rate 5e-2
	for adapter in lora4 randlora8 vera16; do \
		$(RUN) parse_results.py $(SMOKE)/results/$${adapter}_roberta 2 || exit 1; done

test: $(VENV)/ready
	$(RUN) -m pytest --numprocesses auto --maxprocesses 8

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The speed figure needs only the numbers in results/; the others need a sweep's folders, one an adapter:
# make figures STUDY="finetuned_results/lora4 finetuned_results/randlora64" NSEEDS=5
NSEEDS ?= 5
figures: $(VENV)/ready
	$(RUN) benchmarks/plot_benchmarks.py results/bench_adapters.json results/bench_grid.json results/speed.png
	$(if $(STUDY),$(RUN) plot_results.py $(STUDY) $(NSEEDS) results/scores.png)
	$(if $(STUDY),$(RUN) plot_spectrum.py $(STUDY:%=%/1/mrpc) results/spectrum.png)

$(VENV)/ready: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(SMOKE)
