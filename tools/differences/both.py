# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests as bytes, so that they may be wrong, and the answers of either daemon."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional

MiB = 1 << 20


class Reply(NamedTuple):
    """An answer."""

    status: int
    header: Callable[[str], Optional[str]]
    body: bytes


def connect(path: str) -> socket.socket:
    """Connect to a Unix socket."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(path)
    return s


def receive(s: socket.socket, method: str = "GET") -> Reply:
    """Read one answer."""
    response = http.client.HTTPResponse(s, method=method)
    response.begin()
    return Reply(response.status, response.getheader, response.read())


def exchange(path: str | int, data: bytes) -> Reply:
    """Send a request on a connection of its own."""
    assert isinstance(path, str)
    with connect(path) as s:
        s.sendall(data)
        return receive(s, data.split(b" ")[0].decode())


def everything(path: str, data: bytes) -> bytes:
    """Send data, and read until the connection ends."""
    with connect(path) as s:
        s.sendall(data)
        with s.makefile("rb") as f:
            return f.read()


def request(method: str, target: str, body: bytes | None = None, **fields: str) -> bytes:
    """Write a request; underscores of the fields' names are hyphens."""
    head = [f"{method} {target} HTTP/1.1", *(f"{name.replace('_', '-')}: {text}" for name, text in fields.items())]
    if "Host" not in fields:
        head.append("Host: localhost")
    if body is not None and "Transfer_Encoding" not in fields:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + (body or b"")


def get(target: str, **fields: str) -> bytes:
    """Write a GET."""
    return request("GET", target, None, **fields)


def put(target: str, body: bytes = b"0123456789", **fields: str) -> bytes:
    """Write a PUT."""
    return request("PUT", target, body, **fields)


def patch(text: str, target: str = "/images/disk") -> bytes:
    """Write a PATCH."""
    return request("PATCH", target, text.encode())


def add(ticket_id: str = "new", *, path: str = "", **keys: object) -> bytes:
    """Write the request that adds a ticket."""
    document = {"uuid": ticket_id, "size": MiB, "ops": ["read"], "timeout": 300, "url": "file:///none", **keys}
    return put(f"/tickets/{path or ticket_id}", json.dumps(document).encode())


@dataclass(frozen=True)
class Case:
    """A request of one row.

    Attributes:
        row: Its name.
        data: Bytes that are sent.
        statuses: Of 2.5.1, and of this checkout.
        old: A fact that also holds for the answer of 2.5.1.
        here: A fact that also holds for ours.
    """

    row: str
    data: bytes
    statuses: tuple[int, int]
    old: Callable[[Reply], bool] = lambda reply: True
    here: Callable[[Reply], bool] = lambda reply: True

    def check(self, theirs: Reply, ours: Reply) -> None:
        """Check both columns."""
        assert (theirs.status, ours.status) == self.statuses
        assert self.old(theirs), theirs
        assert self.here(ours), ours
