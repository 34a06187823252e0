# `make test` and `make bench` do everything on a fresh clone: environment, pinned packages, CUDA
# compiler, build, job. A second call repeats only what changed.
#
#   CPU=1            torch's CPU build, where pip finds one (1.3 GB with everything else, in place of 6), and no CUDA
#                    kernels: their compile gate is skipped, with a line that says so. CPU=0: everything. Where neither
#                    is said, CPU=1 is for machines without an NVIDIA GPU and without nvcc, and for nothing that is handed
#                    out or tests in full. In the environment any other value is somebody else's, and says neither
#   PYTHON=python3   the interpreter that makes the environment, 3.10 or newer
#   VENV=.venv       where the environment lies, with CPU=1 .venv-cpu; `VENV=` (empty) installs nothing and uses
#                    PYTHON's packages
#   CLIENTS=.venv-clients   the same for `make test-clients`
#   TORCH_CPU_INDEX  address of an index that has CPU builds of torch, for CPU=1 and test-wheels: PyTorch's install page
#                    names it. Without it torch is what pip finds, by PIP_EXTRA_INDEX_URL for one: often the large build
#   FASTRNN_CUDA, FASTRNN_CUDA_ARCHS, MAX_JOBS: see setup.py
#   WORKERS=2        processes that share the tests, a file at a time; `WORKERS=` runs them in one, without xdist
#   CALL=1 2         which of gpu-check's calls
#   RESULTS=gpu-check-out   the folder of gpu-check's results for `make gpu-table`
#   ARGS             more arguments for pytest or for the benchmark

# A GPU shows as a device file or by its driver's command, the wish to compile for one as nvcc. WSL's device, /dev/dxg, is
# there for any vendor's: NVIDIA's driver lays files of its own beside the others.
WSL := /usr/lib/wsl/lib
CUDA_FILES := /dev/nvidiactl $(WSL)/libcuda.so.1 $(WSL)/nvidia-smi /usr/local/cuda/bin/nvcc
# openSUSE's /etc/profile exports CPU=x86_64. The answer has a name of its own, as make hands on to what it runs a variable
# that came from the environment: that finds CPU as it was.
JUST_CPU := $(strip $(CPU))
ifneq ($(filter environment%,$(origin CPU)),)
JUST_CPU := $(if $(filter 1,$(words $(JUST_CPU))),$(filter 0 1,$(JUST_CPU)))
endif
ifeq ($(if $(filter undefined environment%,$(origin CPU)),$(JUST_CPU),said),)
ifneq ($(filter test-all gpu-check gpu-pack wheel% test-wheels release,$(MAKECMDGOALS)),)
JUST_CPU := 0
else ifeq ($(if $(filter undefined,$(origin VENV)),.venv,$(strip $(VENV))),)
JUST_CPU := 0
else
JUST_CPU := $(shell if [ "$$FASTRNN_CUDA" = 1 ] || [ -n "$$CUDA_HOME$$CUDA_PATH" ] || \
    command -v nvidia-smi >/dev/null || command -v nvcc >/dev/null; then echo 0; \
    else for f in $(CUDA_FILES); do if [ -e $$f ]; then echo 0; exit; fi; done; echo 1; fi)
endif
endif
ifeq ($(filter 0-1 1-1,$(JUST_CPU)-$(words $(JUST_CPU))),)
$(error CPU must be 0 or 1, got "$(CPU)")
endif
ifeq ($(JUST_CPU),1)
export FASTRNN_CUDA := 0
endif

PYTHON ?= python3
VENV ?= $(if $(filter 1,$(JUST_CPU)),.venv-cpu,.venv)
CLIENTS ?= .venv-clients
CALL ?= 1 2
RESULTS ?= gpu-check-out
WORKERS ?= $(if $(strip $(VENV)),2)
TORCH_CPU_INDEX ?=
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
ENV_DOCS := $(VENV)/.stamp-docs
ENV_RELEASE := $(VENV)/.stamp-release
ENV_CROSS := $(VENV)/.stamp-cross

MAY_BE_LARGE := note: pip may find torch's large build, 4 GB with CUDA's libraries; with TORCH_CPU_INDEX= the index that \
PyTorch's install page names for CPU builds, it takes the small one

# A stamp for each set of packages, so that the tests do not wait for the benchmark's peers; and one for the environment
# itself: where venv fails or is interrupted, it leaves a python without pip, and is to be called again.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastrnn needs Python 3.10 or newer")'
	@$(PYTHON) tools/needs.py
	@$(SAY) "environment in $(VENV)"
	@$(PY) -m pip --version >/dev/null 2>&1 || { $(call MAKE_VENV,$(VENV)); $(PY) -m pip install -q --upgrade pip; }
	@touch $@

$(VENV)/.stamp-build: requirements/build.txt requirements/cpu.txt requirements/tools.txt requirements/cuda.txt \
                      | $(VENV)/.stamp-venv
