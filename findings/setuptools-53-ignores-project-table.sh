#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# setuptools 53 takes pyproject.toml with a [project] table, ends with 0, and builds UNKNOWN 0.0.0.
#
# Software: setuptools 53.0.0, which EL 9 packages, with wheel 0.36.2, on Python 3.9.
# Input: a project whose name and version stand in [project] (PEP 621).
# Seen: UNKNOWN-0.0.0-py3-none-any.whl without any module, and no warning that names the table.
# So: what EL 9 shall build keeps its metadata in setup.cfg.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python=${PYTHON:-python3.9}
"$python" -m venv v
v/bin/pip install -q --disable-pip-version-check setuptools==53.0.0 wheel==0.36.2
mkdir -p project/src/example
touch project/src/example/__init__.py
cat >project/pyproject.toml <<'TOML'
[build-system]
requires = ["setuptools>=53"]
build-backend = "setuptools.build_meta"

[project]
name = "example"
version = "1.2.3"
TOML
(cd project && ../v/bin/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w ../wheels . 2>/dev/null)
cd wheels
echo ./*
[ -e UNKNOWN-0.0.0-py3-none-any.whl ]
