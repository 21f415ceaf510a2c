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
	$(PY) -m mypy model faces labels scoring training evaluation methods recipes samples docs *.py

# The networks in weights/, remade from the data folder (docs/default_model.md): hours on two cores.
DATA ?= ../shared/data
RECIPE := runs/default
SIZES := tiny small
TRAIN := --data-list $(RECIPE)/train.tsv --freeze trunk --dropout 0.3 --save-text-tower no --normalise none \
	--focal sample --epochs 12 --calibration-epoch 6 --batch-size 256 --lr 2e-3 --lr-period 0 --mlp-lr 1e-3
.PHONY: weights tables cross-fit ablation
weights: tables
	for size in $(SIZES); do weights=weights/clib_fiqa_$$size.safetensors; \
		$(PY) train.py --clip-model $(RECIPE)/$$size.safetensors --checkpoints $(RECIPE)/$$size $(TRAIN) && \
		cp $(RECIPE)/$$size/clib_fiqa.safetensors $$weights && \
		$(PY) -m recipes.default_model.percentiles $$weights @$(RECIPE)/lfw_test.txt --set "LFW test identities" && \
		$(PY) -m recipes.default_model.reports.measure --data $(DATA) --weights $$weights && \
		$(PY) -m recipes.default_model.reports.reliability --data $(DATA) --weights $$weights || exit 1; done

tables: setup-dev                ## faces, damaged versions of them, and their labels
	$(PY) -m recipes.default_model.train_factors --data $(DATA) --output weights/mfn_small.safetensors
	$(PY) -m recipes.default_model.make_faces --data $(DATA) --output $(RECIPE)
	$(PY) generate_labels.py --data $(RECIPE)/faces --centres $(RECIPE)/clean --fr $(DATA)/fr/mobilefacenet_foamliu.onnx \
		--output $(RECIPE)/faces.tsv
	$(PY) -m recipes.default_model.known_labels $(RECIPE)/faces.tsv $(RECIPE)/damage.tsv $(RECIPE)/known.tsv
	$(PY) evaluate.py embed $(RECIPE)/faces --fr $(DATA)/fr/mobilefacenet_foamliu.onnx --output $(RECIPE)/foamliu.npz
	$(PY) -m recipes.default_model.anchors $(RECIPE)/known.tsv $(RECIPE)/foamliu.npz --output $(RECIPE)/train.tsv
	for anchor in ratio shifted; do $(PY) -m recipes.default_model.anchors $(RECIPE)/known.tsv $(RECIPE)/foamliu.npz \
		--anchor $$anchor --output $(RECIPE)/$$anchor.tsv || exit 1; done
	$(PY) -m recipes.default_model.anchors $(RECIPE)/known.tsv $(RECIPE)/foamliu.npz --length-share 0 --output $(RECIPE)/ccs.tsv
	$(PY) -m recipes.default_model.make_start --trunk $(DATA)/fr/mobilefacenet_foamliu.safetensors --output $(RECIPE)/tiny.safetensors
	$(PY) -m recipes.default_model.make_start --trunk $(DATA)/fr/mobilefacenet_foamliu.safetensors \
		--factor-trunk weights/mfn_small.safetensors --output $(RECIPE)/small.safetensors
	while read -r name; do ls $(DATA)/faces/lfw/$$name/* || exit 1; done < $(DATA)/splits/lfw_test_identities.txt > $(RECIPE)/lfw_test.txt

# CelebA faces scored by models that never saw their identities, for the evaluation (after `make tables`).
cross-fit:
	for size in $(SIZES); do \
		$(PY) -m recipes.default_model.reports.cross_fit --data $(DATA) --tables $(RECIPE) --size $$size || exit 1; done
ablation:
	$(PY) -m recipes.default_model.reports.ablation --data $(DATA) --tables $(RECIPE) --results results

docs-tables: setup-dev            ## render the tables of the docs from results/*.json
	$(PY) -m docs.render_tables

clean:
	rm -rf .venv
