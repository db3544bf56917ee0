# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of every kind to a daemon whose storage fails, and what must become of them.

    begin(peer, path, "get")          # sends it
    wait_for(lambda: daemon.ticket(ticket_id)["active"], "the request runs")
    ...                               # the storage fails
    assert complete(peer, "get").status == 500
    assert_works(peer, path, "get")   # once it is back

The image is `DATA`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from typing import TYPE_CHECKING, Callable, NamedTuple

import pytest

from imageio_testing.httppeer import HttpPeer, Response, request_head
from ovirt_imageio.common import checksum
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend

if TYPE_CHECKING:
    from imageio_testing.daemon import Daemon

MiB = 1 << 20

SIZE = 32 * MiB
DATA = random.Random(1).randbytes(MiB) * 32
"""More than all sockets and pipes between storage and a client hold."""

PATIENCE = 20.0


class Request(NamedTuple):
    """One kind of request.

    Attributes:
        method: Of HTTP.
        suffix: Text behind the path of the image.
        body: None for none.
        is_right: Tells if a response of status 200 says what it should.
    """

    method: str
    suffix: str
    body: bytes | None
    is_right: Callable[[Response], bool]

    @property
    def is_large(self) -> bool:
        """The body is sent while it is written, not together with the head."""
        return self.body is not None and len(self.body) >= MiB


def _change(op: str, **keys: object) -> bytes:
    return json.dumps({"op": op, **keys}).encode()


def _is_empty(response: Response) -> bool:
    return response.body == b""


def _hash() -> str:
    return checksum.checksum([MemoryBackend(Memory(DATA))]).checksum


REQUESTS = {
    "get": Request("GET", "", None, lambda response: response.body == DATA),
    "put": Request("PUT", "", DATA[::-1], _is_empty),
    "small-put": Request("PUT", "", DATA[:8192], _is_empty),
    "zero": Request("PATCH", "", _change("zero", offset=0, size=SIZE, flush=True), _is_empty),
    "small-zero": Request("PATCH", "", _change("zero", offset=4096, size=4096, flush=True), _is_empty),
    "unflushed-zero": Request("PATCH", "", _change("zero", offset=4096, size=4096, flush=False), _is_empty),
    "flush": Request("PATCH", "", _change("flush"), _is_empty),
    "extents": Request("GET", "/extents", None, lambda r: sum(e["length"] for e in r.json()) == SIZE),
    "checksum": Request("GET", "/checksum", None, lambda response: response.json()["checksum"] == _hash()),
}

each_request = pytest.mark.parametrize("kind", REQUESTS)


def begin(peer: HttpPeer, path: str, kind: str) -> None:
    """Send the head of a request, and its body unless that is large."""
    request = REQUESTS[kind]
    peer.send(request_head(request.method, path + request.suffix, body=request.body))
    if request.body is not None and not request.is_large:
        peer.send(request.body)


def complete(peer: HttpPeer, kind: str) -> Response:
    """Send the rest of a request, as far as it is taken, and return the response."""
    request = REQUESTS[kind]
    if request.body is not None and request.is_large:
        with contextlib.suppress(ConnectionError):
            peer.send(request.body)
    return peer.response(request.method)


def ask(peer: HttpPeer, path: str, kind: str) -> Response:
    """Send a request and return the response."""
    begin(peer, path, kind)
    return complete(peer, kind)


def assert_works(peer: HttpPeer, path: str, kind: str) -> None:
    """Send a request that must be answered rightly."""
    response = ask(peer, path, kind)
    assert response.status == 200, response.text
    assert REQUESTS[kind].is_right(response)


def assert_failed(response: Response, status: int = 500) -> None:
    """The client is told, in one line that tells nothing of the host."""
    assert response.status == status, response
    assert response.text.count("\n") == 1
    assert "nbd" not in response.text.lower()
    assert "/" not in response.text


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so, which is not ours to be told of.

    Raises:
        AssertionError: It is not after `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE} seconds: {what}"
        time.sleep(0.005)


def held(daemon: Daemon) -> int:
    """Sockets and files that a daemon has open; pipes it keeps for further use."""
    folder = f"/proc/{daemon.pid}/fd"
    links = []
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"{folder}/{fd}"))
    return sum(not link.startswith("pipe:") for link in links)
