#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Branch coverage of ovirt-imageio-common by its own tests, and by the conformance suite over
# HTTP. Prints what was missed, and fails below the limits: all of the files that are pure, 95 %
# of the whole. Arguments go to pytest.

set -eu

cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
tests=(packages/ovirt-imageio-common/tests
    packages/ovirt-imageio-client/tests/system/test_http_conformance.py)

common='*/ovirt_imageio/common'
pure=("$common"/nbd/{wire,replies,handshake,extents,uri}.py
    "$common"/{extents,units,imagesapi,errors}.py)

rm -rf .cache/coverage
mkdir -p .cache/coverage
failed=0
"$bin/coverage" run --rcfile=pyproject.toml -m pytest -q -n auto "${tests[@]}" "$@" || failed=1
"$bin/coverage" combine --rcfile=pyproject.toml -q

echo "== pure files, 100 % expected"
"$bin/coverage" report --rcfile=pyproject.toml --fail-under=100 --include="$(
    IFS=,
    echo "${pure[*]}"
)" || failed=1
echo "== all of ovirt-imageio-common, 95 % expected"
"$bin/coverage" report --rcfile=pyproject.toml --fail-under=95 || failed=1
exit "$failed"
