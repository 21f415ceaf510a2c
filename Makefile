# `make help` lists the targets. Each one sets up what it needs in .venv.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help setup setup-dev demo app test lint docs docs-tables weights tables calibrate bands cross-fit ablation ediffiqa lock sbom
.PHONY: licences audit dsl-fiqa dsl-fiqa-reports test-oldest clean

help:                            ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */\1@/' | awk -F@ '{ printf "%-17s %s\n", $$1, $$2 }'

setup: .venv/core.stamp          ## install what scoring, labelling and training need
setup-dev: .venv/dev.stamp       ## install the extras and the tools of developers too

.venv/core.stamp: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev.stamp: requirements.txt requirements-service.txt requirements-extras.txt requirements-dev.txt .venv/core.stamp
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: setup                      ## score the sample faces with the default model
	$(PY) inference.py samples

app: setup                       ## serve a local page and the HTTP interface: http://127.0.0.1:8000
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-service.txt
	$(PY) -m service

test: setup-dev                  ## run every test
	$(PY) -m pytest

lint: setup-dev                  ## check style and types
	$(PY) -m ruff check .
	$(PY) -m mypy model faces labels scoring bundle training evaluation methods service recipes samples docs *.py

docs: setup-dev                  ## build the documentation as a site, site/index.html; a broken link is an error
	$(PY) -m sphinx -W --keep-going -q -b html -c docs . site

# The targets below read the data folder DATA (docs/data.md). docs/default_model.md explains their steps.
DATA ?= ../shared/data
RECIPE := runs/default
TRAIN := --data-list $(RECIPE)/train.tsv --freeze trunk --dropout 0.3 --save-text-tower no --normalise none \
	--focal sample --factor-weight 3 --epochs 12 --calibration-epoch 6 --batch-size 512 --lr 2e-3 --lr-period 0 --mlp-lr 1e-3
WEIGHTS := weights/clib_fiqa_tiny.safetensors

weights: tables                  ## make the networks in weights/ again, and measure them: half an hour on two cores
	$(PY) train.py --clip-model $(RECIPE)/tiny.safetensors --checkpoints $(RECIPE)/tiny $(TRAIN)
	cp $(RECIPE)/tiny/clib_fiqa.safetensors $(WEIGHTS)
	$(PY) -m recipes.default_model.percentiles $(WEIGHTS) @$(RECIPE)/lfw_test.txt --set "LFW test identities"
	$(MAKE) calibrate
	$(PY) -m recipes.default_model.reports.measure --data $(DATA) --results results
	$(MAKE) bands

calibrate: setup-dev             ## calibrate the factors of the weights in weights/; their sha256 changes
	$(PY) -m recipes.default_model.calibrate $(WEIGHTS) --data $(DATA)
	$(PY) -m recipes.default_model.reports.reliability --data $(DATA) --figure docs/reliability.png --results results
	$(PY) -m recipes.default_model.reports.calibration --every 3 --data $(DATA) --results results

bands: setup-dev                 ## measure the bands of the weights in weights/, whatever weights these are
	$(PY) -m recipes.default_model.bands --data $(DATA) --results results

