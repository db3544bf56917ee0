# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The client without qemu, without the daemon's package, without a compiler."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys

import pytest

from imageio_testing.imageserver import Image, ScriptedServer
from ovirt_imageio.common.units import MiB

SCRIPT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("ovirt_imageio.daemon", "ovirt_imageio.admin", "ovirtsdk4")):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from ovirt_imageio import client
source, url, copy = sys.argv[1:]
client.upload(source, url, None, verify=True)
client.download(url, copy, None, fmt="raw", verify=True)
print(client.checksum(source) == client.checksum(copy))
"""


def test_raw_images_move_by_url_alone(tmp_path):
    data = random.Random(1).randbytes(3 * MiB + 512)
    (tmp_path / "source").write_bytes(data)
    image = Image(bytearray(len(data)))
    with ScriptedServer(image) as server:
        said = subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path / "source", server.url, tmp_path / "copy"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env={**os.environ, "PATH": "/no/such/folder"},
        ).stdout
    assert said == "True\n"
    assert image.data == (tmp_path / "copy").read_bytes() == data


@pytest.mark.skipif(os.environ.get("TOX_ENV_NAME") != "client-only", reason="not the environment client-only of tox")
def test_environment_holds_no_daemon():
    assert importlib.util.find_spec("ovirt_imageio.daemon") is None
    assert importlib.util.find_spec("ovirt_imageio.admin") is None
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)
