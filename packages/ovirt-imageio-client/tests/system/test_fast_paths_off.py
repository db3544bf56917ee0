# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP contract with each of the fast paths switched off: none is what makes an answer right.

The short form tries reading, writing and zeroing without any of them. The long one tries every rule
of the conformance suite, without each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import conformance

OFF = {
    "splice": ["daemon.splice=no"],
    "loop nbd": ["daemon.loop_nbd=no"],
    "inline": ["daemon.inline_limit=0"],
    "quick reads": ["daemon.quick_reads=no"],
}
ALL_OFF = [setting for settings in OFF.values() for setting in settings]
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
    check(ALL_OFF, "-k", SHORT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("off", OFF)
def test_every_rule_is_kept_without(off):
    check(OFF[off])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_rule_is_kept_without_any_fast_path():
    check(ALL_OFF)
