# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of tickets: what is granted, for how long, and what is known of its use."""

from __future__ import annotations

import json
import uuid

import pytest

from conformance.server import expect, expect_alive, expect_end, expect_error, require
from conformance.storage import pattern

CHAPTER = "Tickets"


@pytest.fixture
def ticket(grants, images):
    """A ticket document that is as it should be."""
    return {
        "uuid": str(uuid.uuid4()),
        "size": 4096,
        "ops": ["read"],
        "timeout": 300,
        "url": images["file"].url,
    }


def put(control, ticket, **keys):
    """Add a ticket with some keys changed; None removes one."""
    document = {**ticket, **keys}
    document = {key: value for key, value in document.items() if value is not REMOVED}
    return control.put_json(f"/tickets/{ticket['uuid']}", document)


REMOVED = object()


def test_add(control, ticket):
    """A ticket is added by an empty 200 and found again with its defaults."""
    expect(put(control, ticket), 200, headers={"Content-Length": "0"}, body=b"")
    response = expect(
        control.get(f"/tickets/{ticket['uuid']}"), 200, headers={"Content-Type": "application/json"}
    ).json()
    for key, value in {**ticket, "sparse": False, "dirty": False}.items():
        require(response.get(key) == value, f"{key} is {response.get(key)!r}, expected {value!r}")
    require(response["inactivity_timeout"] >= 60, f"inactivity_timeout is {response['inactivity_timeout']}")


def test_all_keys(control, ticket):
    """Every key is told as it was given."""
    keys = {
        "transfer_id": "transfer-1",
        "filename": "dîsk.raw",
        "sparse": True,
        "dirty": True,
        "inactivity_timeout": 120,
    }
    expect(put(control, ticket, ops=["read", "write"], **keys), 200)
    document = expect(control.get(f"/tickets/{ticket['uuid']}"), 200).json()
    for key, value in keys.items():
        require(document.get(key) == value, f"{key} is {document.get(key)!r}, expected {value!r}")


def test_state_of_new_ticket(control, ticket):
    """A new ticket is unused."""
    expect(put(control, ticket), 200)
    document = expect(control.get(f"/tickets/{ticket['uuid']}"), 200).json()
    expected = {"active": False, "canceled": False, "connections": 0, "transferred": 0}
    for key, value in expected.items():
        require(document.get(key) == value, f"{key} is {document.get(key)!r}, expected {value!r}")
    for key in ("expires", "idle_time"):
        value = document.get(key)
        require(isinstance(value, int) and not isinstance(value, bool), f"{key} is {value!r}, expected an integer")
    require("filename" not in document, "filename is told though it was not set")


def test_no_inactivity_timeout(control, ticket):
    """An inactivity_timeout of 0 is taken, and told."""
    expect(put(control, ticket, inactivity_timeout=0), 200)
    found = expect(control.get(f"/tickets/{ticket['uuid']}"), 200).json().get("inactivity_timeout")
    require(found == 0, f"inactivity_timeout is {found!r}, expected 0")


def test_no_transfer_id(control, ticket):
    """Without a transfer_id one is told that holds the first half of the id."""
    expect(put(control, ticket), 200)
    found = expect(control.get(f"/tickets/{ticket['uuid']}"), 200).json().get("transfer_id")
    expected = f"(ticket/{ticket['uuid'][:18]})"
    require(found == expected, f"transfer_id is {found!r}, expected {expected!r}")


def test_file_url_without_authority(client, control, ticket):
    """A file may be named by file:/path."""
    expect(put(control, ticket, url=ticket["url"].replace("file://", "file:", 1)), 200)
    expect(client.get(f"/images/{ticket['uuid']}", ("Range", "bytes=0-0")), 206)


def test_unknown_keys(control, ticket):
    """Unknown keys are ignored."""
    expect(put(control, ticket, new={"deep": [1]}), 200)


@pytest.mark.parametrize("fields", [(), (("Content-Type", "application/x-www-form-urlencoded"),)], ids=["none", "form"])
def test_content_type(control, ticket, fields):
    """No Content-Type is needed, and any does."""
    expect(control.put(f"/tickets/{ticket['uuid']}", json.dumps(ticket).encode(), *fields), 200)


