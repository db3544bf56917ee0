# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of OPTIONS: what a client may do, and how many connections are of use."""

from __future__ import annotations

import time
import uuid

import pytest

from conformance.server import expect, expect_end, expect_error, require
from conformance.storage import pattern

CHAPTER = "OPTIONS /images/{id}"

READ = {"checksum", "extents"}
WRITE = {"flush", "zero"}
NEW = {"checksum-range"}  # announced by servers that have it


def test_read_ticket(client, reading):
    """A ticket to read allows OPTIONS and GET, and has the features checksum and extents."""
    response = expect(
        client.get(reading, method="OPTIONS"), 200, headers={"Allow": "OPTIONS,GET", "Content-Type": "application/json"}
    )
    features = set(response.json()["features"])
    require(features - NEW == READ, f"the features are {sorted(features)}, expected {sorted(READ)}")


def test_write_ticket(client, writing):
    """A ticket to write also allows PUT and PATCH, and has the features flush and zero."""
    response = expect(client.get(writing, method="OPTIONS"), 200, headers={"Allow": "OPTIONS,GET,PUT,PATCH"})
    features = set(response.json()["features"])
    require(features - NEW == READ | WRITE, f"the features are {sorted(features)}, expected {sorted(READ | WRITE)}")


def test_ticket_for_both(client, grants, images):
    """A ticket to read and write is answered like one to write, which implies reading."""
    path = f"/images/{grants.add(images['file'], ('read', 'write'))}"
    expect(client.get(path, method="OPTIONS"), 200, headers={"Allow": "OPTIONS,GET,PUT,PATCH"})


def test_unix_socket(client, server, reading):
    """The address of the local service is told, an abstract one beginning with NUL."""
    if not server.local:
        pytest.skip("no local service is named, and the server may have one")
    found = expect(client.get(reading, method="OPTIONS"), 200).json().get("unix_socket")
    require(found == server.local, f"unix_socket is {found!r}, expected {server.local!r}")


def test_connections_of_file(client, grants, images):
    """A file has many readers and one writer."""
    path = f"/images/{grants.add(images['file'], ('write',))}"
    document = expect(client.get(path, method="OPTIONS"), 200).json()
    require(document["max_readers"] >= 1, f"max_readers is {document['max_readers']}")
    require(document["max_writers"] == 1, f"max_writers is {document['max_writers']}, expected 1")


def test_connections_of_nbd(client, grants, images):
    """NBD has as many writers as readers."""
    path = f"/images/{grants.add(images['nbd'], ('write',))}"
    document = expect(client.get(path, method="OPTIONS"), 200).json()
    require(document["max_readers"] == document["max_writers"] >= 1, f"the document is {document}")


def test_connections_of_origin(client, grants, images):
    """A proxied image has the readers and writers of its origin."""
    same = [
        expect(client.get(f"/images/{grants.add(images[kind], ('write',))}", method="OPTIONS"), 200).json()
        for kind in ("nbd", "http")
    ]
    for key in ("max_readers", "max_writers"):
        require(same[0][key] == same[1][key], f"{key} is {same[1][key]} by proxy, {same[0][key]} at the origin")


def test_every_image(client):
    """The image * needs no ticket; the full set is reported, but no numbers of connections."""
    response = expect(client.get("/images/*", method="OPTIONS"), 200, headers={"Allow": "OPTIONS,GET,PUT,PATCH"})
    document = response.json()
    features = set(document["features"])
    require(features - NEW == READ | WRITE, f"the features are {sorted(features)}")
    for key in ("max_readers", "max_writers"):
        require(key not in document, f"{key} is {document.get(key)}, expected that it is absent")


def test_unknown_ticket(client):
    """An unknown ticket is 403."""
    expect_error(client.get(f"/images/{uuid.uuid4()}", method="OPTIONS"), 403)


def test_close(client, grants, images):
    """With ?close=y the connection stays: a browser asks for the URL of the request that is to follow on it."""
    path = f"/images/{grants.add(images['file'], ('write',))}?flush=n&close=y"
    asked = (("Origin", "https://engine.example.com"), ("Access-Control-Request-Method", "PUT"))
    expect(client.get(path, *asked, method="OPTIONS"), 200, headers={"Connection": None})
    expect(client.put(path, pattern(512)), 200)
    expect_end(client)


def test_activity(client, grants, images):
    """Asking counts as activity: the ticket has the connection."""
    ticket = grants.add(images["file"])
    before = time.monotonic()
    expect(client.get(f"/images/{ticket}", method="OPTIONS"), 200)
    info = grants.info(ticket)
    elapsed = time.monotonic() - before
    require(info["connections"] == 1, f"connections is {info['connections']}, expected 1")
    require(0 <= info["idle_time"] <= elapsed + 1, f"idle_time is {info['idle_time']} after {elapsed:.1f} seconds")


def test_activity_extends(client, control, grants, images):
    """Asking extends the ticket, as a finished operation does."""
    ticket = grants.add(images["file"], timeout=1000)
    expect(control.put_json(f"/tickets/{ticket}", {"timeout": 300}, method="PATCH"), 200)
    before = grants.info(ticket)["expires"]
    expect(client.get(f"/images/{ticket}", method="OPTIONS"), 200)
    moved = grants.info(ticket)["expires"] - before
    require(690 <= moved <= 760, f"expires moved by {moved}, expected about 700")


@pytest.mark.parametrize("path", ["/images", "/images/", "*"])
def test_server(client, path):
    """OPTIONS of no image in particular is answered, or refused, and never ends the connection."""
    response = client.get(path, method="OPTIONS")
    require(response.status in (200, 400, 403, 404), f"the status is {response.status}")
    expect(client.get("/images/*", method="OPTIONS"), 200)
