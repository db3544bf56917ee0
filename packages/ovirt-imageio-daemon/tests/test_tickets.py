# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tickets take what 2.x takes, and name what is wrong with others."""

from __future__ import annotations

import math

import pytest

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.handlers.images import content_disposition
from ovirt_imageio.daemon.tickets import Ticket

REQUIRED = {"uuid": "t", "size": 4096, "ops": ["read"], "timeout": 300, "url": "file:///disk"}
OPTIONAL = {
    "transfer_id": "x",
    "filename": "disk.raw",
    "sparse": True,
    "dirty": True,
    "inactivity_timeout": 7,
    "bitmap": "since monday",
}


def ticket(**keys):
    return Ticket.from_json("t", {**REQUIRED, **keys})


def test_defaults():
    found = ticket()
    assert found == Ticket("t", 4096, ("read",), 300, "file:///disk", 60)
    shown = {**REQUIRED, "sparse": False, "dirty": False, "inactivity_timeout": 60, "transfer_id": "(ticket/t)"}
    assert found.to_json() == shown


def test_ticket_without_a_transfer_id_is_shown_with_the_beginning_of_its_id():
    uuid = "b6f7e8a2-6c1b-4c8c-9a55-2a4b3d9c7f10"
    found = Ticket.from_json(uuid, {**REQUIRED, "uuid": uuid})
    assert found.to_json()["transfer_id"] == "(ticket/b6f7e8a2-6c1b-4c8c)"
    assert found.transfer_id is None


def test_inactivity_timeout_of_zero_is_no_limit():
    found = ticket(inactivity_timeout=0)
    assert found.to_json()["inactivity_timeout"] == 0
    assert found.longest_silence == math.inf
    assert ticket(inactivity_timeout=7).longest_silence == 7


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
        ("url", "http://h:abc/images/x"),
        ("url", "http://h:99999/images/x"),
        ("url", "http://localhost/foo"),
        ("url", "http://localhost/images/"),
        ("url", "http://u:p@localhost:1/images/x"),
        ("url", "https://localhost/images/x?y"),
        ("url", "https://localhost/images/x#y"),
        ("url", "https://localhost/images/x\0"),
        ("url", "file://host/x"),
        ("url", "file:x"),
        ("url", "file:"),
        ("url", "file://"),
        ("url", "file:///a\0b"),
        pytest.param("url", "file:///" + "x" * 4095, id="url-file: longer than PATH_MAX"),
        ("url", "nbd:unix:/a\0b"),
        pytest.param("url", "nbd:unix:/" + "x" * 107, id="url-nbd:unix: longer than a socket's path"),
        pytest.param("url", "nbd:" + "A" * 60000, id="url-nbd: too long"),
        pytest.param("url", "A" * 60000, id="url-too long"),
        pytest.param("url", "http://[" + "\n\x1b" * 30000, id="url-http: too long"),
        ("url", "nbd+unix:///?socket=/a%00b"),
        ("url", "nbd:h:99999"),
        ("url", "nbdx:h:1"),
        ("sparse", "yes"),
        ("dirty", 1),
        ("inactivity_timeout", -1),
        ("uuid", "\ud800"),
        ("url", "file:///\ud800"),
        ("bitmap", 5),
        ("bitmap", ""),
        ("bitmap", "a\0b"),
        pytest.param("bitmap", "é" * 512, id="bitmap-too long"),
        ("transfer_id", 5),
        ("transfer_id", "\ud800"),
        ("filename", ["x"]),
        ("filename", "\udcff"),
        pytest.param("filename", "é" * 2049, id="filename-too long"),
    ],
)
def test_wrong_value_is_named(key, value):
    with pytest.raises(HttpError, match=key) as caught:
        ticket(**{key: value})
    assert caught.value.status == 400
    assert len(caught.value.text) < 1000
    assert caught.value.text.isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "nbd:unix:/s",
        "nbd:unix:/run/vdsm/nbd/b6f7e8a2-6c1b-4c8c-9a55-2a4b3d9c7f10.sock:exportname=sda",
        "nbd:unix:\0abstract",
        "nbd:h:1",
        "nbd:[::1]:1",
        "nbd://h/n",
        "nbd+unix:///?socket=/s",
        "file:///rhev/data-center/mnt/host:_export/50% of #1?",
        "file://localhost/disk",
        "file:/rhev/disk",
        "http://h/images/x",
        "http://[::1]:1/images/x",
        "https://h:1/images/x",
    ],
)
def test_takes_every_kind_of_storage(url):
    assert ticket(url=url).url == url


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transfer_id", ""),
        ("transfer_id", "Sicherung der Ä 1"),
        ("transfer_id", "\x1b[2J\n"),
        ("filename", ""),
        ("filename", "a\nb"),
        pytest.param("filename", "é" * 2048, id="filename-longest"),
    ],
)
def test_takes_texts_of_all_kinds(key, value):
    assert ticket(**{key: value}).to_json()[key] == value


@pytest.mark.parametrize("letter", ["\U0001f4be", "é", '"', "x"])
def test_longest_filename_fits_in_a_line_of_a_head(letter):
    name = ticket(filename="é" + letter * 2047).filename
    assert len(f"Content-Disposition: {content_disposition(name)}\r\n") < 65536  # the limit of http.client


@pytest.mark.parametrize(
    ("ops", "read", "write", "mode"),
    [(["read"], True, False, "r"), (["write"], True, True, "r+"), (["read", "write"], True, True, "r+")],
)
def test_write_implies_read(ops, read, write, mode):
    found = ticket(ops=ops)
    assert (found.allows("read"), found.allows("write"), found.writable, found.mode) == (read, write, write, mode)