ifeq ($(JUST_CPU),1)
	@$(SAY) "torch's CPU build and what compiles, into $(VENV)"
	@$(if $(strip $(TORCH_CPU_INDEX)$(PIP_EXTRA_INDEX_URL)),:,echo "$(MAY_BE_LARGE)")
	$(PY) -m pip install -q $(if $(strip $(TORCH_CPU_INDEX)),--extra-index-url $(TORCH_CPU_INDEX)) -r requirements/cpu.txt
	@$(PY) -W ignore -c 'import torch; torch.version.cuda and print("note: this is a CUDA build of torch, which is larger and", \
	    "works as well: pip found no CPU build for this Python")'
else
	@$(SAY) "torch, CUDA's compiler and what compiles, into $(VENV)"
	$(PY) -m pip install -q -r requirements/build.txt
	@if [ "$$FASTRNN_CUDA" != 0 ] && $(PY) -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then \
	    echo "$(PY) -m pip install -q -r requirements/cuda.txt"; \
	    $(PY) -m pip install -q -r requirements/cuda.txt; fi
endif
	@touch $@

$(VENV)/.stamp-%: requirements/%.txt requirements/test.txt $(VENV)/.stamp-build
	@$(SAY) "what requirements/$*.txt lists, into $(VENV)"
	$(PY) -m pip install -q -r $<
	@touch $@
endif

# Debian and Ubuntu have venv's half in a package of its own: what is left out is found missing at the end.
MAKE_VENV = echo "$(PYTHON) -m venv $(1)"; $(PYTHON) -m venv $(1) || { echo "$(PYTHON) made no environment in $(1). On Debian \
and Ubuntu \"apt install python3-venv\" brings what it lacks (python3.12-venv for PYTHON=python3.12); then the same again" >&2; \
exit 1; }

# What is coming and how long it takes, before anything else; then what is going on, with the time.
SAY := sh -c 'printf "==> %s  %s\n" "$$(date +%H:%M:%S)" "$$0"'
START := $(shell date +%s)
TOOK = echo "==> $@: done in $$((($$(date +%s) - $(START)) / 60)) min $$((($$(date +%s) - $(START)) % 60)) s"

ifeq ($(JUST_CPU),1)
# Nobody knows here what pip's own configuration names.
ifneq ($(strip $(TORCH_CPU_INDEX)),)
PACKAGES_test := 1.3 GB with torch's CPU build, 2 minutes on a fast line
PACKAGES_bench := 2 GB with torch's CPU build and the peers, 3 minutes on a fast line
else
FOUND := where $(if $(strip $(PIP_EXTRA_INDEX_URL)),PIP_EXTRA_INDEX_URL has,pip finds) torch's CPU build (TORCH_CPU_INDEX= names its index)
PACKAGES_test := 1.3 GB $(FOUND), else 5 GB; 2 to 5 minutes on a fast line
PACKAGES_bench := with the peers 2 GB $(FOUND), else 6 GB; 3 to 6 minutes on a fast line
endif
COMPILATION := 1 to 2 minutes on two cores
TESTS := 12 to 20 minutes on two cores
GATE := CPU=1: no CUDA kernels are built, and the CUDA compile gate is skipped; "make test CPU=0" has both
else
PACKAGES_test := 6 GB, 5 minutes on a fast line
PACKAGES_bench := 7 GB with the peers, 6 minutes on a fast line
COMPILATION := 8 minutes on two cores, the CUDA kernels 6 of them
TESTS := 15 to 25 minutes on two cores
GATE :=
endif
define PREPARED
$(if $(strip $(VENV)),  first time: packages into $(VENV): $(PACKAGES_$(goal)),  packages: those of $(PYTHON))
  first time: compilation: $(COMPILATION)
endef
define ABOUT_test
make test: outputs and every gradient against the plain definition and against torch.nn
$(PREPARED)
  then, each time: the tests: $(TESTS)
endef
define ABOUT_bench
make bench: fastrnn against torch.nn and what else is installed, with a report
$(PREPARED)
  then, each time: the benchmark: 1 minute
endef
$(foreach goal,$(filter test bench,$(MAKECMDGOALS)),$(info $(ABOUT_$(goal)))$(if $(GATE),$(info $(GATE))))

.PHONY: help build stream test test-all test-aarch64 test-machines test-clients models models-check bench docs readme-figures lint format wheel wheels test-wheels cross release asan tsan gpu-check gpu-pack gpu-table clean distclean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## */\1\t/' | expand -t 16

# Always asked, never long: ninja compiles what changed, headers included.
build: $(ENV_TEST)  ## compile the binaries into fastrnn/
	@$(SAY) "compiling what changed"
	$(PY) setup.py -q build_ext --inplace

stream: $(ENV_TEST)  ## libfastrnn_stream alone, the runtime without Python, into fastrnn/lib/
	FASTRNN_ONLY=libfastrnn_stream $(PY) setup.py -q build_ext --inplace

PYTEST = $(PY) -m pytest tests -q $(if $(WORKERS),-n $(WORKERS) --dist loadfile)

test: build  ## lint and test
	@$(SAY) "ruff"
	$(PY) -m ruff check .
	@$(SAY) "the tests"
	$(PYTEST) $(ARGS)
