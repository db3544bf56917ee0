#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Prints the path of the newest Python, 3.9 or later, that can make virtual
# environments with pip. Ends with 1 when there is none.
# PYTHON=/path/to/python is taken instead of looking, and held to the same.

set -eu

suits() {
    "$1" - <<'PYTHON' 2>/dev/null
import sys
assert sys.version_info >= (3, 9)
import ensurepip, venv  # Debian ships them apart
print(sys.executable)
PYTHON
}

for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3.10 python3.9 python3}; do
    # A name on the path may still be a launcher that finds no interpreter.
    if suits "$candidate"; then
        exit 0
    fi
done
exit 1
