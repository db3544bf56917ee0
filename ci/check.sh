#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Lint, types, import rules and tests. All of them run; one that fails fails the check.

set -eu

cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
failed=()

step() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

step lint "$bin/ruff" check --quiet .
step types "$bin/mypy"
step imports "$bin/lint-imports" --cache-dir .cache/import-linter
if command -v shellcheck >/dev/null; then
    step shell shellcheck ci/*.sh .ci/run
fi
step tests "$bin/python" -m pytest -q -n auto "$@"

if [ "${#failed[@]}" -gt 0 ]; then
    echo "check failed: ${failed[*]}" >&2
    exit 1
fi
