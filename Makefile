# SPDX-License-Identifier: Apache-2.0
# Everything that a user, a developer and CI run; `make help` lists it.
#
# The environment is .venv in the checkout, in two steps: what vmq runs with (enough for the demo), then what its
# tests need. Both come from locks with hashes, wheels only, under the user's own pip configuration. Paths are
# relative throughout, so a checkout may lie in a folder with spaces; one that was moved or copied is set up anew.

SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-unit test-vm test-long check bench bench-quick lock man clean \
	debian-packages root-or-say root-tests hostile-tests bench-tests

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# A test that needs none of these needs neither root nor QEMU. The rules of the tree are make check's.
RULES := tests/test_architecture.py tests/test_conftest.py
PLAIN := -m "not (root or qemu or dpdk or slow or perf)"
UNIT := $(PLAIN) $(RULES:%=--ignore=%) --ignore=tests/hostile --ignore=tests/bench
# What runs kernels, or is worth a coverage figure; the rest of Python behaves alike in every mode.
KERNELS := tests/dataplane tests/guest tests/uplink tests/test_jit.py
COVERED := $(KERNELS) tests/abi tests/vhost tests/engine tests/test_publisher.py tests/test_worker.py
REAL := -m "(root or qemu or dpdk) and not (slow or perf)"

# The first Python that is new enough; override with make PYTHON=…
NEW_ENOUGH := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then echo "$$python"; break; fi; done)

# $(call retry,COMMAND): registries and archives have bad minutes.
retry = for pause in 5 15 0; do \
	$(1) && break; test $$pause -gt 0 || { echo "make: gave up after three tries" >&2; exit 1; }; \
	echo "make: trying again in $$pause s" >&2; sleep $$pause; done
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --retries 5 --require-hashes --only-binary :all:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1:\2/p' Makefile | \
		while IFS=: read -r name text; do printf 'make %-12s %s\n' "$$name" "$$text"; done

demo: .venv/run.stamp  ## the whole thing on this machine, without root, NIC or QEMU (ARGS=… for vmq demo)
	$(BIN)/vmq demo $(ARGS)

test: check test-unit hostile-tests bench-tests root-tests  ## everything CI runs; as root it installs packages.debian and boots guests too

# On two processors: the released code on one, the two slower readings of it on the other. What the first one says is
# shown when it is over. It begins with the kernels: engines that tests start as processes then need not compile them.
test-unit: .venv/dev.stamp  ## unit tests: interpreted with coverage, compiled with bounds checks, as released
	@mkdir -p build
	@{ $(BIN)/python -c 'from vmq import demo; demo.compile_everything()' && $(PYTEST) $(UNIT) $(ARGS); } >build/released.log 2>&1 & \
	released=$$!; trap 'kill $$released 2>/dev/null; exit 1' INT TERM; failed=0; \
	echo "== interpreted: logic, narrow arithmetic, coverage"; \
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m coverage run -m pytest $(UNIT) $(ARGS) $(COVERED) && \
	$(BIN)/python -m coverage report && \
	echo "== compiled, indices checked" && NUMBA_BOUNDSCHECK=1 $(PYTEST) $(UNIT) $(ARGS) $(KERNELS) || failed=1; \
	wait $$released || failed=1; echo "== compiled, as released"; cat build/released.log; exit $$failed

# Hostile guests and front-ends against a real engine process: once with indices checked, once as released.
hostile-tests: .venv/dev.stamp
	NUMBA_BOUNDSCHECK=1 $(PYTEST) $(PLAIN) $(ARGS) tests/hostile
	$(PYTEST) $(PLAIN) $(ARGS) tests/hostile

# The benchmark's own: they measure nothing, and compile more than all units.
bench-tests: .venv/dev.stamp
	$(PYTEST) $(PLAIN) $(ARGS) tests/bench

test-vm: root-or-say .venv/dev.stamp debian-packages  ## as root: namespaces, TAPs, QEMU guests, dpdk-testpmd
	$(BIN)/python -m tests.vm.lab.image
	$(PYTEST) $(REAL) $(ARGS)

test-long: root-or-say .venv/dev.stamp debian-packages  ## as root: the long matrices
	$(PYTEST) -m "slow and not perf" $(ARGS)

check: .venv/dev.stamp  ## format, lint, types, layers and the other rules of the architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q $(RULES)

bench: root-or-say .venv/dev.stamp debian-packages  ## as root: every figure beside its peers (ROW=… for some, FRESH=1 anew)
	$(BIN)/python -m bench $(if $(FRESH),--fresh) $(ROW)

