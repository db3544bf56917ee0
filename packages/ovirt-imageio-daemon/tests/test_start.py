# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Modules that a daemon loads before it serves: most of the time that its start takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imageio_testing.pki import Pki

# Costs milliseconds each, and no daemon needs it to begin with.
TOO_DEAR = frozenset(
    [
        "ast",
        "asyncio",
        "dataclasses",
        "datetime",
        "email",
        "encodings.idna",
        "hashlib",
        "http.client",
        "inspect",
        "pathlib",
        "prometheus_client",
        "requests",
        "shutil",
        "subprocess",
        "tempfile",
        "unittest",
        "urllib.parse",
        "urllib3",
        "uuid",
    ]
)

START = """
import sys
before = set(sys.modules)
from ovirt_imageio.daemon import cli
from ovirt_imageio.daemon.server import Server
Server.run = lambda server: print(*sorted(set(sys.modules) - before))
sys.exit(cli.main(["-c", sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def loaded(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """The modules that a start with all services but metrics loads."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "50-test.conf").write_text(
        f"[daemon]\nrun_dir = {folder}\ndrop_privileges = false\nsystemd_enable = false\n"
        f"[tls]\nkey_file = {pki.key_file}\ncert_file = {pki.cert_file}\n"
        "[remote]\nhost = 127.0.0.1\nport = 0\n"
        "[local]\nsocket =\n"
        f"[control]\nsocket = {folder}/sock\n"
        "[handlers]\nkeys = stderr\n[logger_root]\nlevel = INFO\nhandlers = stderr\n"
    )
    done = subprocess.run([sys.executable, "-c", START, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.split())


def test_start_loads_the_server(loaded: frozenset[str]) -> None:
    assert {"ssl", "ovirt_imageio.daemon.http.loop", "ovirt_imageio.daemon.handlers.images"} <= loaded


def test_start_loads_nothing_dear(loaded: frozenset[str]) -> None:
    assert loaded & TOO_DEAR == set()
