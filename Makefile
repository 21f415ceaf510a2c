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
	$(PY) -m mypy model faces scoring training evaluation *.py

clean:
	rm -rf .venv
