# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tickets that are removed while storage works for them: a real daemon, and storage that answers when told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import ConnectionEnded, HttpPeer, Response, request_head
from imageio_testing.nbdpeer import Asked, Peer, Talk
from ovirt_imageio.common.nbd import wire

SIZE = 64 * 1024**3
MIB = 1024**2
PATIENCE = 20.0

# Requests that were on their way when the ticket was cancelled: two connections, one in flight on
# each and one in its socket. A whole image would need thousands.
IN_FLIGHT = 4

pytestmark = pytest.mark.system


class Storage:
    """An endless image that answers some requests of one command, and holds the next ones.

    Args:
        command: which one.
        free: how many are answered at once.
    """

    def __init__(self, command: int, *, free: int = 0) -> None:
        self.held = threading.Event()
        self.asked = 0
        self.answered_bytes = 0
        self._command = command
        self._free = threading.Semaphore(free)
        self._open = threading.Event()
        self._lock = threading.Lock()

    def release(self) -> None:
        """Answer everything from now on."""
        self._open.set()
        for _ in range(64):
            self._free.release()

    def script(self, talk: Talk) -> None:
        """Play the server for one connection."""
        talk.negotiate(SIZE, structured=False)
        while True:
            asked = talk.request()
            if asked.command == self._command:
                self._hold(asked)
            talk.simple(asked, bytes(asked.length) if asked.command == wire.CMD_READ else b"")

    def _hold(self, asked: Asked) -> None:
        with self._lock:
            self.asked += 1
        if not self._open.is_set() and not self._free.acquire(blocking=False):
            self.held.set()
            assert self._free.acquire(timeout=PATIENCE), "the test never releases what is held"
        with self._lock:
            self.answered_bytes += asked.length


class Status(Storage):
    """An image that is all zero, of which each block status tells little."""

    def script(self, talk: Talk) -> None:
        """Play the server for one connection."""
        talk.negotiate(SIZE, contexts={wire.BASE_ALLOCATION: 1})
        while True:
            asked = talk.expect(wire.CMD_BLOCK_STATUS)
            self._hold(asked)
            talk.status(asked, 1, [(MIB, wire.STATE_ZERO)], done=True)


class Case:
    """A ticket for a storage, at a daemon."""

    def __init__(self, daemon: Daemon, peer: Peer, storage: Storage) -> None:
        self.daemon = daemon
        self.storage = storage
        self.ticket = daemon.add_ticket(f"nbd:unix:{peer.address.path}", size=SIZE, ops=["write"])
        self.path = f"/images/{self.ticket}"

    def control(self, method: str, path: str | None = None) -> Response:
        with HttpPeer.unix(self.daemon.control_socket) as control:
            control.socket.settimeout(PATIENCE * 2)
            return control.request(method, path or f"/tickets/{self.ticket}")

    def info(self) -> dict[str, Any]:
        document: dict[str, Any] = self.control("GET").json()
        return document

    def wait_until(self, **state: Any) -> dict[str, Any]:
        """Ask for the ticket until it is in a state. Each question lets the daemon go on."""
        for _ in range(5000):
            info = self.info()
            if all(info[key] == value for key, value in state.items()):
                return info
        raise AssertionError(f"the ticket never gets {state}: {info}")


@contextlib.contextmanager
def running(daemon: Daemon, storage: Storage) -> Iterator[Case]:
    with Peer(storage.script) as peer:
        case = Case(daemon, peer, storage)
        try:
            yield case
        finally:
            storage.release()
            case.control("DELETE")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config = {"control": {"remove_timeout": 30}}
    with Daemon(tmp_path_factory.mktemp("daemon"), tls=False, config=config) as daemon:
        yield daemon


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def start(case: Case, client: HttpPeer, pool: ThreadPoolExecutor, kind: str) -> Future[Response]:
    """Send a request and wait until storage holds it; the future is the response, read to its end."""
    if kind == "put":
        head = request_head("PUT", case.path, headers=[("Content-Length", str(SIZE))])
        future = pool.submit(send_body, client, head)
    elif kind in ("zero", "flush"):
        document = {"op": kind, "offset": 0, "size": SIZE} if kind == "zero" else {"op": kind}
        client.send(request_head("PATCH", case.path, body=json.dumps(document).encode()))
        client.send(json.dumps(document).encode())
        future = pool.submit(client.response)
    else:
        client.send(request_head("GET", case.path if kind == "get" else f"{case.path}/{kind}"))
        future = pool.submit(client.response)
    assert case.storage.held.wait(PATIENCE), "storage is not asked"
    return future


CONNECT = {
    "local": lambda daemon: HttpPeer.unix(daemon.local_socket),
    "remote": lambda daemon: HttpPeer.tcp("localhost", daemon.port),
}


