#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
#   ci/check.sh [PYTEST ARGUMENT …]
#   ci/check.sh --rest
#   ci/check.sh --style
#   ci/check.sh --test PYTEST ARGUMENT …
#
# Lint, prose, types, import rules and the tests that are not marked slow, in this order. With --rest:
# every environment of tox.ini, over installed wheels, with the slow tests. With --style: no
# tests. With --test: only the tests that are named. The first kind of failure ends the check,
# which then says what each step took. Temporary files go into one folder, which is removed at
# the end.

set -eu

cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
# Tests install packages, too; nothing is left outside this folder.
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$PWD/.cache/pip}
times=()

# The name is short: paths of Unix sockets end at 107 bytes.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/c.XXXX")
export TMPDIR
# Some tests start programs as another user.
chmod 1777 "$TMPDIR"
trap 'rm -rf "$TMPDIR"' EXIT

step() {
    local name=$1 start=$SECONDS state=ok
    shift
    echo "== $name"
    "$@" </dev/null || state=failed
    times+=("$(printf '%-8s %5d s  %s' "$name" $((SECONDS - start)) "$state")")
    [ "$state" = ok ] || finish "$name"
}

# Says what each step took, and ends: with 1 if a step is named that failed.
finish() {
    echo "== times"
    printf '%s\n' "${times[@]}" "$(printf '%-8s %5d s' all "$SECONDS")"
    [ $# -eq 0 ] || echo "check failed: $1" >&2
    exit $#
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

check_style() {
    step lint "$bin/ruff" check --quiet .
    if command -v shellcheck >/dev/null; then
        local findings
        shopt -s nullglob
        findings=(findings/*.sh)
        step shell shellcheck ci/*.sh .ci/run "${findings[@]}"
    fi
    PYTHONPATH=tools step prose "$bin/python" -m prose
    step types "$bin/mypy"
    step imports "$bin/lint-imports" --cache-dir .cache/import-linter
}

case "${1:-}" in
    --rest)
        find_interpreters
        # As many environments at a time as there are processors; each prints what failed in it.
        step tox "$bin/tox" run-parallel --parallel auto --parallel-no-spinner
        ;;
    --style) check_style ;;
    --test)
        shift
        step tests "$bin/python" -m pytest -q --basetemp="$TMPDIR/t" "$@"
        ;;
    *)
        check_style
        step tests "$bin/python" -m pytest -q -n auto --basetemp="$TMPDIR/t" -m "not slow" "$@"
        ;;
esac
finish
