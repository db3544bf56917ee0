# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of cancelling: what runs for a ticket ends soon after the ticket is removed."""

from __future__ import annotations

import time

import pytest

from conformance.server import expect, expect_error, head_of, require
from conformance.storage import pattern
from imageio_testing.httppeer import TIMEOUT

CHAPTER = "Cancelling"

GIB = 1024**3


def running(grants, ticket):
    """Wait until an operation of the ticket runs."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if grants.info(ticket)["active"]:
            return
    require(False, "the ticket never gets active though a request runs")


def test_active(client, grants, disk):
    """A ticket is active while an upload stands still, and transferred is what was acknowledged so far."""
    ticket = grants.add(disk, ("write",))
    client.send(head_of("PUT", f"/images/{ticket}", ("Content-Length", str(GIB))) + pattern(1 << 20))
    running(grants, ticket)
    info = grants.info(ticket)
    require(info["idle_time"] == 0, f"idle_time is {info['idle_time']}, expected 0")
    require(info["connections"] == 1, f"connections is {info['connections']}, expected 1")
    require(info["transferred"] <= 1 << 20, f"transferred is {info['transferred']}, more than was sent")
    client.close()


def test_cancelled_get(client, grants, disk):
    """A download whose client reads nothing ends when the ticket is removed, short of its length."""
    ticket = grants.add(disk)
    client.send(head_of("GET", f"/images/{ticket}"))
    expect(client.head(), 200)
    require(grants.remove(ticket) == 204, "the ticket cannot be removed")
    try:
        data = client.read_to_end()
    except ConnectionError:
        return
    require(len(data) < disk.size, "the whole image was sent though the ticket was removed")


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_cancelled_put(client, grants, disk, framing):
    """An upload whose client sends nothing more ends when the ticket is removed, by 403."""
    ticket = grants.add(disk, ("write",))
    path = f"/images/{ticket}"
    if framing == "length":
        client.send(head_of("PUT", path, ("Content-Length", str(GIB))) + pattern(300000))
    else:
        client.send(head_of("PUT", path, ("Transfer-Encoding", "chunked")) + b"%x\r\n" % GIB + pattern(300000))
    running(grants, ticket)
    require(grants.remove(ticket) == 204, "the ticket cannot be removed")
    expect_error(client.response(), 403)


def test_replaced_while_running(client, connect, grants, disk):
    """A ticket that replaces one in use cancels what runs."""
    ticket = grants.add(disk, ("write",))
    client.send(head_of("PUT", f"/images/{ticket}", ("Content-Length", str(GIB))) + pattern(300000))
    running(grants, ticket)
    grants.put(uuid=ticket, url=grants.info(ticket)["url"], size=4096, ops=["write"])
    expect_error(client.response(), 403)
    expect(connect().get(f"/images/{ticket}"), 200, headers={"Content-Length": "4096"})