def send_body(client: HttpPeer, head: bytes) -> Response:
    client.send(head)
    try:
        while True:
            client.send(bytes(MIB))
    except OSError:
        return client.response()


KINDS = {
    "get": wire.CMD_READ,
    "put": wire.CMD_WRITE,
    "zero": wire.CMD_WRITE_ZEROES,
    "checksum": wire.CMD_READ,
    "flush": wire.CMD_FLUSH,
}


@pytest.mark.parametrize("kind", KINDS)
def test_operation_ends_within_a_chunk(daemon: Daemon, pool: ThreadPoolExecutor, kind: str) -> None:
    storage = Storage(KINDS[kind], free=0 if kind == "flush" else 1)
    with running(daemon, storage) as case, HttpPeer.unix(daemon.local_socket) as client:
        client.socket.settimeout(PATIENCE)
        future = start(case, client, pool, kind)
        assert case.wait_until(active=True)["canceled"] is False
        removal = pool.submit(case.control, "DELETE")
        # A download may just be sending what it has, and end by its client before storage answers.
        assert case.wait_until(canceled=True)["active"] or kind == "get"
        before = storage.asked
        storage.release()
        assert removal.result(PATIENCE).status == 204
        assert storage.asked <= before + IN_FLIGHT
        assert case.control("GET").status == 404
        if kind == "get":  # told why, or a body that is cut off: that is no whole one
            with contextlib.suppress(ConnectionEnded, ConnectionError):
                assert future.result(PATIENCE).status == 403
        else:
            # A flush that storage has done is done.
            assert future.result(PATIENCE).status in ((200, 403) if kind == "flush" else (403,))


def test_connection_whose_last_write_succeeds_is_closed(daemon: Daemon, pool: ThreadPoolExecutor) -> None:
    storage = Storage(wire.CMD_WRITE)
    with running(daemon, storage) as case, HttpPeer.unix(daemon.local_socket) as client:
        client.socket.settimeout(PATIENCE)
        client.send(request_head("PUT", f"{case.path}?flush=n", body=bytes(512)) + bytes(512))
        assert storage.held.wait(PATIENCE)
        removal = pool.submit(case.control, "DELETE")
        case.wait_until(canceled=True)
        storage.release()
        response = client.response()
        assert (response.status, response.header("Connection")) == (200, "close")
        assert client.socket.recv(1) == b""
        assert removal.result(PATIENCE).status == 204


@pytest.mark.parametrize("kind", ["extents", "checksum"])
def test_no_further_extents_are_asked_for(daemon: Daemon, pool: ThreadPoolExecutor, kind: str) -> None:
    storage = Status(wire.CMD_BLOCK_STATUS, free=2)
    with running(daemon, storage) as case, HttpPeer.unix(daemon.local_socket) as client:
        client.socket.settimeout(PATIENCE)
        future = start(case, client, pool, kind)
        removal = pool.submit(case.control, "DELETE")
        case.wait_until(canceled=True)
        storage.release()
        assert removal.result(PATIENCE).status == 204
        assert storage.asked == 3
        assert future.result(PATIENCE).status == 403


@pytest.mark.parametrize("service", CONNECT)
@pytest.mark.parametrize(("kind", "storage"), [("checksum", Storage), ("checksum", Status), ("extents", Status)])
def test_what_nobody_hears_ends(daemon: Daemon, kind: str, storage: type[Storage], service: str) -> None:
    holding = storage(wire.CMD_BLOCK_STATUS if storage is Status else wire.CMD_READ)
    with running(daemon, holding) as case, CONNECT[service](daemon) as client:
        client.send(request_head("GET", f"{case.path}/{kind}"))
        assert holding.held.wait(PATIENCE)
        client.reset()
        holding.release()
        info = case.wait_until(active=False, connections=0)
        assert f"the client left during {kind}" in info["last_error"]["text"]
        assert holding.asked < SIZE // MIB


@pytest.mark.parametrize("service", CONNECT)
def test_client_that_only_sends_no_more_is_answered(daemon: Daemon, service: str) -> None:
    storage = Storage(wire.CMD_READ)
    with running(daemon, storage) as case, CONNECT[service](daemon) as client:
        client.socket.settimeout(PATIENCE)
        client.send(request_head("GET", f"{case.path}/checksum?length={8 * MIB}"))
        assert storage.held.wait(PATIENCE)
        client.socket.shutdown(socket.SHUT_WR)
        storage.release()
        assert client.response().status == 200


@pytest.mark.parametrize("service", CONNECT)
def test_get_that_has_not_begun_is_told_why_it_ends(daemon: Daemon, pool: ThreadPoolExecutor, service: str) -> None:
    storage = Storage(wire.CMD_READ)
    with running(daemon, storage) as case, CONNECT[service](daemon) as client:
        client.socket.settimeout(PATIENCE)
        future = start(case, client, pool, "get")
        removal = pool.submit(case.control, "DELETE")
        case.wait_until(canceled=True)
        storage.release()
        response = future.result(PATIENCE)
        assert (response.status, response.text) == (403, "the ticket was cancelled\n")
        assert removal.result(PATIENCE).status == 204


