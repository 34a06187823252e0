# `make test` and `make bench` do everything on a fresh clone: environment, pinned packages, CUDA
# compiler, build, job. A second call repeats only what changed.
#
#   PYTHON=python3   the interpreter that makes the environment, 3.10 or newer
#   VENV=.venv       where the environment lies; `VENV=` (empty) installs nothing and uses PYTHON's packages
#   CLIENTS=.venv-clients   the same for `make test-clients`
#   FASTRNN_CUDA, FASTRNN_CUDA_ARCHS, MAX_JOBS: see setup.py
#   WORKERS=2        processes that share the tests, a file at a time; `WORKERS=` runs them in one, without xdist
#   ARGS             more arguments for pytest or for the benchmark

PYTHON ?= python3
VENV ?= .venv
CLIENTS ?= .venv-clients
WORKERS ?= $(if $(strip $(VENV)),2)
ARGS ?=

.DEFAULT_GOAL := help

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
CLANG_FORMAT := clang-format
else
PY := $(VENV)/bin/python
CLANG_FORMAT := $(VENV)/bin/clang-format
ENV_TEST := $(VENV)/.stamp-test
ENV_BENCH := $(VENV)/.stamp-bench
ENV_DEV := $(VENV)/.stamp-dev

# A stamp for each set of packages, so that the tests do not wait for the benchmark's peers.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastrnn needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip

$(VENV)/.stamp-build: requirements/build.txt requirements/cuda.txt | $(VENV)/bin/python
	$(PY) -m pip install -q -r requirements/build.txt
	@if [ "$$FASTRNN_CUDA" != 0 ] && $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then \
	    echo "$(PY) -m pip install -q -r requirements/cuda.txt"; \
	    $(PY) -m pip install -q -r requirements/cuda.txt; fi
	@touch $@

$(VENV)/.stamp-%: requirements/%.txt requirements/test.txt $(VENV)/.stamp-build
	$(PY) -m pip install -q -r $<
	@touch $@
endif

.PHONY: help build test test-all test-aarch64 test-machines test-clients models models-check bench lint format wheel asan tsan gpu-check clean distclean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## */\1\t/' | expand -t 16

# Always asked, never long: ninja compiles what changed, headers included.
build: $(ENV_TEST)  ## compile the three binaries into fastrnn/
	$(PY) setup.py -q build_ext --inplace

PYTEST = $(PY) -m pytest tests -q $(if $(WORKERS),-n $(WORKERS) --dist loadfile)

test: build  ## lint and test
	$(PY) -m ruff check .
	$(PYTEST) $(ARGS)

# What is handed out or tested in full has every architecture, unless FASTRNN_CUDA_ARCHS says which.
test-all wheel: export FASTRNN_CUDA_ARCHS ?= all
test-all: build  ## the same with every case (tsan and test-aarch64 among them), on a build with every CUDA architecture
	$(PY) -m ruff check .
	$(PYTEST) -rs --all $(ARGS)

test-machines: build  ## numeric, dtype and error tests as on other processors and with other numbers of threads
	$(PY) tests/machines.py $(ARGS)

# An environment and a CPU build of their own: the programs ask for a torch of theirs, and for much else.
# sb3-contrib's tests are in its source archive alone. The index's torchaudio, which speechbrain imports, is built
# for CUDA: its libraries do not load beside torch's CPU build, and without them it is a Python package that does.
$(CLIENTS)/.stamp: requirements/clients.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "test-clients needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -q -r $<
	rm -f $(CLIENTS)/lib/python3*/site-packages/torchaudio/lib/*.so
	rm -rf $(CLIENTS)/sources
	$(CLIENTS)/bin/python -m pip download -q --no-deps --no-binary sb3-contrib -d $(CLIENTS)/sources \
	    "$$(grep '^sb3-contrib==' $<)"
	tar -xzf $(CLIENTS)/sources/sb3_contrib-*.tar.gz -C $(CLIENTS)/sources
	@touch $@

test-clients: $(CLIENTS)/.stamp  ## real programs (RL, forecasting, speech, graphs ...) with torch.nn and with fastrnn
	FASTRNN_CUDA=0 $(CLIENTS)/bin/python setup.py -q build --build-base build/clients --build-lib build/clients/lib
	$(CLIENTS)/bin/pytest -o pythonpath=build/clients/lib tests/clients -q $(ARGS)

models-check:  ## the exchanges between CTAs as models, by spin (Debian's package): minutes
	$(PYTHON) tests/protocols/check.py $(ARGS)

models: build  ## train every architecture of fastrnn.models to its full target
	$(PY) -m pytest tests/models -q --full $(ARGS)

bench: $(ENV_BENCH) build  ## quick benchmark against torch.nn and what else is installed, with a report
	$(PY) -m benchmarks.lab --quick $(ARGS)

lint: $(ENV_DEV)  ## what pre-commit checks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	git ls-files '*.cpp' '*.cu' '*.cuh' '*.h' '*.inl' | xargs $(CLANG_FORMAT) --dry-run --Werror

format: $(ENV_DEV)  ## rewrite the sources in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	git ls-files '*.cpp' '*.cu' '*.cuh' '*.h' '*.inl' | xargs $(CLANG_FORMAT) -i

wheel: $(ENV_TEST)  ## dist/fastrnn-*.whl
	rm -rf build/lib*  # setuptools would pack what an earlier commit had
	$(PY) -m build --wheel --no-isolation

# CPython does not free everything at exit, hence no leak check. libstdc++ comes early so that the
# sanitizer finds the real __cxa_throw.
asan: $(ENV_TEST)  ## the CPU kernels under AddressSanitizer and UBSan
	FASTRNN_SANITIZE=1 $(PY) setup.py -q build --build-base build/asan --build-lib build/asan/lib
	PYTHONPATH=build/asan/lib ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so.6)" \
	$(PY) tests/sanitize.py $(ARGS)

tsan: build  ## the CPU kernels' threads under ThreadSanitizer, in a program without torch (part of test-all)
	$(PY) -m pytest tests/cpu/test_races.py -q -rs --all $(ARGS)

test-aarch64: build  ## the CPU kernels for Arm by a cross compiler and qemu, from Debian's packages (part of test-all)
	$(PY) -m pytest tests/cpu/test_aarch64.py -q -rs --all $(ARGS)

gpu-check: $(ENV_TEST)  ## everything that needs a GPU; ARGS="check", "measure", "sweep" for a part; "peers": others
	$(PY) tests/gpu/check.py $(ARGS)

clean:  ## remove what was built
	rm -rf build dist *.egg-info fastrnn/*.so

distclean: clean  ## and the environment
	rm -rf $(VENV) $(CLIENTS)
