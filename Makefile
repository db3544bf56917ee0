# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Each target does its own set-up, on a fresh machine too. NO_INSTALL=1 keeps it from
# installing system packages, PYTHON=… chooses the interpreter.

.PHONY: help check demo format clean

help:
	@echo 'make check   tests, lint, types and import rules'
	@echo 'make demo    move a real disk image, and show it'
	@echo 'make format  format the sources'
	@echo 'make clean   remove what these commands made'

check:
	@ci/bootstrap.sh qemu nbdkit
	@ci/check.sh

demo:
	@ci/bootstrap.sh qemu e2fsprogs
	@.venv/bin/python tools/demo.py

format:
	@ci/bootstrap.sh
	@.venv/bin/ruff check --fix --select I .
	@.venv/bin/ruff format .

clean:
	rm -rf .venv .cache .tox .hypothesis .demo .bench
