#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
#   ci/check.sh [PYTEST ARGUMENT …]
#   ci/check.sh --rest
#
# Lint, types, import rules and the tests that are not marked slow; with --rest what that
# leaves out: every environment of tox.ini, over installed wheels, with the slow tests. All
# steps run and say what they took; one that fails fails the check.

set -eu

cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
# Tests install packages, too; nothing is left outside this folder.
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$PWD/.cache/pip}
failed=()
times=()

step() {
    local name=$1 start=$SECONDS state=ok
    shift
    echo "== $name"
    "$@" </dev/null || {
        failed+=("$name")
        state=failed
    }
    times+=("$(printf '%-8s %5d s  %s' "$name" $((SECONDS - start)) "$state")")
}

# Interpreters that pyenv has, for tox.
find_interpreters() {
    local version
    command -v pyenv >/dev/null || return 0
    # Its commands for other versions than the chosen one only say so.
    for version in $(pyenv versions --bare) $(pyenv version-name | cut -d: -f1); do
        PATH=$(pyenv prefix "$version")/bin:$PATH
    done
}

if [ "${1:-}" = --rest ]; then
    find_interpreters
    # As many environments at a time as there are processors; each prints what failed in it.
    step tox "$bin/tox" run-parallel --parallel auto --parallel-no-spinner
else
    step lint "$bin/ruff" check --quiet .
    step types "$bin/mypy"
    step imports "$bin/lint-imports" --cache-dir .cache/import-linter
    step tests "$bin/python" -m pytest -q -n auto -m "not slow" "$@"
fi
if command -v shellcheck >/dev/null; then
    step shell shellcheck ci/*.sh .ci/run
fi

echo "== times"
printf '%s\n' "${times[@]}" "$(printf '%-8s %5d s' all "$SECONDS")"
if [ "${#failed[@]}" -gt 0 ]; then
    echo "check failed: ${failed[*]}" >&2
    exit 1
fi
