# Two commands on a bare machine with Python 3.11+, make and git:  make demo   make test
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/mini
CONFIG ?= configs/mini.py
BIN = $(VENV)/bin

.PHONY: demo test test-data lint clean

demo: $(VENV)/installed-plot
	$(BIN)/python -m rpt.experiment --config=$(CONFIG) --workdir=$(WORKDIR)

# Two processes, a file at a time: the tests of a file share what they compile.
test: lint $(VENV)/libtpu
	$(BIN)/python -m pytest -n 2 --dist loadfile

# data/ and its tests where there is no jax: without that of seqio, which brings jax.
test-data: $(VENV)-data/installed
	$(VENV)-data/bin/python -m pytest tests/data

lint: $(VENV)/installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

# An environment with the package and one of its extras.
$(VENV)/installed-%: setup.py pyproject.toml requirements-data.txt requirements-tfds.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[$*]'
	touch $@

$(VENV)-data/installed: setup.py pyproject.toml requirements-data.txt requirements-tfds.txt
	$(PYTHON) -m venv $(VENV)-data
	$(VENV)-data/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-data/bin/python -m pip install --quiet --no-deps -e .
	$(VENV)-data/bin/python -m pip install --quiet \
	    -r requirements-data.txt -r requirements-tfds.txt pytest hypothesis
	touch $@

# The TPU compiler, for the tests that compile for TPU. Beside the other packages and not among them:
# there jax would look for a TPU at every start. Where it has no wheel these tests are skipped.
$(VENV)/libtpu: $(VENV)/installed-dev
	-$(BIN)/python -m pip install --quiet --no-deps --target $@ 'libtpu==0.0.42.*'

clean:
	rm -rf $(VENV) $(VENV)-data
