# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP itself."""

from __future__ import annotations

import contextlib
import socket

import pytest

from imageio_testing import qemu
from imageio_testing.httppeer import ConnectionEnded

from .both import Case, connect, everything, exchange, get, put, receive, request
from .page import cases, holds

pytestmark = qemu.needs_qemu

CASES = (
    Case("malformed heads", request("PUT", "/images/disk", Content_Length="+0"), (200, 400)),
    Case(
        "HTTP/1.1 without `Host`, remote and local",
        b"OPTIONS /images/disk HTTP/1.1\r\n\r\n",
        (200, 400),
    ),
    Case("unknown method", request("FOO", "/images/disk"), (405, 501)),
    Case(
        "method that the resource lacks",
        request("POST", "/images/disk", b"x"),
        (405, 405),
        old=lambda r: r.header("Allow") is None,
        here=lambda r: r.header("Allow") is not None,
    ),
    Case("longer path below an image, its parts, or `/info/`", get("/images/disk/extents/x"), (200, 404)),
    Case("longer path below an image, its parts, or `/info/`", get("/images/disk/x"), (403, 404)),
    Case("path without an id, `/images/`", get("/images/"), (400, 404)),
    Case("path without an id, `/images/`", get("/images//checksum/algorithms"), (200, 404)),
    Case("path that begins with `//`", get("//images/disk"), (200, 404)),
    Case("target in absolute form, or `*`", get("http://localhost/images/disk"), (404, 200)),
    Case("target in absolute form, or `*`", request("OPTIONS", "*"), (404, 200)),
    Case(
        "error before the path is known, as 414",
        request("OPTIONS", "/images/*?" + 9000 * "x"),
        (414, 414),
        old=lambda r: (r.header("Content-Type") or "").startswith("text/html"),
        here=lambda r: (r.header("Content-Type") or "").startswith("text/plain"),
    ),
    Case("another `Expect`", get("/images/disk", Expect="tea"), (200, 417)),
    Case("OPTIONS of anything but an image", request("OPTIONS", "/images/disk/extents"), (405, 200)),
    Case(
        "preflight for a ticket that there is not",
        request("OPTIONS", "/images/none", Origin="https://page", Access_Control_Request_Method="PUT"),
        (403, 200),
    ),
    Case(
        "`Access-Control-Max-Age`",
        get("/images/disk", Origin="https://page"),
        (200, 200),
        old=lambda r: r.header("Access-Control-Max-Age") == "86400",
        here=lambda r: r.header("Access-Control-Max-Age") is None,
    ),
    Case("`%2F` in an id", get("/images/disk%2Fextents"), (200, 403)),
    Case(
        "403",
        get("/images/none"),
        (403, 403),
        old=lambda r: r.header("Connection") == "close",
        here=lambda r: r.header("Connection") is None,
    ),
    Case("request line of more than 4096 bytes", request("OPTIONS", "/images/*?" + 5000 * "x"), (414, 200)),
    Case("head of more than 32 KiB", request("OPTIONS", "/images/*", X=40000 * "x"), (200, 431)),
    Case(
        "error text",
        get("/" + 3000 * "x"),
        (404, 404),
        old=lambda r: len(r.body) > 3000,
        here=lambda r: len(r.body) < 500,
    ),
    Case(
        "requests of web pages",
        get("/images/disk/extents", Origin="https://engine"),
        (200, 200),
        old=lambda r: r.header("Access-Control-Allow-Origin") is None,
        here=lambda r: r.header("Access-Control-Allow-Origin") == "*",
    ),
)


@cases("case", CASES)
def test_request(hosts, case):
    case.check(*(exchange(host.local, case.data) for host in hosts))


@holds("refused upload")
def test_refused_upload(hosts):
    """The body is larger than the buffers of a socket."""
    theirs, ours = hosts
    data = put("/images/none", bytes(8 << 20))
    with connect(theirs.local) as s, pytest.raises(ConnectionError):
        s.sendall(data)
        receive(s)
    assert exchange(ours.local, data).status == 403


@holds("body that no handler reads")
def test_body_of_a_get(hosts):
    """It looks like a request."""
    body = request("OPTIONS", "/images/*")
    data = request("GET", "/images/disk/checksum/algorithms", body) + get("/images/none", Connection="close")
    assert [everything(host.local, data).count(b"HTTP/1.1 ") for host in hosts] == [3, 2]


@holds("`Expect: 100-continue`")
def test_expect(hosts):
    data = request("PUT", "/images/none", Content_Length="10", Expect="100-continue")
    answers = []
    for host in hosts:
        with connect(host.local) as s, s.makefile("rb") as f:
            s.sendall(data)
            answers.append(f.readline().split()[1])
    assert answers == [b"100", b"403"]


@holds("request of `HTTP/2.0`", "request line without a version")
def test_versions(hosts):
    for version, theirs, ours in (
        (" HTTP/2.0", b"<!DOCTYPE", b"HTTP/1.1 505 "),
        ("", b"HTTP/1.1 403 ", b"HTTP/1.1 400 "),
    ):
        data = f"GET /images/none{version}\r\n\r\n".encode()
        answers = [everything(host.local, data) for host in hosts]
        assert answers[0].startswith(theirs)
        assert answers[1].startswith(ours)


@holds("connection that will close")
def test_connection_that_will_close(hosts):
    """2.5.1 says so after an error alone."""
    data = request("OPTIONS", "/images/disk", Connection="close")
    fields = []
    for host in hosts:
        with connect(host.local) as s:
            s.sendall(data)
            fields.append(receive(s).header("Connection"))
            assert s.recv(1) == b""
    assert fields == [None, "close"]


@holds("requests before a ticket is shown")
def test_requests_of_a_stranger(hosts):
    """Each is refused; none of them names a ticket."""
    served = []
    for host in hosts:
        with host.connect() as peer:
            count = 0
            with contextlib.suppress(ConnectionEnded, OSError):
                while count < 150:
                    peer.request("GET", "/none")
                    count += 1
            served.append(count)
    assert served == [150, 100]


@holds("longer path below an image, its parts, or `/info/`")
def test_path_below_info(hosts):
    statuses = []
    for host in hosts:
        with host.connect() as peer:
            statuses.append(peer.request("GET", "/info/x").status)
    assert statuses == [200, 404]


@holds("empty line before a request")
def test_empty_line(hosts):
    data = b"\r\n" + request("OPTIONS", "/images/*", Connection="close")
    theirs, ours = (everything(host.local, data) for host in hosts)
    assert theirs == b""
    assert ours.startswith(b"HTTP/1.1 200 ")


@holds("plain HTTP to the port of TLS")
def test_plain_http(hosts):
    answers = []
    for host in hosts:
        with socket.create_connection(("localhost", host.port)) as s:
            s.settimeout(30)
            s.sendall(get("/info/"))
            try:
                answers.append(s.recv(100)[:12])
            except ConnectionError:
                answers.append(b"")
    assert answers == [b"", b"HTTP/1.1 400"]


@holds("names of header fields", "order of keys in JSON")
def test_what_has_no_meaning(hosts):
    theirs, ours = (everything(host.local, request("OPTIONS", "/images/disk", Connection="close")) for host in hosts)
    assert b"\r\ncontent-length: " in theirs
    assert b"\r\nContent-Length: " in ours
    assert theirs.index(b'"unix_socket"') < theirs.index(b'"features"')
    assert ours.index(b'"features"') < ours.index(b'"unix_socket"')
