# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP itself."""

from __future__ import annotations

import contextlib

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
    Case("longer path below an image or its parts", get("/images/disk/extents/x"), (200, 404)),
    Case("longer path below an image or its parts", get("/images/disk/x"), (403, 404)),
    Case("path without an id, `/images/`", get("/images/"), (400, 404)),
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
