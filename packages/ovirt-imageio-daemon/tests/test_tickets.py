# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tickets take what 2.x takes, and name what is wrong with others."""

from __future__ import annotations

import pytest

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.tickets import Ticket

REQUIRED = {"uuid": "t", "size": 4096, "ops": ["read"], "timeout": 300, "url": "file:///disk"}
OPTIONAL = {"transfer_id": "x", "filename": "disk.raw", "sparse": True, "dirty": True, "inactivity_timeout": 7}


def ticket(**keys):
    return Ticket.from_json("t", {**REQUIRED, **keys})


def test_defaults():
    found = ticket()
    assert found == Ticket("t", 4096, ("read",), 300, "file:///disk", 60)
    assert found.to_json() == {**REQUIRED, "sparse": False, "dirty": False, "inactivity_timeout": 60}


def test_all_keys_come_back():
    assert ticket(**OPTIONAL).to_json() == {**REQUIRED, **OPTIONAL}


def test_unknown_keys_are_ignored():
    assert ticket(unknown={"a": 1}) == ticket()


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(key):
    document = {name: value for name, value in REQUIRED.items() if name != key}
    with pytest.raises(HttpError, match=key) as caught:
        Ticket.from_json("t", document)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uuid", "other"),
        ("uuid", 1),
        ("size", -1),
        ("size", "1"),
        ("size", 1.5),
        ("size", True),
        ("size", 2**63),
        ("ops", []),
        ("ops", "read"),
        ("ops", ["erase"]),
        ("ops", [["read"]]),
        ("timeout", None),
        ("timeout", -1),
        ("url", 5),
        ("url", ""),
        ("url", "/disk"),
        ("url", "ftp://host/disk"),
        ("url", "file:disk"),
        ("url", "http:///images/x"),
        ("url", "nbd:nonsense"),
        ("url", "http://[::1/images/x"),
        ("sparse", "yes"),
        ("dirty", 1),
        ("inactivity_timeout", 0),
        ("transfer_id", 5),
        ("filename", ["x"]),
    ],
)
def test_wrong_value_is_named(key, value):
    with pytest.raises(HttpError, match=key) as caught:
        ticket(**{key: value})
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "url", ["nbd:unix:/s", "nbd:h:1", "nbd://h/n", "nbd+unix:///?socket=/s", "https://h:1/images/x"]
)
def test_takes_every_kind_of_storage(url):
    assert ticket(url=url).url == url


@pytest.mark.parametrize(
    ("ops", "read", "write", "mode"),
    [(["read"], True, False, "r"), (["write"], True, True, "r+"), (["read", "write"], True, True, "r+")],
)
def test_write_implies_read(ops, read, write, mode):
    found = ticket(ops=ops)
    assert (found.allows("read"), found.allows("write"), found.writable, found.mode) == (read, write, write, mode)