ifeq ($(JUST_CPU),1)
	@echo '==> $(GATE)'
endif
	@$(TOOK)

# What is handed out or tested in full has every architecture, unless FASTRNN_CUDA_ARCHS says which.
test-all wheel: export FASTRNN_CUDA_ARCHS ?= all
test-all: $(ENV_DOCS) build  ## the same with every case (tsan and test-aarch64 among them), on a build with every CUDA architecture
	$(PY) -m ruff check .
	$(PYTEST) -rs --all $(ARGS)

test-machines: build  ## numeric, dtype and error tests as on other processors and with other numbers of threads
	$(PY) tests/machines.py $(ARGS)

# An environment and a CPU build of their own: the programs ask for a torch of theirs, and for much else.
# sb3-contrib's tests are in its source archive alone. The index's torchaudio, which speechbrain imports, is built
# for CUDA: its libraries do not load beside torch's CPU build, and without them it is a Python package that does.
$(CLIENTS)/.stamp: requirements/clients.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "test-clients needs Python 3.11 or newer")'
	@$(call MAKE_VENV,$(CLIENTS))
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
	@$(SAY) "the benchmark"
	$(PY) -m benchmarks.lab --quick $(ARGS)
	@$(TOOK)

# From the beginning each time (-E): of a page that Sphinx holds to be unchanged it does not tell a warning again, and
# pages are made of docstrings, of the changelog and of conf.py, too.
docs: $(ENV_DOCS) build  ## the documentation, build/docs/index.html; ARGS="-b linkcheck" asks every link of the web
	$(PY) -m sphinx -q -E -W --keep-going -d build/docs-trees docs build/docs $(ARGS)

readme-figures:  ## the README's figures and docs/performance.md's, from the committed results
	$(PYTHON) tools/figures.py $(ARGS)

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

wheels: $(ENV_RELEASE)  ## dist/*/fastrnn-*.whl for others' machines, for every CPython here, judged by auditwheel; ARGS="cpu" for some
	$(PY) tools/wheels.py $(ARGS)

test-wheels: $(ENV_RELEASE)  ## install and use them in fresh environments, with the oldest and the newest torch
	TORCH_CPU_INDEX=$(TORCH_CPU_INDEX) $(PY) tools/test_wheels.py $(ARGS)

cross: $(ENV_CROSS)  ## compile for macOS arm64 and Windows x86-64 and look at what came out: dist/macos, dist/windows, not run
	$(PY) tools/cross.py $(ARGS)

release: $(ENV_RELEASE)  ## everything that a release takes, but for handing it out: docs/releasing.md; ARGS=--partial without some wheels
	$(PY) tools/release.py check $(ARGS)
	$(PY) tools/release.py sdist
	$(PY) tools/wheels.py
	TORCH_CPU_INDEX=$(TORCH_CPU_INDEX) $(PY) tools/test_wheels.py --save
	$(PY) tools/release.py whole $(ARGS)

# CPython does not free everything at exit, hence no leak check. libstdc++ comes early so that the
# sanitizer finds the real __cxa_throw.
asan: $(ENV_TEST)  ## the CPU kernels under AddressSanitizer and UBSan
	FASTRNN_SANITIZE=1 $(PY) setup.py -q build --build-base build/asan --build-lib build/asan/lib
	PYTHONPATH=build/asan/lib ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so.6)" \
	$(PY) tests/sanitize.py $(ARGS)

tsan: build  ## the CPU kernels' threads under ThreadSanitizer, in a program without torch (part of test-all)
	$(PY) -m pytest tests/cpu/test_races.py tests/stream/test_stream_races.py -q -rs --all $(ARGS)

test-aarch64: build  ## the CPU kernels for Arm by a cross compiler and qemu, from Debian's packages (part of test-all)
	$(PY) -m pytest tests/cpu/test_aarch64.py -q -rs --all $(ARGS)

# On a machine of one's own. On one that is lent, without a network: gpu-pack here, then there, with gpu-pack/ taken
# along, python3 tests/gpu/check.py 1, and 2.
gpu-check: build  ## everything that needs a GPU, in two calls; CALL=1 or CALL=2 for one; ARGS=--dry-run without a GPU
	status=0; for call in $(CALL); do $(PY) tests/gpu/check.py $$call --in-place $(ARGS) || status=1; done; exit $$status

gpu-pack: $(ENV_TEST)  ## what a machine with a Hopper GPU needs for gpu-check, built here: gpu-pack/
	$(PY) tests/gpu/pack.py $(ARGS)

gpu-table:  ## the committed tables of the tiers, of gpu-check's results in RESULTS=gpu-check-out
	$(PY) tests/gpu/record.py $(RESULTS) $(ARGS)

clean:  ## remove what was built
	rm -rf build dist gpu-pack *.egg-info fastrnn/*.so fastrnn/lib/*.so fastrnn/lib/*.a

distclean: clean  ## and the environment
	rm -rf .venv .venv-cpu $(VENV) $(CLIENTS)
