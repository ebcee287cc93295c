PYTHON ?= python3
LOAD_IMAGE ?= kind load image-archive
BIN := .venv/bin
RECIPE := $(if $(FROM_SCRATCH),tiny_scratch,tiny)

.PHONY: demo test test-distributed test-cluster lint

demo: .venv/demo.stamp  ## the whole pipeline on walks recorded here, then a report and a world to walk in
	$(BIN)/relic pipeline run --recipe $(RECIPE) --store out/demo/store --out out/demo

test: .venv/test.stamp  ## every test but the long ones of several processes; a browser's need Chromium
	$(BIN)/python -m pytest -m "not distributed and not cluster"
	@echo "not run: the cluster's tests; make test-cluster KUBECONFIG=... LOAD_IMAGE=... runs them (docs/kubernetes.md)"

test-distributed: .venv/test.stamp  ## all of several processes: they train the same, are killed, and go on
	$(BIN)/python -m pytest $(addprefix tests/test_,$(addsuffix .py,distributed sequence elastic checkpoint watch scaling))

test-cluster: .venv/test.stamp  ## all of it on the cluster of KUBECONFIG, whose nodes get images by $(LOAD_IMAGE) FILE
	images/build --variant cpu --tag test --out out/images control services train serve
	for image in control services train serve; do $(LOAD_IMAGE) out/images/$$image.tar; done
	RELIC_TEST_CLUSTER=1 $(BIN)/python -m pytest -m cluster

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy relic workflows tests benchmarks

.venv/test.stamp: constraints-torchx.txt

.venv/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: some 5 GB, about 3 minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	$(if $(filter test,$*),$(BIN)/python -m venv .venv/torchx)
	$(if $(filter test,$*),.venv/torchx/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-torchx.txt torchx)
	touch $@
