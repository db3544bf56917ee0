# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Strangers in numbers, at the sockets of a real daemon: nobody else may notice.

Nothing here measures time, but for the processor time of the daemon. That others are served
at all, with every wait bounded, is what is tested; how fast is in the report of `make hostile`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from bench.machine import usage
from imageio_testing.daemon import Daemon, public_command
from imageio_testing.hostile import CASES, Target, many_files, request
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.pki import Pki
from imageio_testing.qemu import needs_qemu
from ovirt_imageio.common.qemu.nbd import Server

MiB = 1 << 20
SIZE = 32 * MiB  # more than the kernel buffers for one connection
SMALL = 2 * MiB
CROWD = 1000
PATIENCE = 60.0
# Crowds whose clients work hard to hurt: a TLS handshake or megabytes for each.
CROWDS = {
    "stopped reading tls": 100,
    "vanished writing": 200,
    "unread answers": 200,
    "refused uploads": 200,
    "idle with a ticket": 20,
}

pytestmark = pytest.mark.system

USERS = [
    pytest.param(None, id="this-user"),
    pytest.param("nobody", id="nobody", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
]


class Victim:
    """A daemon with two images: one that is attacked, and one whose users shall not notice."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.pid = daemon.pid
        self.attacked = folder / "attacked"
        self.data = os.urandom(SMALL)
        self.image = folder / "image"
        for path, data in ((self.attacked, bytes(SIZE)), (self.image, self.data)):
            path.write_bytes(data)
            path.chmod(0o666)
        self.ticket = self.add_ticket(url=f"file://{self.image}", size=SMALL)
        self.path = f"/images/{self.ticket}"

    def add_ticket(self, **keys: Any) -> str:
        """Add a ticket by one send: a body that comes later may come too late for the daemon."""
        ticket_id = str(uuid.uuid4())
        body = json.dumps({"uuid": ticket_id, "ops": ["read", "write"], "timeout": 300, **keys}).encode()
        with HttpPeer.unix(self.daemon.control_socket) as peer:
            peer.send(request_head("PUT", f"/tickets/{ticket_id}", body=body) + body)
            assert peer.response().status == 200
        return ticket_id

    @contextlib.contextmanager
    def target(self, url: str | None = None, **keys: Any) -> Iterator[Target]:
        ticket_id = self.add_ticket(url=url or f"file://{self.attacked}", size=SIZE, **keys)
        yield Target.of(self.daemon, ticket_id, SIZE)
        self.daemon.remove_ticket(ticket_id)

    def assert_serves(self) -> None:
        """Transfer an image both ways, over both services, and ask for its ticket."""
        with HttpPeer.unix(self.daemon.local_socket) as local:
            assert local.request("PUT", self.path, body=self.data).status == 200
        with HttpPeer.tls("localhost", self.daemon.port, ca_file=self.daemon.ca_file) as remote:
            assert remote.request("GET", self.path).body == self.data
        assert self.daemon.ticket(self.ticket)["uuid"] == self.ticket

    def status(self) -> Any:
        with HttpPeer.unix(self.daemon.control_socket) as peer:
            return peer.request("GET", "/status").json()

    def connections(self) -> int:
        return int(self.status()["connections"]["open"])

    def wait_until_gone(self) -> None:
        """Each look is a request, which drives the loop."""
        deadline = time.monotonic() + PATIENCE
        while self.connections():
            assert time.monotonic() < deadline, f"{self.connections()} connections are left"


@contextlib.contextmanager
def victim(pki: Pki, user: str | None = None, files: int | None = None, **keys: object) -> Iterator[Victim]:
    """Start a daemon, as a user and with a limit of open files if told so."""
    command = public_command() if user else [sys.executable, "-m", "ovirt_imageio.daemon"]
    if command is None:
        pytest.skip("no interpreter that an unprivileged user may run")
    if files:
        command = ["prlimit", f"--nofile={files}:{files}", *command]
    # Not tmp_path: only its owner may enter that.
    with tempfile.TemporaryDirectory(prefix="io-", dir="/dev/shm") as name:
        os.chmod(name, 0o755)
        identity = pwd.getpwnam(user)[2:4] if user else None
        config = {"daemon": {"stop_timeout": 0, **keys}}
        if user:  # whose keys they shall be
            folder = shutil.copytree(os.path.dirname(pki.key_file), Path(name, "pki"))
            pki = Pki(*(str(folder / os.path.basename(path)) for path in astuple(pki)))
            folder.chmod(0o755)
            os.chown(pki.key_file, *pwd.getpwnam(user)[2:4])
        with Daemon(name, pki=pki, config=config, command=command, user=identity) as daemon:
            yield Victim(daemon, Path(name))


@pytest.fixture(scope="module", params=USERS)
def strong(request: pytest.FixtureRequest, pki: Pki) -> Iterator[Victim]:
    """A daemon with default limits."""
    with victim(pki, request.param) as found:
        yield found


@pytest.fixture(scope="module")
def impatient(pki: Pki) -> Iterator[Victim]:
    """A daemon whose deadlines come soon."""
    keys = {"handshake_timeout": 0.3, "head_timeout": 0.3, "body_timeout": 0.3, "inactivity_timeout": 1}
    with victim(pki, **keys) as found:
        yield found


def test_attackers_may_open_more_connections_than_the_tests_make() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > CROWD + 200, "raise the hard limit of open files"


@pytest.mark.parametrize("name", list(CASES))
def test_crowd_hurts_nobody_else(strong: Victim, name: str) -> None:
    before = usage(strong.pid)
    with strong.target() as target, CASES[name](target, CROWDS.get(name, CROWD)) as crowd:
        for _ in range(3):
            crowd.step()
            strong.assert_serves()
        during = usage(strong.pid)
        assert during.threads - before.threads <= 20, "8 that move data, for each ticket, and 2 for TLS"
        assert during.rss - before.rss < 200 * MiB
    strong.wait_until_gone()
    strong.assert_serves()
    assert usage(strong.pid).fds <= 40, "descriptors are left"


def test_upload_whose_client_left_is_not_begun(strong: Victim) -> None:
    """An upload that cannot be completed costs neither a worker nor a write."""
    before = strong.attacked.read_bytes()
    with strong.target() as target, target.unix() as sock:
        strong.daemon.send_signal(signal.SIGSTOP)  # so that it sees all of that at once
        try:
            sock.sendall(request("PUT", target.path, f"Content-Length: {SIZE}") + b"x" * 50_000)
            sock.shutdown(socket.SHUT_WR)
        finally:
            strong.daemon.send_signal(signal.SIGCONT)
        assert b" 400 " in drained(sock)[:20]
    assert strong.attacked.read_bytes() == before


# Every wait ends.


@pytest.mark.parametrize("name", ["silent", "stopped handshake"])
def test_handshake_deadline_ends_it(impatient: Victim, name: str) -> None:
    with impatient.target() as target, CASES[name](target, 20) as crowd:
        for sock in crowd.sockets:
            assert drained(sock)[:1] != b"H"


@pytest.mark.parametrize("name", ["dripped handshake", "dripped head"])
def test_dripping_does_not_move_the_deadline(impatient: Victim, name: str) -> None:
    with impatient.target() as target, CASES[name](target, 5) as crowd:
        while not all(map(has_ended, crowd.sockets)):
            crowd.step()
            impatient.connections()  # takes its time, or 10,000 bytes are dripped before the deadline
    if name == "dripped head":
        impatient.daemon.wait_for_log("408 the request did not come in time")


@pytest.mark.parametrize("name", ["stopped reading", "unread answers"])
def test_inactivity_timeout_ends_it(impatient: Victim, name: str) -> None:
    with impatient.target(inactivity_timeout=1) as target, CASES[name](target, 5) as crowd:
        crowd.step()
        impatient.wait_until_gone()


def test_inactivity_timeout_ends_who_is_idle_with_a_ticket(impatient: Victim) -> None:
    with impatient.target(inactivity_timeout=1) as target, target.unix() as sock:
        sock.sendall(request("GET", target.path, "Range: bytes=0-9"))
        assert drained(sock).endswith(b"\r\n\r\n" + bytes(10))


def test_client_that_takes_a_byte_now_and_then_is_left(impatient: Victim) -> None:
    """An answer of the loop, too large for the socket's buffer, taken drop by drop."""
    with impatient.target(inactivity_timeout=1) as target, target.unix() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(request("GET", target.path, "Range: bytes=0-65535") * 100)
        sock.setblocking(False)
        while impatient.connections():
            with contextlib.suppress(OSError):
                sock.recv(1)


@pytest.mark.parametrize("length", [1000, 1 << 20], ids=["in the loop", "by a worker"])
def test_ticket_that_allows_long_silence_allows_it_within_a_body(impatient: Victim, length: int) -> None:
    """Beside it a client of a usual ticket is left."""
    begun = request("PUT", "PATH", f"Content-Length: {length}") + bytes(length // 2)
    with impatient.target(inactivity_timeout=60) as slow, impatient.target(inactivity_timeout=1) as usual:
        with slow.unix() as waited_for, usual.unix() as left:
            waited_for.sendall(begun.replace(b"PATH", slow.path.encode()))
            left.sendall(begun.replace(b"PATH", usual.path.encode()))
            while not has_ended(left):
                impatient.connections()
            waited_for.sendall(bytes(length - length // 2))
            assert b" 200 " in waited_for.recv(20)


# Limits.


def test_places_are_for_those_with_a_ticket(pki: Pki) -> None:
    """Lingering, unread and silent strangers make room; an idle connection with a ticket stays."""
    with victim(pki, max_http_connections=20) as found, HttpPeer.unix(found.daemon.local_socket) as guest:
        assert guest.request("GET", found.path).body == found.data
        for name in ("silent", "stopped handshake", "dripped head", "unread answers", "refused uploads", "unsent body"):
            with found.target() as target, CASES[name](target, 50) as crowd:
                crowd.step()
                found.assert_serves()
                assert found.connections() <= 20
        assert guest.request("GET", found.path).body == found.data


def test_one_ticket_does_not_take_all_places(pki: Pki) -> None:
    with victim(pki, max_http_connections=100) as found:
        with found.target() as target, CASES["idle with a ticket"](target, 100):
            found.assert_serves()


def test_stalled_readers_of_one_ticket_leave_workers_for_others(pki: Pki) -> None:
    """Eight hold every backend of their ticket, the others wait; two more workers serve others."""
    with victim(pki, max_workers=10) as found:
        with found.target() as target, CASES["stopped reading"](target, 200) as crowd:
            for _ in range(3):
                crowd.step()
                found.assert_serves()


@needs_qemu
def test_stalled_readers_of_an_nbd_ticket_leave_workers_for_others(pki: Pki) -> None:
    """Those that find no connection to storage share one, but no more than eight at a time."""
    with victim(pki, max_workers=10) as found, Server(str(found.attacked), "raw", shared=1) as server:
        with found.target(server.url) as target, CASES["stopped reading"](target, 200) as crowd:
            for _ in range(2000):  # they give their workers back later: all may be missed at once
                crowd.step()
                if found.status()["workers"]["busy"] >= 8:
                    break
            found.assert_serves()


# Descriptors.


def test_strangers_leave_descriptors_for_storage(pki: Pki) -> None:
    """The process may open fewer files than connections are allowed."""
    with victim(pki, files=128) as found, HttpPeer.unix(found.daemon.local_socket) as guest:
        assert guest.request("GET", found.path).body == found.data
        with found.target() as target, CASES["silent"](target, 300):
            found.assert_serves()
            assert found.connections() <= 64
        log = found.daemon.wait_for_log("max_http_connections needs a higher limit of open files")
        assert "cannot accept" not in log
        assert guest.request("GET", found.path).body == found.data


def test_lack_of_descriptors_does_not_spin(pki: Pki) -> None:
    """No descriptor is left and nobody can be spared: the daemon waits, it does not try and try."""
    with victim(pki) as found, contextlib.ExitStack() as stack:
        stack.enter_context(many_files())
        guest = stack.enter_context(HttpPeer.unix(found.daemon.local_socket))
        assert guest.request("GET", found.path).body == found.data
        limits = resource.prlimit(found.pid, resource.RLIMIT_NOFILE)
        lowest = max(map(int, os.listdir(f"/proc/{found.pid}/fd"))) + 1
        resource.prlimit(found.pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
        late = [stack.enter_context(HttpPeer.unix(found.daemon.local_socket)) for _ in range(5)]
        for peer in late:
            peer.send(request("GET", found.path))
        before = usage(found.pid).cpu
        late[0].socket.settimeout(1)
        with contextlib.suppress(TimeoutError, socket.timeout):
            late[0].response()
        assert usage(found.pid).cpu - before < 0.5, "the loop spins"
        assert guest.request("GET", found.path).body == found.data
        assert found.daemon.wait_for_log("cannot accept connections").count("cannot accept connections") == 1
        resource.prlimit(found.pid, resource.RLIMIT_NOFILE, limits)
        assert late[1].response().body == found.data


def drained(sock: socket.socket) -> bytes:
    """Return all that comes until the daemon ends the connection."""
    sock.settimeout(20)
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            data += part
    return data


def has_ended(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True
