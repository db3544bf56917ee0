# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract of backends for images behind a daemon: by TLS, Unix socket and proxy.

And with each of the fast paths switched off: none of them may be what makes an answer right.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile

import pytest

from imageio_testing import conformance
from imageio_testing.conformance import Storage
from imageio_testing.daemon import Daemon
from ovirt_imageio.common.backends.http import HttpBackend
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

SECTOR = 512

pytestmark = pytest.mark.system


OFF = {
    "no splice": {"splice": False},
    "no loop nbd": {"loop_nbd": False},
    "no inline": {"inline_limit": 0},
    "nothing": {"splice": False, "loop_nbd": False, "inline_limit": 0, "quick_reads": False, "keep_memory": False},
}


@pytest.fixture(scope="module")
def without(tmp_path_factory, pki):
    """Daemons with some fast paths switched off, by what they do without."""
    with contextlib.ExitStack() as stack:
        yield {
            what: stack.enter_context(Daemon(tmp_path_factory.mktemp("without"), pki=pki, config={"daemon": config}))
            for what, config in OFF.items()
        }


class Tickets:
    """Tickets for one image, at a daemon or at a proxy in front of it."""

    def __init__(self, url, size, *, origin, proxy=None, unix=True):
        self.url = url
        self.size = size
        self.origin = origin
        self.proxy = proxy
        self.unix = unix
        self._urls = {}

    def open(self, mode="r+", sparse=False):
        if sparse not in self._urls:
            self._urls[sparse] = self._add(sparse)
        daemon, url = self._urls[sparse]
        return HttpBackend(url, mode=mode, cafile=daemon.ca_file, use_unix_socket=self.unix)

    def _add(self, sparse):
        ticket = self.origin.add_ticket(self.url, size=self.size, sparse=sparse)
        url = f"{self.origin.url}/images/{ticket}"
        if self.proxy is None:
            return self.origin, url
        ticket = self.proxy.add_ticket(url, size=self.size, sparse=sparse)
        return self.proxy, f"{self.proxy.url}/images/{ticket}"


@contextlib.contextmanager
def file_image(size):
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as f:
        f.truncate(size)
        yield f"file://{f.name}"


@contextlib.contextmanager
def nbd_image(size):
    if size % SECTOR:
        # The test skips sizes that the unit does not divide, and opens nothing.
        yield "nbd:unix:/nowhere"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = os.path.join(folder, "disk.qcow2")
        img.create(path, "qcow2", size=size)
        with Server(path, "qcow2") as server:
            yield server.url


ROWS = [
    f"{storage}-{way}" for storage, way in itertools.product(("file", "nbd"), ("unix", "tls", "proxy", "proxy-tls"))
]


ROWS += [f"nbd-{what}" for what in ("no splice", "no loop nbd", "no inline")] + ["file-nothing"]


@pytest.fixture(params=ROWS)
def make(request, origin, proxy, without):
    """Makes the storage of a row."""
    storage, way = request.param.split("-", 1)
    if way in OFF:
        origin = without[way]
    image, unit = (file_image, 1) if storage == "file" else (nbd_image, SECTOR)
    with contextlib.ExitStack() as stack:

        def make(size):
            url = stack.enter_context(image(size))
            tickets = Tickets(
                url,
                size,
                origin=origin,
                proxy=proxy if way.startswith("proxy") else None,
                unix=not way.endswith("tls"),
            )
            return Storage(tickets.open, size, unit=unit, writers=1 if storage == "file" else 8)

        yield make


def test_ways_are_what_they_are_called(make, request):
    with make(4096).open() as backend:
        assert backend.unix_socket_used is not request.node.callspec.params["make"].endswith("tls")


class TestHttp(conformance.Suite):
    """The contract, for each row."""
