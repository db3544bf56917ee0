# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""How long storage may take for one request, and what a removal does with what cannot be ended."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.nbdpeer import Image, Peer, Talk, serve
from imageio_testing.serving import Service
from ovirt_imageio.common import defaults, nbd
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.daemon import options, transfer
from ovirt_imageio.daemon.auth import open_storage
from ovirt_imageio.daemon.config import Config
from ovirt_imageio.daemon.tickets import Ticket

SIZE = 1 << 20
PATIENCE = 20.0


def silent(command: int) -> Iterator[Peer]:
    """A server that never answers one command."""

    def script(talk: Talk) -> None:
        talk.negotiate(SIZE, structured=False)
        while True:
            asked = talk.request()
            if asked.command == command:
                talk.wait_for_hangup()
                return
            talk.simple(asked, bytes(asked.length) if asked.command == wire.CMD_READ else b"")

    with Peer(script) as peer:
        yield peer


def config(timeout: float) -> Config:
    return Config(backend_nbd=options.BackendNbd(timeout=timeout), control=options.Control(remove_timeout=5))


def kernel_limit(client: nbd.Client) -> float:
    """Seconds that the kernel lets a call on a client's socket wait."""
    seconds, micros = struct.unpack("@ll", client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
    return float(seconds + micros / 1e6)


def ticket_for(peer: Peer) -> Ticket:
    document = {"uuid": "t", "size": SIZE, "ops": ["write"], "timeout": 300, "url": f"nbd:unix:{peer.address.path}"}
    return Ticket.from_json("t", document)


def test_default_is_a_quarter_of_an_hour() -> None:
    assert options.BackendNbd().timeout == 900 == defaults.NBD_TIMEOUT


@pytest.mark.parametrize("timeout", [900, 7.5, 0])
def test_every_connection_waits_as_long_as_the_option_says(timeout: float) -> None:
    with serve(Image(bytearray(SIZE))) as peer, open_storage(config(timeout), ticket_for(peer)) as backend:
        assert isinstance(backend, NbdBackend)
        assert kernel_limit(backend._client) == timeout
        with backend.clone() as other:
            assert kernel_limit(other._client) == timeout


REQUESTS = {
    "loop": (wire.CMD_READ, "GET", [("Range", "bytes=0-99")], b""),
    "worker": (wire.CMD_READ, "GET", [], b""),
    "loop-zero": (wire.CMD_WRITE_ZEROES, "PATCH", [], b'{"op": "zero", "offset": 0, "size": 512}'),
    "flush": (wire.CMD_FLUSH, "PATCH", [], b'{"op": "flush"}'),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_storage_past_its_limit_is_named(tmp_path: Path, kind: str) -> None:
    command, method, fields, body = REQUESTS[kind]
    for peer in silent(command):
        with Service(tmp_path, cfg=config(0.1)) as service:
            path = service.add_ticket(url=f"nbd:unix:{peer.address.path}", size=SIZE)
            with service.client() as client:
                assert client.request(method, path, headers=fields, body=body).status == 500
            assert "did not respond in 0.1 s" in service.show()["last_error"]["text"]


@pytest.mark.parametrize("kind", REQUESTS)
def test_without_a_limit_a_removal_ends_the_wait(tmp_path: Path, kind: str) -> None:
    command, method, fields, body = REQUESTS[kind]
    for peer in silent(command):
        with Service(tmp_path, cfg=config(0)) as service, ThreadPoolExecutor(1) as pool:
            path = service.add_ticket(url=f"nbd:unix:{peer.address.path}", size=SIZE)
            with service.client() as client:
                client.socket.settimeout(PATIENCE)
                client.send(request_head(method, path, headers=fields, body=body) + body)
                answer = pool.submit(client.response, method)
                while not service.show()["active"]:
                    pass
                assert service.manage("DELETE", "/tickets/t").status == 204
                assert answer.result(PATIENCE).status == 403


def test_wait_for_the_edge_of_a_block_ends_with_its_ticket(tmp_path: Path) -> None:
    """Blocks are changed by one thread at a time, and the one that has the turn may wait for storage that hangs."""
    asked = threading.Event()

    def script(talk: Talk) -> None:
        talk.negotiate(SIZE, structured=False, block_sizes=(512, 4096, SIZE))
        talk.expect(wire.CMD_READ)
        asked.set()
        talk.wait_for_hangup()

    with Peer(script) as peer, Service(tmp_path, cfg=config(0)) as service, ThreadPoolExecutor(2) as pool:
        answers = []
        for ticket_id in "one", "two":
            path = service.add_ticket(ticket_id, url=f"nbd:unix:{peer.address.path}", size=SIZE)
            answers.append(pool.submit(write_an_edge, service, path))
            assert asked.wait(PATIENCE)
            while not service.show(ticket_id)["active"]:
                pass
        assert service.manage("DELETE", "/tickets/two").status == 204
        assert answers[1].result(PATIENCE) == 403
        assert not answers[0].done()
        assert service.manage("DELETE", "/tickets/one").status == 204
        assert answers[0].result(PATIENCE) == 403


def write_an_edge(service: Service, path: str) -> int:
    """Write a part of a block; return the status of the answer."""
    with service.client() as client:
        client.socket.settimeout(PATIENCE)
        return client.request("PUT", path, body=b"x" * 100).status


class Stuck(MemoryBackend):
    """Storage in whose system calls a thread can be caught."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.held, self.release = threading.Event(), threading.Event()

    def zero(self, offset: int, length: int) -> None:
        self.held.set()
        assert self.release.wait(PATIENCE)
        super().zero(offset, length)


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[tuple[Service, Stuck]]:
    backend = Stuck(Memory(size=SIZE))

    def open_backend(ticket: Ticket) -> Backend:
        return backend

    with Service(tmp_path, open_backend, cfg=Config(control=options.Control(remove_timeout=1))) as service:
        service.add_ticket(size=SIZE)
        yield service, backend
        backend.release.set()


def begin_zero(client: HttpPeer) -> None:
    body = json.dumps({"op": "zero", "offset": 0, "size": SIZE}).encode()
    client.send(request_head("PATCH", "/images/t", body=body) + body)


def test_busy_ticket_is_409_and_can_be_removed_later(stuck: tuple[Service, Stuck]) -> None:
    service, storage = stuck
    with service.client() as client:
        begin_zero(client)
        assert storage.held.wait(PATIENCE)
        response = service.manage("DELETE", "/tickets/t")
        assert (response.status, response.text) == (409, "the ticket is still in use after 1 seconds\n")
        assert response.header("Content-Length") == str(len(response.body))
        info = service.show()
        assert (info["canceled"], info["active"]) == (True, True)
        # Dropping all drops it all the same, and what runs ends when it can.
        assert service.manage("DELETE", "/tickets/").status == 204
        assert service.manage("GET", "/tickets/t").status == 404
        storage.release.set()
        assert client.response("PATCH").status == 200, "what storage has done is done"


def test_storage_has_a_moment_for_what_it_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that storage acknowledges within it has succeeded, and its client is told."""
    monkeypatch.setattr(transfer, "GRACE", PATIENCE)
    held, release = threading.Event(), threading.Event()

    def script(talk: Talk) -> None:
        talk.negotiate(SIZE, structured=False)
        asked = talk.expect(wire.CMD_WRITE)
        held.set()
        assert release.wait(PATIENCE)
        talk.simple(asked)
        talk.wait_for_hangup()

    with Peer(script) as peer, Service(tmp_path, cfg=config(0)) as service, ThreadPoolExecutor(1) as pool:
        path = service.add_ticket(url=f"nbd:unix:{peer.address.path}", size=SIZE)
        with service.client() as client:
            client.send(request_head("PUT", f"{path}?flush=n", body=bytes(512)) + bytes(512))
            assert held.wait(PATIENCE)
            removal = pool.submit(service.manage, "DELETE", "/tickets/t")
            while not service.show()["canceled"]:
                pass
            release.set()
            response = client.response("PUT")
            assert (response.status, response.header("Connection")) == (200, "close")
            assert removal.result(PATIENCE).status == 204


def test_ticket_that_replaces_one_waits_for_its_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data acknowledged before is flushed, however long storage takes: its client goes on."""
    monkeypatch.setattr(transfer, "GRACE", 0.0)
    flushing, release = threading.Event(), threading.Event()

    def script(talk: Talk) -> None:
        talk.negotiate(SIZE, structured=False)
        while True:
            asked = talk.request()
            if asked.command == wire.CMD_FLUSH and not release.is_set():
                flushing.set()
                assert release.wait(PATIENCE)
            talk.simple(asked, bytes(asked.length) if asked.command == wire.CMD_READ else b"")

    with Peer(script) as peer, Service(tmp_path, cfg=config(0)) as service, ThreadPoolExecutor(1) as pool:
        keys = {"url": f"nbd:unix:{peer.address.path}", "size": SIZE}
        path = service.add_ticket(**keys)
        with service.client() as client:
            assert client.request("PUT", f"{path}?flush=n", body=bytes(512)).status == 200
        again = pool.submit(service.add_ticket, **keys)
        assert flushing.wait(PATIENCE)
        release.set()
        assert again.result(PATIENCE) == path
        with service.client() as client:
            assert client.request("PATCH", path, body=b'{"op": "flush"}').status == 200