tables: setup-dev                ## make what the default model learns from: faces, versions of them, labels
	$(PY) -m recipes.default_model.train_factors --data $(DATA) --output weights/mfn_small.safetensors
	$(PY) -m recipes.default_model.make_faces --data $(DATA) --output $(RECIPE)
	$(PY) -m recipes.default_model.known_labels $(RECIPE) --data $(DATA)
	$(PY) evaluate.py embed $(RECIPE)/faces $(RECIPE)/factors --fr $(DATA)/fr/mobilefacenet_foamliu.onnx --align no \
		--output $(RECIPE)/foamliu.npz
	$(PY) -m recipes.default_model.anchors $(RECIPE)/known.tsv $(RECIPE)/foamliu.npz --damage $(RECIPE)/damage.tsv \
		--output $(RECIPE)/train.tsv
	$(PY) -m recipes.default_model.make_start --trunk $(DATA)/fr/mobilefacenet_foamliu.safetensors --output $(RECIPE)/tiny.safetensors
	while read -r name; do ls $(DATA)/faces/lfw/$$name/* || exit 1; done < $(DATA)/splits/lfw_test_identities.txt > $(RECIPE)/lfw_test.txt

cross-fit: setup-dev             ## score people, and see their expressions, with models that never saw them (after `make tables`)
	$(PY) -m recipes.default_model.reports.profile_pairs --data $(DATA) --output runs/evaluation/cfp_profiles.tsv
	$(PY) -m recipes.default_model.reports.cross_fit --data $(DATA) --tables $(RECIPE) \
		--pairs $(DATA)/pairs/celeba_dev.tsv runs/evaluation/cfp_profiles.tsv
	$(PY) -m recipes.default_model.reports.borders --data $(DATA) --tables $(RECIPE) --results results

ablation: setup-dev              ## train variants of the recipe and compare them (after `make tables`)
	for anchor in ratio shifted; do $(PY) -m recipes.default_model.anchors $(RECIPE)/known.tsv $(RECIPE)/foamliu.npz \
		--anchor $$anchor --output $(RECIPE)/$$anchor.tsv || exit 1; done
	$(PY) -m recipes.default_model.anchors $(RECIPE)/known.tsv $(RECIPE)/foamliu.npz --length-share 0 --output $(RECIPE)/ccs.tsv
	$(PY) -m recipes.default_model.reports.ablation --data $(DATA) --tables $(RECIPE) --results results
	$(PY) -m recipes.default_model.reports.ablation --data $(DATA) --tables $(RECIPE) --results results --originals --noise 0.1 0.3 0.5

ediffiqa: setup-dev              ## make the shipped eDifFIQA-T again, and compare it (after benchmarks/evaluation_table.sh)
	benchmarks/quality_labels.sh $(DATA)
	cp runs/quality_labels/ediffiqa-t-head/ediffiqa.safetensors weights/ediffiqa_t.safetensors

# The period is the 20 epochs of the set in steps, so that the rate falls in every step.
DSL := runs/dsl_fiqa
SEEN := gaussian_blur,motion_blur,jpeg,noise,bright,colour_light
HELD := low_resolution,dark

dsl-fiqa: setup-dev              ## make the network of DSL-FIQA in weights/ again: about an hour of one core
	mkdir -p $(DSL) && echo 7218 > $(DSL)/never.txt  # a CelebA identity who is also an LFW test identity
	$(PY) -m methods.dsl_fiqa.make_set $(DATA)/raw $(DATA)/faces/lfw --limit 1200 --output $(DSL)/set \
		--without $(DATA)/splits/lfw_test_identities.txt $(DSL)/never.txt --held-out $(HELD)
	$(PY) -m methods.dsl_fiqa.train_degradation --data $(DATA)/raw --without $(DSL)/set/unseen.txt --kinds $(SEEN) \
		--preset small --precision bf16 --output $(DSL)/de
	$(PY) -m methods.dsl_fiqa.train --data $(DSL)/set/train --validation $(DSL)/set/val --preset small --precision bf16 \
		--schedule batch --period 8380 --encoder $(DSL)/de/degradation_encoder.safetensors --output $(DSL)/quality
	cp $(DSL)/quality/dsl_fiqa.safetensors weights/dsl_fiqa_small.safetensors

dsl-fiqa-reports: setup-dev      ## measure that network, its encoder and its parts (after `make dsl-fiqa`)
	$(PY) -m recipes.dsl_fiqa.strength $(DSL)/set --results results
	$(PY) -m recipes.dsl_fiqa.simple_statistics $(DSL)/set --results results
	$(PY) -m recipes.dsl_fiqa.disagreement --data $(DATA) --results results --figures docs
	$(PY) -m methods.dsl_fiqa.train_degradation --data $(DATA)/raw --without $(DSL)/set/unseen.txt --kinds $(SEEN) \
		--preset small --precision bf16 --loss classifier --output $(DSL)/classifier
	$(PY) -m recipes.dsl_fiqa.encoders $(DATA)/raw --set $(DSL)/set --results results \
		--encoder "degradation learning=$(DSL)/de/degradation_encoder.safetensors" \
		--encoder "classifier of damage=$(DSL)/classifier/degradation_encoder.safetensors" \
		--recognizer $(DATA)/fr/mobilefacenet_foamliu.safetensors
	$(PY) -m recipes.dsl_fiqa.ablation $(DSL)/set --encoder $(DSL)/de/degradation_encoder.safetensors --results results

docs-tables: setup-dev            ## render the tables of the docs from results/*.json
	$(PY) -m docs.render_tables

# Supply. These tools live in .venv-supply, so that they list what the project uses, and not themselves.
SUPPLY := .venv-supply/bin

.venv-supply/stamp: requirements-supply.txt
	test -x $(SUPPLY)/python || $(PYTHON) -m venv .venv-supply
	$(SUPPLY)/python -m pip install --quiet --disable-pip-version-check -r requirements-supply.txt
	touch $@

lock: .venv-supply/stamp setup-dev ## pin the tested versions with their hashes: requirements.lock (needs the network)
	$(PY) -m pip freeze --exclude-editable > .venv-supply/tested.txt
	$(SUPPLY)/uv pip compile requirements.txt requirements-extras.txt --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --constraints .venv-supply/tested.txt -o requirements.lock

sbom: .venv-supply/stamp setup-dev ## list what .venv holds as CycloneDX: sbom.json
	$(SUPPLY)/cyclonedx-py environment $(PY) --output-reproducible --output-file sbom.json

licences: .venv-supply/stamp setup-dev ## list the licences of what .venv holds
	$(SUPPLY)/pip-licenses --python $(PY) --from mixed --with-urls

audit: .venv-supply/stamp        ## look for known vulnerabilities of requirements.lock (needs pypi.org)
	rm -f .venv-supply/audit.json
	$(SUPPLY)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off --desc off --format json \
		--output .venv-supply/audit.json -r requirements.lock || { test -s .venv-supply/audit.json && \
		echo "audit: vulnerable packages are listed above, and in .venv-supply/audit.json" >&2 && exit 1; \
		echo "audit: NOTHING WAS CHECKED. pip-audit could not ask pypi.org about every package (its error is above);" \
		"run it where pypi.org itself can be reached, not a mirror" >&2; exit 2; }
	@echo "audit: no known vulnerability in requirements.lock"

# The tests of what requirements.txt alone must run, with the oldest versions that it allows.
OLDEST := .venv-oldest/bin/python
CORE := checkpoint loading preprocessing iresnet multi_level fused_conv reader reader_limits workers scorer same_rows same_files \
	inference measure label_table generate_labels detect train trajectory processes cr_fiqa_train saves_by_step

test-oldest: .venv-supply/stamp  ## run the core tests with the oldest torch, numpy, … of requirements.txt (gigabytes to download)
	$(SUPPLY)/uv pip compile --quiet requirements.txt --resolution lowest-direct --python-version 3.11 --no-annotate \
		-o .venv-supply/oldest.txt
	test -x $(OLDEST) || $(PYTHON) -m venv .venv-oldest
	$(OLDEST) -m pip install --quiet --disable-pip-version-check -r .venv-supply/oldest.txt pytest pytest-timeout hypothesis \
		scikit-image scipy
	$(OLDEST) -m pytest $(CORE:%=tests/test_%.py)

clean:                           ## remove .venv
	rm -rf .venv .venv-supply .venv-oldest
