# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP contract without any of the fast paths: none is what makes an answer right.

This tries reading, writing and zeroing only. `make fast-paths` tries every rule, every fault and every promise
of durability, without each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import conformance
from imageio_testing.settings import SWITCHES

TOOLS = Path(conformance.__path__[0]).parent
SHORT = "local and nbd and (test_get or test_put or test_patch)"

pytestmark = pytest.mark.system


def check(settings, *args):
    """Run the suite against a daemon of its own with these settings."""
    done = subprocess.run(
        [sys.executable, "-m", "conformance", *(f"--set={setting}" for setting in settings), *args],
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_data_moves_without_any_fast_path():
    check(SWITCHES.values(), "-k", SHORT)
