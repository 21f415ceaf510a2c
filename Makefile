# `make help` lists the targets. Each one sets up what it needs in .venv.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help setup setup-dev demo test lint docs-tables weights tables cross-fit ablation dsl-fiqa dsl-fiqa-reports clean

help:                            ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */\1@/' | awk -F@ '{ printf "%-12s %s\n", $$1, $$2 }'

setup: .venv/core.stamp          ## install what scoring, labelling and training need
setup-dev: .venv/dev.stamp       ## install the extras and the tools of developers too

.venv/core.stamp: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev.stamp: requirements.txt requirements-extras.txt requirements-dev.txt .venv/core.stamp
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: setup                      ## score the sample faces with the default model
	$(PY) inference.py samples

test: setup-dev                  ## run every test
	$(PY) -m pytest

lint: setup-dev                  ## check style and types
	$(PY) -m ruff check .
	$(PY) -m mypy model faces labels scoring training evaluation methods recipes samples docs *.py

# The targets below read the data folder DATA (docs/data.md). docs/default_model.md explains their steps.
DATA ?= ../shared/data
RECIPE := runs/default
SIZES := tiny small
TRAIN := --data-list $(RECIPE)/train.tsv --freeze trunk --dropout 0.3 --save-text-tower no --normalise none \
	--focal sample --epochs 12 --calibration-epoch 6 --batch-size 256 --lr 2e-3 --lr-period 0 --mlp-lr 1e-3

weights: tables                  ## make the networks in weights/ again, and measure them: hours on two cores
	for size in $(SIZES); do weights=weights/clib_fiqa_$$size.safetensors; \
		$(PY) train.py --clip-model $(RECIPE)/$$size.safetensors --checkpoints $(RECIPE)/$$size $(TRAIN) && \
		cp $(RECIPE)/$$size/clib_fiqa.safetensors $$weights && \
		$(PY) -m recipes.default_model.percentiles $$weights @$(RECIPE)/lfw_test.txt --set "LFW test identities" || exit 1; done
	$(PY) -m recipes.default_model.reports.measure --data $(DATA) --results results
	$(PY) -m recipes.default_model.reports.reliability --data $(DATA) --beside clib-fiqa-tiny \
		--figure docs/reliability.png --results results

tables: setup-dev                ## make what the default model learns from: faces, damaged versions, labels
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

cross-fit: setup-dev             ## score CelebA with models that never saw its identities (after `make tables`)
	for size in $(SIZES); do \
		$(PY) -m recipes.default_model.reports.cross_fit --data $(DATA) --tables $(RECIPE) --size $$size || exit 1; done
ablation: setup-dev              ## train variants of the recipe and compare them (after `make tables`)
	$(PY) -m recipes.default_model.reports.ablation --data $(DATA) --tables $(RECIPE) --results results

DSL := runs/dsl_fiqa
SEEN := gaussian_blur,jpeg,noise,dark,bright,colour_light

dsl-fiqa: setup-dev              ## make the network of DSL-FIQA in weights/ again: about twenty minutes of one core
	mkdir -p $(DSL) && echo 7218 > $(DSL)/never.txt  # a CelebA identity who is also an LFW test identity
	$(PY) -m methods.dsl_fiqa.make_set $(DATA)/raw $(DATA)/faces/lfw --limit 1200 --output $(DSL)/set \
		--without $(DATA)/splits/lfw_test_identities.txt $(DSL)/never.txt --held-out motion_blur,low_resolution
	$(PY) -m methods.dsl_fiqa.train_degradation --data $(DATA)/raw --without $(DSL)/set/unseen.txt --kinds $(SEEN) \
		--preset small --output $(DSL)/de
	$(PY) -m methods.dsl_fiqa.train --data $(DSL)/set/train --validation $(DSL)/set/val --preset small --precision bf16 \
		--encoder $(DSL)/de/degradation_encoder.safetensors --epochs 2 --output $(DSL)/first
	$(PY) -m methods.dsl_fiqa.train --data $(DSL)/set/train --validation $(DSL)/set/val --preset small --precision bf16 \
		--start-weights $(DSL)/first/dsl_fiqa.safetensors --lr 7e-4 --output $(DSL)/quality
	cp $(DSL)/quality/dsl_fiqa.safetensors weights/dsl_fiqa_small.safetensors

dsl-fiqa-reports: setup-dev      ## measure that network, its encoder and its parts (after `make dsl-fiqa`)
	$(PY) -m methods.dsl_fiqa.train_degradation --data $(DATA)/raw --without $(DSL)/set/unseen.txt --kinds $(SEEN) \
		--preset small --loss classifier --output $(DSL)/classifier
	$(PY) -m recipes.dsl_fiqa.strength $(DSL)/set --crops 4 --results results
	$(PY) -m recipes.dsl_fiqa.encoders $(DATA)/raw --set $(DSL)/set --encoder $(DSL)/de/degradation_encoder.safetensors \
		--classifier $(DSL)/classifier/degradation_encoder.safetensors \
		--recognizer $(DATA)/fr/mobilefacenet_foamliu.safetensors --results results
	$(PY) -m recipes.dsl_fiqa.ablation $(DSL)/set --encoder $(DSL)/de/degradation_encoder.safetensors --results results
	$(PY) -m recipes.dsl_fiqa.disagreement --data $(DATA) --results results --figures docs

docs-tables: setup-dev            ## render the tables of the docs from results/*.json
	$(PY) -m docs.render_tables

clean:                           ## remove .venv
	rm -rf .venv
