# make demo · make test · make lint: each does its own set-up in .venv
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: setup setup-dev demo test lint clean

setup: .venv/core.stamp          ## what scoring, labelling and training need
setup-dev: .venv/dev.stamp       ## and the extras and the developers' tools

.venv/core.stamp: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev.stamp: requirements.txt requirements-extras.txt requirements-dev.txt .venv/core.stamp
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: setup                      ## score the sample faces with the default model
	$(PY) inference.py samples

test: setup-dev                  ## every test
	$(PY) -m pytest

lint: setup-dev                  ## style and types
	$(PY) -m ruff check .
	$(PY) -m mypy model faces scoring training evaluation methods samples *.py

# The two networks in weights/, remade from the data folder (docs/default_model.md): about two hours on two cores.
DATA ?= ../shared/data
RECIPE := runs/default
.PHONY: weights
weights: setup-dev
	$(PY) -m methods.default_model.train_factors --data $(DATA) --output weights/mfn_small.safetensors
	$(PY) -m methods.default_model.make_faces --data $(DATA) --output $(RECIPE)
	$(PY) generate_labels.py --data $(RECIPE)/faces --centres $(RECIPE)/clean --fr $(DATA)/fr/mobilefacenet_foamliu.onnx \
		--output $(RECIPE)/faces.tsv
	$(PY) -m methods.default_model.known_labels $(RECIPE)/faces.tsv $(RECIPE)/damage.tsv $(RECIPE)/train.tsv
	$(PY) -m methods.default_model.make_start --trunk $(DATA)/fr/mobilefacenet_foamliu.safetensors --output $(RECIPE)/start.safetensors
	$(PY) train.py --data-list $(RECIPE)/train.tsv --clip-model $(RECIPE)/start.safetensors --checkpoints $(RECIPE)/train \
		--freeze none --save-text-tower no --epochs 3 --calibration-epoch 2 --batch-size 64 --lr 5e-4 --lr-period 0 --mlp-lr 1e-3 \
		--normalise percentile --focal sample
	cp $(RECIPE)/train/clib_fiqa.safetensors weights/clib_fiqa_small.safetensors
	$(PY) -m methods.default_model.measure --data $(DATA) --weights weights/clib_fiqa_small.safetensors
	$(PY) -m methods.default_model.reliability --data $(DATA) --weights weights/clib_fiqa_small.safetensors

clean:
	rm -rf .venv