@pytest.mark.parametrize("key", ["uuid", "size", "ops", "timeout", "url"])
def test_missing_key(control, ticket, key):
    """A missing key is 400, and the text names it."""
    expect_error(put(control, ticket, **{key: REMOVED}), 400, key)
    expect_error(control.get(f"/tickets/{ticket['uuid']}"), 404)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uuid", 1),
        ("uuid", ""),
        ("uuid", None),
        ("size", "1"),
        ("size", -1),
        ("size", 1.5),
        ("size", True),
        ("size", None),
        ("size", 2**70),
        ("ops", "read"),
        ("ops", []),
        ("ops", ["execute"]),
        ("ops", ["read", 1]),
        ("ops", [["read"]]),
        ("ops", {"read": 1}),
        ("ops", None),
        ("timeout", "300"),
        ("timeout", -1),
        ("timeout", True),
        ("timeout", 0.5),
        ("timeout", None),
        ("url", 1),
        ("url", ""),
        ("url", None),
        ("url", "no address"),
        ("url", "ftp://localhost/image"),
        ("url", "nbd:nonsense"),
        ("transfer_id", 1),
        ("filename", 1),
        ("filename", ["a"]),
        ("sparse", 1),
        ("sparse", "true"),
        ("dirty", 0),
        ("dirty", "no"),
        ("inactivity_timeout", "60"),
        ("inactivity_timeout", -1),
        ("inactivity_timeout", True),
    ],
)
def test_wrong_key(control, ticket, key, value):
    """A key of a wrong type, or with a value that makes no sense, is 400, and the text names it."""
    expect_error(put(control, ticket, **{key: value}), 400, key)
    expect_error(control.get(f"/tickets/{ticket['uuid']}"), 404)


@pytest.mark.parametrize(
    "body",
    [b"", b"ticket", b"null", b"[]", b'"x"', b"1", b'{"uuid": ', b"\xff", b"[" * 60000, b'{"x":' * 12000],
    ids=lambda body: repr(body[:8]),
)
def test_no_object(control, body):
    """A body that is no JSON object is 400, also one that nests deep."""
    expect_error(control.put_json(f"/tickets/{uuid.uuid4()}", body), 400)
    expect_error(control.get("/tickets/none"), 404)


def test_other_id(control, ticket):
    """A uuid unlike the id in the path is 400."""
    expect_error(put(control, ticket, uuid=str(uuid.uuid4())), 400, "uuid")


def test_large_document(control, ticket):
    """A document over 64 KiB is 413."""
    expect_error(put(control, ticket, filename="x" * 65536), 413)
    expect_error(control.get(f"/tickets/{ticket['uuid']}"), 404)


def test_no_id(server):
    """A ticket without an id in the path is refused."""
    for method in ("GET", "PUT", "PATCH"):
        with server.connect("control") as control:
            status = control.request(method, "/tickets/", body=b"{}").status
        require(status in (400, 404, 405), f"the status of {method} is {status}, expected 400, 404 or 405")


def test_unknown_ticket(control):
    """A request for an unknown ticket is 404, whose reason is Not Found and whose body has a length."""
    response = expect_error(control.get(f"/tickets/{uuid.uuid4()}"), 404)
    require(response.reason == "Not Found", f"the reason is {response.reason!r}")
    expect(response, 404, headers={"Content-Length": str(len(response.body))})
    expect_error(control.put_json(f"/tickets/{uuid.uuid4()}", {"timeout": 1}, method="PATCH"), 404)


def test_method_not_allowed(control):
    """Other methods are 405, and Allow names those that there are."""
    response = expect_error(control.request("POST", f"/tickets/{uuid.uuid4()}", body=b"{}"), 405)
    found = {name.strip() for name in (response.header("Allow") or "").split(",")}
    expected = {"OPTIONS", "GET", "HEAD", "PUT", "PATCH", "DELETE"}
    require(found == expected, f"Allow is {response.header('Allow')!r}, expected {','.join(sorted(expected))}")


def test_extend(control, ticket):
    """PATCH with a timeout lets a ticket be valid for so many seconds from now."""
    expect(put(control, ticket, timeout=10), 200)
    before = control.get(f"/tickets/{ticket['uuid']}").json()["expires"]
    response = control.put_json(f"/tickets/{ticket['uuid']}", {"timeout": 1000}, method="PATCH")
    expect(response, 200, headers={"Content-Length": "0"}, body=b"")
    after = control.get(f"/tickets/{ticket['uuid']}").json()["expires"]
    require(990 <= after - before <= 1060, f"expires moved by {after - before}, expected about 990")


@pytest.mark.parametrize(
    "document", [{}, {"timeout": "1"}, {"timeout": True}, {"timeout": None}, {"timeout": -1}, {"timeout": 1.5}], ids=str
)
def test_wrong_extend(control, ticket, document):
    """PATCH without a timeout, or with a wrong one, is 400 and changes nothing."""
    expect(put(control, ticket), 200)
    expect_error(control.put_json(f"/tickets/{ticket['uuid']}", document, method="PATCH"), 400, "timeout")


