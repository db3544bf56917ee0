#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes the virtual environment .venv of this checkout: the three packages, editable,
# and the tools of ci/requirements-dev.txt. It is made anew when one of its inputs
# changed, so that nothing removed from them stays behind; else this is done at once.
# Names of system software to have beside it may follow (see ci/packages.sh); what
# cannot be installed is named, and goes missing.

set -eu

cd "$(dirname "$0")/.."
venv=.venv
packages=(packages/ovirt-imageio-{common,daemon,client})

say() { echo "bootstrap: $*" >&2; }

inputs() {
    echo "$python"
    "$python" -VV
    pwd
    sha256sum ci/bootstrap.sh ci/requirements-*.txt \
        "${packages[@]/%//setup.cfg}" "${packages[@]/%//pyproject.toml}" \
        packages/*/src/ovirt_imageio/*/VERSION
}

ci/packages.sh python "$@" || say "going on with what is here"
if ! python=$(ci/find-python.sh); then
    say "no Python 3.9 or newer with the modules venv and ensurepip was found"
    exit 1
fi

stamp=$(inputs | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

say "making $venv with $("$python" -V) ($python)"
rm -rf "$venv"
"$python" -m venv "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Nothing is left outside this folder.
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$PWD/.cache/pip}
# Editable installs of projects without setup.py came with pip 21.3.
"$venv/bin/python" -m pip install --quiet "pip>=21.3"
"$venv/bin/python" -m pip install --quiet \
    -r ci/requirements-dev.txt "${packages[@]/#/--editable=}"
echo "$stamp" >"$venv/stamp"
