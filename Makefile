# Every target runs `make setup` first where it is needed; see README.md.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= python-10m
MINUTES ?= 30
# For example: make bench BENCH_OPTIONS="--model dialled --batch-size 1"
BENCH_OPTIONS ?=
# For example: make contract VLLM=0.34; without it, the supported releases that are not installed
VLLM ?=
# For example: make gpu-check GPU_OPTIONS="--deadline 1800 --part exactness 7b"
GPU_OPTIONS ?=
# With vLLM for CUDA; .venv has vLLM for CPUs.
GPU_PYTHON ?= python3
# For example: make setup PIP_OPTIONS="--extra-index-url URL"
PIP_OPTIONS ?=
# For example: make lock LOCK_OPTIONS="--torch-backend cpu"
LOCK_OPTIONS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps $(PIP_OPTIONS)
# A source distribution would need a compiler and minutes; pip compiles bytecode on one core only.
WHEELS := --only-binary=:all: --no-compile --require-hashes
LOCKS := requirements/cpu.txt requirements/dev.txt
# The files run in order, the short unit tests last, so that both processes end at about the same time.
# Files that share a pair of servers stay together (tests/conftest.py).
IN_TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# A process has one model runner, so tests that are run on V2 too are run by other processes
# (tests/runner_v2.py).
ON_V2 := LAYERSKIP_TEST_RUNNER=v2 $(BIN)/python -m pytest $(IN_TWO)
# The others need no model runner, look into V1's, or were not run on V2.
TESTS_OF_V2 := tests/parallel/test_tensor_parallel.py tests/parallel/test_data_parallel.py \
  $(addprefix tests/server/test_,api.py echo.py tool_streams.py) $(addprefix tests/engine/test_,$(addsuffix .py,\
  sampling scenarios policy requests endings skipped_drafts structured_backends seeded seeded_scenarios sessions \
  logprobs rope engine_features engine_health exact async_scheduling graphs graph_safety isolation step_machine \
  model runner_choice auto auto_vocabulary))

.PHONY: setup demo test test-all test-cluster mutants soak bench gpu-check quality ledger contract style
.PHONY: docs docs-serve build check-wheel lock clean help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.installed ## create .venv from the locked requirement files

$(VENV)/.installed: $(LOCKS) requirements/torchao.txt pyproject.toml requirements/vllm-metadata/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "make setup: $(PYTHON) is older than Python 3.11; name another: make setup PYTHON=..."; exit 1; }
	@echo "1/5 Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@echo "2/5 Installing the pinned packages: wheels only, about 1 GB of downloads the first time ..."
	@$(PIP) $(WHEELS) $(addprefix -r ,$(LOCKS)) || { \
	  echo; \
	  echo "make setup: pip could not install the locked packages."; \
	  echo "If it found no torch==2.13.0+cpu: PyTorch's CPU builds have their own package index."; \
	  echo "Add the URL that pytorch.org's 'Get Started' page gives for Linux, pip, CPU:"; \
	  echo "    make setup PIP_OPTIONS=\"--extra-index-url URL\""; \
	  exit 1; }
	@echo "3/5 Installing torchao into $(VENV)/torchao, for the tests ..."
	@$(PIP) $(WHEELS) --upgrade --target $(VENV)/torchao -r requirements/torchao.txt
	@echo "4/5 Compiling their bytecode on all cores ..."
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || : # some files are of other Python versions
	@echo "5/5 Installing layerskip-vllm, editable ..."
	@$(PIP) --no-build-isolation ./requirements/vllm-metadata --editable .
	@touch $@

demo: setup ## serve a model plainly and with self-speculation, side by side
	$(BIN)/layerskip-vllm demo --model $(MODEL)

test: setup ## the test suite, about 20 minutes on 2 cores
	$(BIN)/python -m pytest $(IN_TWO)
	$(ON_V2) -m "(on_v2 or runner_v2) and not slow" $(TESTS_OF_V2)

test-all: setup ## it and the slow tests, about 75 minutes
	$(BIN)/python -m pytest $(IN_TWO) -m "not cluster" --hypothesis-profile thorough
	$(ON_V2) -m "not cluster" $(TESTS_OF_V2)

test-cluster: setup ## tensor parallel across two emulated hosts with Ray; as root, about 5 minutes
	$(BIN)/python -m pytest tests/parallel/test_two_hosts.py -m cluster

mutants: setup ## faults in the package, each of which the tests must notice; about 15 minutes
	$(BIN)/python -m tests.mutation

soak: setup ## two servers under the same load, with and without self:E, compared; MINUTES=30
	$(BIN)/python -m tests.stress.soak --minutes $(MINUTES) --output build/soak.json

bench: setup ## every way to decode, measured side by side, into build/bench; takes hours
	$(BIN)/python -m benchmarks.compare --output build/bench $(BENCH_OPTIONS)

gpu-check: ## exactness, speed and CUDA graphs of self:E on this GPU, into build/gpu; 9 minutes
	@$(GPU_PYTHON) -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, ["torch", "vllm"])))' || \
	  { echo "make gpu-check: $(GPU_PYTHON) has no PyTorch or no vLLM; name a Python with vLLM for CUDA: make gpu-check GPU_PYTHON=..."; exit 1; }
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU_OPTIONS)

quality: setup ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: setup ## write the wheels' hashes into requirements/ after a pin changed; needs uv
	$(BIN)/python requirements/hashes.py $(LOCK_OPTIONS)

ledger: setup ## write the tables of patches/README.md from the code
	$(BIN)/python -m tests.unit.contract.ledger

contract: setup ## check what the plugin uses of a vLLM that is not installed, by its sources; VLLM=0.34
	$(BIN)/python -m tests.unit.contract.check $(VLLM)

style: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## the documentation site, into build/docs; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: setup ## the same at http://127.0.0.1:8000, rebuilt when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

build: setup ## sdist and wheel into dist/
	$(BIN)/python -m build --no-isolation

check-wheel: setup ## build the wheel, install it into an empty environment, use it; half a minute
	rm -rf build/wheel *.egg-info # which would bring files of an earlier build
	$(BIN)/python -m build --no-isolation --outdir build/wheel
	$(BIN)/python -m tests.check_wheel build/wheel

clean: ## remove what was built and the virtual environment
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