def test_expired(control, connect, ticket):
    """An expired ticket refuses requests by 403 until it is extended."""
    expect(put(control, ticket, timeout=0), 200)
    path = f"/images/{ticket['uuid']}"
    for response in (
        connect().get(path),
        connect().get(path, method="OPTIONS"),
        connect().get(f"{path}/extents"),
        connect().get(f"{path}/checksum"),
    ):
        expect_error(response, 403)
    expect(control.put_json(f"/tickets/{ticket['uuid']}", {"timeout": 100}, method="PATCH"), 200)
    expect(connect().get(path), 200)


def test_replace(control, client, ticket):
    """A ticket is replaced by another of its id."""
    expect(put(control, ticket), 200)
    expect(put(control, ticket, size=512), 200)
    expect(client.get(f"/images/{ticket['uuid']}"), 200, headers={"Content-Length": "512"})


def test_remove(control, connect, ticket):
    """DELETE is 204 without a body; afterwards there is no such ticket."""
    expect(put(control, ticket), 200)
    path = f"/images/{ticket['uuid']}"
    expect(connect().get(path), 200)
    response = control.request("DELETE", f"/tickets/{ticket['uuid']}")
    expect(response, 204, headers={"Content-Length": None, "Transfer-Encoding": None}, body=b"")
    expect_error(control.get(f"/tickets/{ticket['uuid']}"), 404)
    expect_error(connect().get(path), 403)


def test_remove_unknown(control):
    """DELETE of a ticket that never existed is 204."""
    expect(control.request("DELETE", f"/tickets/{uuid.uuid4()}"), 204)
    expect_alive_control(control)


def expect_alive_control(control):
    """Check that the connection takes another request."""
    expect(control.get(f"/tickets/{uuid.uuid4()}"), 404)


def test_remove_closes_idle_connections(control, connect, ticket):
    """DELETE closes the ticket's idle connections at once, and no others."""
    expect(put(control, ticket), 200)
    user, bystander = connect(), connect()
    expect(user.get(f"/images/{ticket['uuid']}"), 200)
    expect_alive(bystander)
    expect(control.request("DELETE", f"/tickets/{ticket['uuid']}"), 204)
    expect_end(user)
    expect_alive(bystander)


def test_odd_ids(control, client, ticket):
    """An id may be any text; it is percent-encoded in paths."""
    path = "/tickets/a%20b%2Fc%C3%A9"
    document = {**ticket, "uuid": "a b/cé"}
    expect(control.put_json(path, document), 200)
    expect(control.get(path), 200)
    expect(client.get("/images/a%20b%2Fc%C3%A9"), 200, headers={"Content-Length": "4096"})
    expect(control.request("DELETE", path), 204)


def test_transferred_by_reading(client, grants, images):
    """While reading, transferred counts distinct bytes."""
    ticket = grants.add(images["file"], size=1048576)
    for text in ("bytes=0-9999", "bytes=5000-19999", "bytes=100000-100099", "bytes=0-9"):
        expect(client.get(f"/images/{ticket}", ("Range", text)), 206)
    info = grants.info(ticket)
    require(info["transferred"] == 20100, f"transferred is {info['transferred']}, expected 20100")


def test_transferred_by_writing(client, grants, disk):
    """While writing, transferred counts distinct bytes that were written or zeroed."""
    ticket = grants.add(disk, ("write",), size=1048576)
    path = f"/images/{ticket}"
    expect(client.put(path, pattern(10000)), 200)
    expect(client.put(path, pattern(10000), ("Content-Range", "bytes 5000-14999/*")), 200)
    expect(client.put_json(path, {"op": "zero", "offset": 14000, "size": 6000}, method="PATCH"), 200)
    expect(client.get(path, ("Range", "bytes=500000-500999")), 206)
    expect(client.put(path, pattern(10), ("Content-Range", "bytes 1048576-1048585/*")), 416)
    info = grants.info(ticket)
    require(info["transferred"] == 20000, f"transferred is {info['transferred']}, expected 20000")


def test_transferred_both_ways(client, grants, disks):
    """With both operations granted there is no transferred."""
    ticket = grants.add(disks["file"], ("read", "write"), size=4096)
    expect(client.put(f"/images/{ticket}", pattern(512)), 200)
    require("transferred" not in grants.info(ticket), "transferred is told")


def test_connections(connect, grants, images):
    """The number of connections is that of open ones whose last request was for the ticket."""
    ticket = grants.add(images["file"])
    clients = [connect() for _ in range(3)]
    for client in clients:
        expect(client.get(f"/images/{ticket}", ("Range", "bytes=0-0")), 206)
    info = grants.info(ticket)
    require(info["connections"] == 3, f"connections is {info['connections']}, expected 3")
