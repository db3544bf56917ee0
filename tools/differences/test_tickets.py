# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tickets and the control service."""

from __future__ import annotations

import pytest

from clients.host import Host
from imageio_testing import qemu
from imageio_testing.httppeer import HttpPeer

from .both import Case, MiB, add, connect, exchange, get, put, receive, request
from .page import cases, holds

pytestmark = qemu.needs_qemu

TRUE = "wrong type, negative number, `true` for a number, empty id, unknown or no `ops`"

CASES = (
    Case("OPTIONS of anything but an image", request("OPTIONS", "/tickets/disk"), (405, 200)),
    Case("id in the document unlike the path's", add(path="other"), (200, 400)),
    Case(TRUE, add(size=True), (200, 400)),
    Case(TRUE, add(size=-1), (200, 400)),
    Case(TRUE, add(ops=[]), (200, 400)),
    Case(TRUE, add(ops=["x"]), (200, 400)),
    Case("id with a `/` in the path", add("a/b"), (200, 404)),
    Case("id with a `/` in the path", add("a/b", path="a%2Fb"), (200, 200)),
    Case("unusable `url`", add(url="nbd:unix:"), (200, 400)),
    Case("`file://HOST/path`, or `file:path`", add(url="file://host/path"), (200, 400)),
    Case("`file://HOST/path`, or `file:path`", add(url="file:path"), (200, 400)),
    Case("`url` of an origin with a query", add(url="https://localhost:1/images/x?y=z"), (200, 400)),
    Case("number above 2⁶³ − 1 in JSON", add(size=1 << 63), (200, 400)),
    Case(
        "204",
        request("DELETE", "/tickets/none"),
        (204, 204),
        old=lambda r: r.header("Content-Length") == "0",
        here=lambda r: r.header("Content-Length") is None,
    ),
    Case("document of more than 64 KiB", add(pad=70000 * "x"), (200, 413)),
    Case("`/profile/`", get("/profile/"), (404, 200)),
)


@cases("case", CASES)
def test_request(hosts, case):
    case.check(*(exchange(host.control, case.data) for host in hosts))


@holds("replaced ticket", "idle connections of a deleted ticket")
@pytest.mark.parametrize("end", [add("again"), request("DELETE", "/tickets/again")], ids=["replaced", "deleted"])
def test_idle_connection(hosts, folder, end):
    alive = []
    for host in hosts:
        exchange(host.control, add("again", url=f"file://{folder}/disk-{host.generation.name}"))
        with connect(host.local) as s:
            s.sendall(get("/images/again", Range="bytes=0-0"))
            assert receive(s).status == 206
            assert exchange(host.control, end).status in (200, 204)
            try:
                s.sendall(get("/images/again", Range="bytes=0-0"))
                alive.append(s.recv(100) != b"")
            except OSError:
                alive.append(False)
    assert alive == [True, False]


@holds("DELETE of `/tickets/`, what runs")
def test_delete_of_all(generations, pki, tmp_path):
    """A part of the body is sent after it."""
    ends = []
    for generation in generations:
        folder = tmp_path / generation.name
        folder.mkdir()
        (folder / "disk").write_bytes(bytes(MiB))
        with Host(generation, folder, pki) as host:
            host.add_ticket(f"file://{folder}/disk", MiB, ["write"], uuid="all")
            data = put("/images/all", bytes(MiB))
            with connect(host.local) as s:
                s.sendall(data[: MiB // 2])
                host.wait("all", active=True)
                assert exchange(host.control, request("DELETE", "/tickets/")).status == 204
                try:
                    s.sendall(data[MiB // 2 :])
                    ends.append(receive(s).status)
                except OSError:
                    ends.append(403)
    assert ends == [200, 403]


@holds("`url` in the answer", "`?` or `#` in a `file` URL")
def test_url(hosts, folder):
    seen = []
    for name in ("name", "name?x", "name#x"):
        (folder / name).write_bytes(name.encode().ljust(4096))
    for host in hosts:
        for url in (f"file:{folder}/name?x", f"file:{folder}/name#x"):
            exchange(host.control, add("url", url=url, size=4096))
            seen.append(exchange(host.local, get("/images/url")).body.strip())
        exchange(host.control, add("url", url=f"FILE:{folder}/name"))
        seen.append(host.ticket("url")["url"])
    assert seen == [b"name", b"name", f"file://{folder}/name", b"name?x", b"name#x", f"FILE:{folder}/name"]


@holds("control on TCP, web pages")
def test_control_on_tcp(generations, pki, tmp_path):
    statuses = []
    for generation in generations:
        folder = tmp_path / generation.name
        folder.mkdir()
        config = {"control": {"transport": "tcp", "port": 0}}
        with Host(generation, folder, pki, config=config) as host:
            for headers in ([("Origin", "https://page")], [("Host", "page")], []):
                with HttpPeer.tcp("localhost", host.control) as control:
                    statuses.append(control.request("GET", "/tickets/none", headers=headers).status)
    assert statuses == [404, 404, 404, 403, 400, 404]
