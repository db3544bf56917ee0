# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of connections: kept after every status, answered in order, closed on demand."""

from __future__ import annotations

import uuid

import pytest

from conformance.server import expect, expect_alive, expect_end, head_of, require
from conformance.storage import pattern

CHAPTER = "Connections"


def test_kept_after_every_status(client, anything, scratch, grants):
    """A connection is kept after every status."""
    broken = f"/images/{grants.put(url='file:///nowhere/at/all', size=4096, ops=['read'])}"
    requests = [
        (200, lambda: client.get(anything)),
        (206, lambda: client.get(anything, ("Range", "bytes=0-0"))),
        (416, lambda: client.get(anything, ("Range", "bytes=1-0"))),
        (403, lambda: client.get(f"/images/{uuid.uuid4()}")),
        (404, lambda: client.get(f"{anything}/extents?context=dirty")),
        (404, lambda: client.get("/no/such/resource")),
        (405, lambda: client.get(anything, method="DELETE")),
        (400, lambda: client.get(f"{anything}/extents?context=none")),
        (411, lambda: client.get(scratch, method="PUT")),
        (500, lambda: client.get(broken)),
        (200, lambda: client.put(scratch, pattern(10))),
        (403, lambda: client.put(anything, pattern(10))),
        (400, lambda: client.put_json(scratch, b"{", method="PATCH")),
        (413, lambda: client.put_json(scratch, b" " * 70000, method="PATCH")),
    ]
    for status, request in requests:
        expect(request(), status)
        expect_alive(client)


def test_pipelined(client, anything, scratch, images, disks):
    """Requests that are sent without waiting are answered in order."""
    head = head_of("GET", anything, ("Range", "bytes=0-9"))
    put = head_of("PUT", scratch, ("Content-Length", "5")) + b"hello"
    client.send(head + put + head_of("HEAD", anything) + head_of("GET", "/none") + head)
    expect(client.response(), 206, body=images["file"].content(0, 10))
    expect(client.response(), 200, body=b"")
    expect(client.response("HEAD"), 200)
    expect(client.response(), 404)
    expect(client.response(), 206, body=images["file"].content(0, 10))
    require(disks["file"].content(0, 6) == b"hello\0", "the image does not hold the body")


def test_pipelined_after_bulk(client, writing, disk):
    """A request may follow a long body at once."""
    length = 700001
    head = head_of("PUT", f"{writing}?flush=n", ("Content-Length", str(length)))
    client.send(head + pattern(length) + head_of("GET", writing, ("Range", f"bytes=0-{length - 1}")))
    expect(client.response(), 200)
    expect(client.response(), 206, body=pattern(length))


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive, close"])
def test_close(client, anything, value):
    """With Connection: close the connection is closed after the response, and it says so."""
    response = client.get(anything, ("Range", "bytes=0-9"), ("Connection", value))
    expect(response, 206, headers={"Connection": "close"})
    expect_end(client)


def test_close_after_error(client):
    """?close=y closes after an error too."""
    expect(client.get(f"/images/{uuid.uuid4()}?close=y"), 403)
    expect_end(client)


def test_http_1_0(client):
    """HTTP/1.0 is closed after the response."""
    client.send(head_of("OPTIONS", "/images/*", version="1.0"))
    expect(client.response(), 200)
    expect_end(client)


def test_http_1_0_without_host(client):
    """HTTP/1.0 needs no Host."""
    client.send(b"OPTIONS /images/* HTTP/1.0\r\n\r\n")
    expect(client.response(), 200)
    expect_end(client)


def test_http_1_0_keep_alive(client):
    """HTTP/1.0 is kept where the client asks for it, and the response says so."""
    client.send(head_of("OPTIONS", "/images/*", ("Connection", "keep-alive"), version="1.0"))
    response = expect(client.response(), 200)
    require((response.header("Connection") or "").lower() == "keep-alive", "the response does not say keep-alive")
    expect_alive(client)


def test_later_minor_version(client):
    """A later version HTTP/1.x is answered as HTTP/1.1."""
    client.send(head_of("OPTIONS", "/images/*", version="1.2"))
    response = expect(client.response(), 200)
    require(response.version == (1, 1), f"the version is {response.version}")


def test_asterisk(client):
    """OPTIONS * is answered without a ticket."""
    expect(client.get("*", method="OPTIONS"), 200)


def test_no_second_use_of_ticket_needed(connect, anything):
    """Any number of connections may use one ticket."""
    clients = [connect() for _ in range(20)]
    for client in clients:
        client.send(head_of("GET", anything, ("Range", "bytes=0-9")))
    for client in clients:
        expect(client.response(), 206)


def test_client_that_leaves(connect, anything):
    """A client that leaves in the middle of a response disturbs nobody."""
    client = connect()
    client.send(head_of("GET", anything))
    client.close()
    expect(connect().get(anything, ("Range", "bytes=0-9")), 206)
