# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Each target does its own set-up, on a fresh machine too. NO_INSTALL=1 keeps it from
# installing system packages, PYTHON=… chooses the interpreter. BENCH=… are options of
# `make bench`, see `make bench BENCH=--help`; SOAK=…, MUTATION=… and
# HOSTILE=… those of `make soak`, `make mutation` and `make hostile`; FAST_PATHS=… of `make fast-paths`,
# SIMULATE=… of `make simulate`.

# System software that tests use, as ci/packages.sh calls it. What is missing and cannot be
# installed is named, and the tests that need it are skipped.
SDK_TOOLS = gcc headers libxml2 libcurl
TEST_TOOLS = qemu nbdkit curl openssl e2fsprogs xfsprogs $(SDK_TOOLS)
ALL_TOOLS = $(TEST_TOOLS) chromium rpm createrepo dnf rpmlint shellcheck systemd prometheus

# The oVirt engine SDK has a part in C: what needs it goes without where it cannot be built.
ENGINE_SDK = PYTHONPATH=tools .venv/bin/python -m imageio_testing.enginesdk || true

# Examples of `make fuzz`: for each test of heads and bodies, and for each operation of the API.
FUZZ_HEADS = 15000
FUZZ_REQUESTS = 1000

# What `make bench` runs once more, with the oldest Python and the limits of an unprivileged user.
BENCH_OLDEST = --python oldest --unprivileged --minutes 5 --table docs/performance/oldest.md \
	'library-*load' 'library-*server' 'library-*qcow2' 'library-*disk' '4k-*' '64k-*'

# Targets are commands, no files.
.PHONY: help $(MAKECMDGOALS)

help:
	@echo 'make check      lint, prose, types, import rules and tests; the first kind of failure ends it'
	@echo 'make test T=…   the tests named, e.g. T=packages/ovirt-imageio-common/tests/nbd'
	@echo 'make lint       lint, shell, prose, types and import rules, without tests'
	@echo 'make check-all  make check, every environment of tox.ini, packages installed and used'
	@echo 'make fuzz       50,000 generated requests, and heads that h11 judges too'
	@echo 'make conformance-peer   check 2.5.1 too, and compare in docs/reference/conformance.md'
	@echo 'make fast-paths  conformance, faults and durability without each of the fast paths'
	@echo 'make coverage   what the tests of ovirt-imageio-common leave out'
	@echo 'make soak       kill -9 daemons and storage a thousand times, and look for lost bytes'
	@echo 'make simulate   transfers over simulated time, server and disk: 100,000 seeds, planted bugs'
	@echo 'make mutation   break the NBD protocol in small ways, and look which the tests notice'
	@echo 'make hostile    a thousand hostile clients of each kind, and what they cost'
	@echo 'make demo       move a real disk image, and show it'
	@echo 'make engine     run an engine, a daemon and a disk to try things on'
	@echo 'make bench      measure beside 2.5 and nbdcopy; ROWS="NAME ..." selects'
	@echo 'make docs       the documentation, in .cache/docs'
	@echo 'make dist       sdists and wheels, in dist'
	@echo 'make rpm        RPMs, in dist/rpm'
	@echo 'make release    a new version of one package: PACKAGE=common VERSION=3.0.1'
	@echo 'make format     format the sources'
	@echo 'make clean      remove what these commands made'

check:
	@ci/bootstrap.sh $(TEST_TOOLS)
	@$(ENGINE_SDK)
	@ci/check.sh

test:
	@ci/bootstrap.sh
	@ci/check.sh --test $(T)

lint:
	@ci/bootstrap.sh
	@ci/check.sh --style

check-all: check
	@ci/bootstrap.sh $(ALL_TOOLS)
	@ci/check.sh --rest

coverage:
	@ci/bootstrap.sh $(TEST_TOOLS)
	@ci/coverage.sh

soak:
	@ci/bootstrap.sh qemu nbdkit
	@PYTHONPATH=tools .venv/bin/python -m soak --report docs/performance/soak.md $(SOAK)

simulate:
	@ci/bootstrap.sh
	@PYTHONPATH=tools .venv/bin/python -m simulation --bugs --report docs/performance/simulation.md $(SIMULATE)

fuzz:
	@ci/bootstrap.sh $(TEST_TOOLS)
	@IMAGEIO_FUZZ_EXAMPLES=$(FUZZ_HEADS) .venv/bin/python -m pytest -q -n auto --timeout 3600 \
		packages/ovirt-imageio-daemon/tests/http/test_differential.py
	@cd tools && ../.venv/bin/python -m conformance.openapi --examples $(FUZZ_REQUESTS)

fast-paths:
	@ci/bootstrap.sh $(TEST_TOOLS)
	@PYTHONPATH=tools .venv/bin/python -m fastpaths $(FAST_PATHS)

conformance-peer:
	@ci/bootstrap.sh $(TEST_TOOLS)
	@cd tools && ../.venv/bin/python -m conformance --table --tb=no -n auto

mutation:
	@ci/bootstrap.sh
	@PYTHONPATH=tools .venv/bin/python -m mutation $(MUTATION)

hostile:
	@ci/bootstrap.sh
	@PYTHONPATH=tools .venv/bin/python -m hostile --report docs/performance/hostile.md $(HOSTILE)

demo:
	@ci/bootstrap.sh qemu e2fsprogs
	@PYTHONPATH=tools .venv/bin/python -m demo

engine:
	@ci/bootstrap.sh qemu $(SDK_TOOLS)
	@$(ENGINE_SDK)
	@PYTHONPATH=tools .venv/bin/python -m fakeengine $(ENGINE)

bench:
	@ci/bootstrap.sh qemu nbdkit nbdcopy gcc headers
	@PYTHONPATH=tools .venv/bin/python -m bench $(if $(ROWS),,--out docs/performance) $(BENCH) $(ROWS)
	@$(if $(ROWS)$(BENCH),,PYTHONPATH=tools .venv/bin/python -m bench $(BENCH_OLDEST))
	@$(if $(ROWS)$(BENCH),,PYTHONPATH=tools .venv/bin/python -m bench.tuning --out docs/performance/tuning.md)

docs:
	@ci/bootstrap.sh
	@.venv/bin/tox run -q -e docs

dist:
	@ci/bootstrap.sh
	@.venv/bin/tox run -q -e dist

rpm:
	@ci/bootstrap.sh rpm
	@.venv/bin/tox run -q -e dist,rpm

release:
	@ci/bootstrap.sh rpm
	@.venv/bin/python tools/release.py $(PACKAGE) $(VERSION)

format:
	@ci/bootstrap.sh
	@.venv/bin/ruff check --fix --select I .
	@.venv/bin/ruff format .

clean:
	rm -rf .venv .cache .tox .hypothesis .demo .bench dist
