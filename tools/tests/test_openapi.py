# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon does what its OpenAPI description says: a short form of `make fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import openapi

TOOLS = Path(openapi.__file__).parent.parent


@pytest.mark.system
@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
def test_daemon_does_what_the_description_says(tmp_path):
    if not openapi.program().exists():
        pytest.skip("not installed: schemathesis")
    done = subprocess.run(
        [sys.executable, "-m", "conformance.openapi", "--examples=5", "--seed=1", "--phases=coverage,fuzzing"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "not tried: " in done.stdout