def test_new_requests_are_refused_while_the_last_one_ends(daemon: Daemon, pool: ThreadPoolExecutor) -> None:
    storage = Storage(wire.CMD_WRITE_ZEROES)
    with running(daemon, storage) as case, HttpPeer.unix(daemon.local_socket) as client:
        start(case, client, pool, "zero")
        removal = pool.submit(case.control, "DELETE")
        case.wait_until(canceled=True)
        with HttpPeer.unix(daemon.local_socket) as other:
            response = other.request("GET", case.path, headers=[("Range", "bytes=0-1")])
        assert (response.status, response.text) == (403, "the ticket was cancelled\n")
        storage.release()
        assert removal.result(PATIENCE).status == 204


def test_transferred_is_what_storage_has_acknowledged(daemon: Daemon, pool: ThreadPoolExecutor) -> None:
    storage = Storage(wire.CMD_WRITE, free=3)
    with running(daemon, storage) as case, HttpPeer.unix(daemon.local_socket) as client:
        start(case, client, pool, "put")
        acknowledged = storage.answered_bytes
        assert acknowledged > 0
        info = case.wait_until(transferred=acknowledged)
        assert (info["active"], info["idle_time"], info["connections"]) == (True, 0, 1)
        removal = pool.submit(case.control, "DELETE")
        assert case.wait_until(canceled=True)["transferred"] <= storage.answered_bytes
        storage.release()
        assert removal.result(PATIENCE).status == 204


SMALL = {
    "small-get": ("GET", "", [("Range", "bytes=0-99")], b"", wire.CMD_READ),
    "small-put": ("PUT", "?flush=n", [], bytes(512), wire.CMD_WRITE),
    "small-zero": ("PATCH", "", [], b'{"op": "zero", "offset": 0, "size": 512}', wire.CMD_WRITE_ZEROES),
}
"""Requests that the loop serves: method, query, fields, body and the command that storage gets."""


@pytest.mark.parametrize("kind", [*KINDS, *SMALL, "extents"])
def test_removal_ends_the_wait_for_storage(daemon: Daemon, pool: ThreadPoolExecutor, kind: str) -> None:
    """Storage that does not answer keeps neither the ticket nor the client."""
    storage: Storage
    if kind == "extents":
        storage = Status(wire.CMD_BLOCK_STATUS)
    else:
        storage = Storage(SMALL[kind][-1] if kind in SMALL else KINDS[kind])
    with running(daemon, storage) as case, HttpPeer.unix(daemon.local_socket) as client:
        client.socket.settimeout(PATIENCE)
        if kind in SMALL:
            method, query, fields, body, _ = SMALL[kind]
            client.send(request_head(method, case.path + query, headers=fields, body=body) + body)
            future = pool.submit(client.response)
            assert storage.held.wait(PATIENCE)
        else:
            future = start(case, client, pool, kind)
        assert case.control("DELETE").status == 204
        assert case.control("GET").status == 404
        response = future.result(PATIENCE)
        assert (response.status, response.text) == (403, "the ticket was cancelled\n")


def test_removal_ends_the_opening_of_storage(tmp_path: Any, pool: ThreadPoolExecutor) -> None:
    """A server that greets and says no more has ten seconds otherwise."""
    greeted = threading.Event()

    def script(talk: Talk) -> None:
        talk.greet()
        greeted.set()
        talk.wait_for_hangup()

    with Daemon(tmp_path, tls=False, config={"control": {"remove_timeout": 3}}) as daemon, Peer(script) as peer:
        case = Case(daemon, peer, Storage(wire.CMD_READ))
        with HttpPeer.unix(daemon.local_socket) as client:
            client.send(request_head("GET", case.path))
            assert greeted.wait(PATIENCE)
            assert case.control("DELETE").status == 204
            assert client.response().status == 403


def test_without_a_timeout_the_ticket_is_polled(tmp_path: Any, pool: ThreadPoolExecutor) -> None:
    storage = Storage(wire.CMD_WRITE_ZEROES)
    with Daemon(tmp_path, tls=False, config={"control": {"remove_timeout": 0}}) as daemon:
        with running(daemon, storage) as case, HttpPeer.unix(daemon.local_socket) as client:
            future = start(case, client, pool, "zero")
            assert case.control("DELETE").status == 204
            assert case.info()["canceled"] is True
            case.wait_until(active=False)
            assert future.result(PATIENCE).status == 403
            client.close()
            case.wait_until(connections=0)
            assert case.control("DELETE").status == 204
            assert case.control("GET").status == 404
