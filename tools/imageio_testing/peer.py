# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The last release of the existing ovirt-imageio 2.x, in an environment of its own.

It is installed from PyPI once a checkout, into .cache/peer, which takes a C compiler and
the headers of Python. Where that fails its tests are skipped, naming what was missing.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from pathlib import Path

import pytest

from bench.servers import BenchError, Implementation
from bench.setup import make_peer

CACHE = Path(__file__).resolve().parents[2] / ".cache"

_JOB_TIMEOUT = 300.0

_CLIENT = """
import json, sys
from ovirt_imageio import client
call, arguments, options = json.loads(sys.argv[1])
getattr(client, call)(*arguments, **options)
"""


def environment() -> Implementation:
    """Return the environment of 2.5.1, made if there is none; skip the test if it cannot be."""
    CACHE.mkdir(exist_ok=True)
    failed = CACHE / "peer-failed"
    with open(CACHE / "peer.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if failed.exists():
            pytest.skip(failed.read_text())
        try:
            return make_peer(CACHE / "peer")
        except (BenchError, subprocess.SubprocessError, OSError) as e:
            # Tried once a checkout: every process of the tests would wait for it.
            failed.write_text(f"no environment with ovirt-imageio 2.5.1: {e}; remove {failed} to try again")
            pytest.skip(failed.read_text())


def call(implementation: Implementation, name: str, *arguments: str, **options: object) -> None:
    """Call a function of the 2.5.1 client library in its own interpreter.

    Raises:
        AssertionError: It failed; its traceback is the text.
    """
    command = [implementation.python, "-c", _CLIENT, json.dumps([name, arguments, options])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_JOB_TIMEOUT)
    assert done.returncode == 0, done.stdout