bench-quick: .venv/dev.stamp  ## the figures that need no peers, in three minutes
	$(BIN)/python -m bench --quick $(ROW)

# uv resolves for every Python at once. Releases younger than a week wait: most bad ones are withdrawn by then.
UV := uv==0.13.9
COMPILE = "$$venv/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--exclude-newer "7 days" --no-emit-index-url --no-emit-find-links --only-binary :all: \
	--cache-dir "$$venv/cache" --custom-compile-command "make lock"
lock: .venv/run.stamp  ## resolve requirements/*.in anew
	venv=$$(mktemp -d) && trap 'rm -rf "$$venv"' EXIT && $(BIN)/python -m venv "$$venv" && \
	"$$venv/bin/python" -m pip install --quiet --only-binary :all: $(UV) && cd requirements && \
	$(COMPILE) run.in -o run.lock && $(COMPILE) dev.in -o dev.lock && \
	$(COMPILE) --no-binary argparse-manpage man.in -o man.lock

man: .venv/man.stamp  ## manual page and shell completions, in build/
	@mkdir -p build/man build/completions
	$(BIN)/argparse-manpage --module vmq.cli --function build_parser --project-name vmq --prog vmq \
		--description "$$(sed -n 's/^description = "\(.*\)"/\1/p' pyproject.toml)" \
		--manual-section 8 --output build/man/vmq.8
	for shell in bash zsh fish; do \
		$(BIN)/vmq completion $$shell > build/completions/vmq.$$shell || exit 1; \
	done

clean:  ## remove the environment and everything built (downloads of the VM tests stay in .cache)
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find vmq tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the targets above stand on

# Set up anew what is not this checkout's: a copied .venv would run the code of the place it came from.
OURS := $(shell test -x $(BIN)/python && cat .venv/where 2>/dev/null)
ifneq ($(OURS),$(CURDIR))
.PHONY: .venv/run.stamp
endif

.venv/run.stamp: requirements/run.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: vmq needs Python 3.11 to 3.14 (Debian: apt-get install python3 python3-venv)" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "make: $(PYTHON) is not Python 3.11 to 3.14" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { python="$(PYTHON)"; \
		echo "make: $$python has no venv module (Debian: apt-get install $${python##*/}-venv)" >&2; exit 1; }
	@test "$(OURS)" = "$(CURDIR)" || { echo "Setting up .venv with $(PYTHON) (once; downloads 100 MB, keeps 300)"; \
		"$(PYTHON)" -m venv --clear .venv && printf '%s' "$(CURDIR)" > .venv/where; }
	@$(call retry,$(INSTALL) -r requirements/run.lock)
	@$(PIP) install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

.venv/dev.stamp: requirements/dev.lock .venv/run.stamp
	@echo "Adding the tools of tests and checks to .venv"
	@$(call retry,$(INSTALL) -r requirements/dev.lock)
	@touch $@

.venv/man.stamp: requirements/man.lock .venv/dev.stamp
	@$(call retry,$(PIP) install --quiet --retries 5 --require-hashes --no-binary argparse-manpage --no-build-isolation \
		-r requirements/man.lock)
	@touch $@

ROOT := test "$$(id -u)" = 0
NOT_ROOT := needs root (namespaces, TUN, QEMU guests on TAPs, Debian packages): sudo make

root-or-say:
	@$(ROOT) || { echo "make: $(firstword $(MAKECMDGOALS)) $(NOT_ROOT) $(firstword $(MAKECMDGOALS))" >&2; exit 1; }

root-tests:
	@if $(ROOT); then $(MAKE) --no-print-directory test-vm; else \
		echo "Not run: tests marked root, qemu and dpdk. make test $(NOT_ROOT) test"; fi

APT := DEBIAN_FRONTEND=noninteractive apt-get -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120
debian-packages:
	@command -v dpkg-query > /dev/null || { echo "Not Debian: nothing installed; packages.debian lists what is needed"; exit 0; }; \
	wanted=$$(sed 's/#.*//' packages.debian); \
	present=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $$wanted 2>/dev/null | sed -n 's/^installed //p'); \
	missing=$$(for name in $$wanted; do echo "$$present" | grep -qx "$$name" || echo "$$name"; done | tr '\n' ' '); \
	test -n "$$missing" || exit 0; \
	echo "Installing Debian packages: $$missing"; \
	$(call retry,$(APT) update -q && $(APT) install -q --no-install-recommends $$missing)
