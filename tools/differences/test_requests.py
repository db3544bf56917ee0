# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests for images."""

from __future__ import annotations

import functools
import json
import ssl

from imageio_testing import qemu
from imageio_testing.imageserver import Got, Image, ScriptedServer, response

from .both import Case, MiB, add, connect, exchange, get, patch, put, request
from .page import cases, holds

pytestmark = qemu.needs_qemu

SPACE = "space behind the value of `Range` or `Content-Range`"
NUMBER = "number of a query written `+N`, `1_000`, or with spaces"

CASES = (
    Case("chunked upload", put("/images/disk", b"1\r\nx\r\n0\r\n\r\n", Transfer_Encoding="chunked"), (400, 200)),
    Case("upload without a length", request("PUT", "/images/disk"), (400, 411)),
    Case(
        "LAST of `Content-Range` contradicts `Content-Length`",
        put("/images/disk", Content_Range="bytes 0-8/*"),
        (200, 400),
    ),
    Case(
        "upload with the `Content-Encoding` of a compression",
        put("/images/disk", Content_Encoding="gzip"),
        (200, 415),
        here=lambda r: r.header("Accept-Encoding") == "identity",
    ),
    Case(
        "upload or zeroing past the end of an NBD export",
        put("/images/long", Content_Range=f"bytes {MiB - 5}-{MiB + 4}/*"),
        (500, 416),
    ),
    Case("suffix range `bytes=-N`", get("/images/disk", Range="bytes=-9"), (416, 206), here=lambda r: len(r.body) == 9),
    Case(
        "range that begins at the end, `bytes=SIZE-`",
        get("/images/disk", Range=f"bytes={MiB}-"),
        (206, 416),
        old=lambda r: not r.body,
    ),
    Case("suffix of no bytes, `bytes=-0`", get("/images/disk", Range="bytes=-0"), (206, 416)),
    Case("suffix range of nothing, `bytes=-0`", get("/images/disk", Range="bytes=-0"), (206, 416)),
    Case("range that begins past the end, `bytes=N-`", get("/images/disk", Range=f"bytes={2 * MiB}-"), (400, 416)),
    Case(SPACE, get("/images/disk", Range="bytes=0-0 "), (416, 206)),
    Case(SPACE, put("/images/disk", Content_Range="bytes 0-9/* "), (400, 200)),
    Case("unit in capitals, `Bytes=` or `BYTES`", get("/images/disk", Range="Bytes=0-9"), (416, 206)),
    Case("unit in capitals, `Bytes=` or `BYTES`", put("/images/disk", Content_Range="BYTES 0-9/*"), (400, 200)),
    Case("unknown unit of a range", get("/images/disk", Range="lines=0-1"), (416, 200)),
    Case("`If-Range`", get("/images/disk", Range="bytes=0-9", If_Range='"x"'), (206, 200)),
    Case(
        "total in `Content-Range` of a GET",
        get("/images/long", Range="bytes=0-9"),
        (206, 206),
        old=lambda r: r.header("Content-Range") == f"bytes 0-9/{2 * MiB}",
        here=lambda r: r.header("Content-Range") == f"bytes 0-9/{MiB}",
    ),
    Case(
        "ticket smaller than the image",
        get("/images/short/extents"),
        (200, 200),
        old=lambda r: json.loads(r.body)[-1]["length"] == MiB,
        here=lambda r: json.loads(r.body)[-1]["length"] == 4096,
    ),
    Case(
        "extents of a file",
        get("/images/disk/extents"),
        (200, 200),
        old=lambda r: json.loads(r.body) == [{"start": 0, "length": MiB, "zero": False, "hole": False}],
        here=lambda r: json.loads(r.body)[-1]["zero"],
    ),
    Case(
        "list of extents",
        get("/images/disk/extents"),
        (200, 200),
        old=lambda r: r.header("Content-Length") is not None,
        here=lambda r: r.header("Transfer-Encoding") == "chunked",
    ),
    Case("HEAD", request("HEAD", "/images/disk"), (405, 200)),
    Case(
        "file name in `Content-Disposition`",
        get("/images/disk"),
        (200, 200),
        old=lambda r: r.header("Content-Disposition") == "attachment; filename=a b",
        here=lambda r: r.header("Content-Disposition") == 'attachment; filename="a b"',
    ),
    Case("algorithms of variable length", get("/images/disk/checksum?algorithm=shake_128"), (500, 400)),
    Case(
        "algorithms that are no function of `hashlib`, as `sha512_256`",
        get("/images/disk/checksum?algorithm=sha512_256"),
        (500, 200),
    ),
    Case("empty image over NBD", get("/images/empty/extents"), (500, 200), here=lambda r: r.body == b"[]\n"),
    Case(
        "empty file",
        get("/images/nothing/extents"),
        (200, 200),
        old=lambda r: json.loads(r.body)[0]["length"] == 0,
        here=lambda r: r.body == b"[]\n",
    ),
    Case("empty image over NBD", get("/images/empty/checksum"), (500, 200)),
    Case("query that names a key twice", put("/images/disk?flush=n&flush=y"), (200, 400)),
    Case(NUMBER, get("/images/disk/checksum?block_size=1_048_576"), (200, 400)),
    Case(NUMBER, get("/images/disk/checksum?block_size=%201048576"), (200, 400)),
    Case("number above 2⁶³ − 1 in JSON", patch(f'{{"op": "zero", "size": {1 << 63}}}'), (416, 400)),
    Case("JSON that is no object", patch("[]"), (500, 400)),
    Case("JSON with a byte order mark, or in UTF-16", patch('\ufeff{"op": "flush"}'), (200, 400)),
    Case("`true` for a number in JSON", patch('{"op": "zero", "size": true}'), (200, 400)),
    Case(
        "OPTIONS of a ticket to write, storage can only be read",
        request("OPTIONS", "/images/locked"),
        (200, 200),
        old=lambda r: "zero" in json.loads(r.body)["features"] and r.header("Allow") == "OPTIONS,GET,PUT,PATCH",
        here=lambda r: "zero" not in json.loads(r.body)["features"] and r.header("Allow") == "OPTIONS,GET",
    ),
    Case("write, storage can only be read", put("/images/locked"), (500, 403)),
)


@cases("case", CASES)
def test_request(hosts, case):
    case.check(*(exchange(host.local, case.data) for host in hosts))


@holds("body of odd length into a growing file")
def test_body_of_odd_length(hosts, folder):
    """2.5.1 fills the block; later writes cut the file to whole sectors."""
    sizes = []
    for host in hosts:
        path = folder / f"odd-{host.generation.name}"
        path.touch()
        exchange(host.control, add("odd", url=f"file://{path}", ops=["write"]))
        assert exchange(host.local, put("/images/odd", b"x" * 1000)).status == 200
        sizes.append(path.stat().st_size)
    assert sizes == [4096, 1000]


@holds("full storage")
@qemu.needs_nbdkit
def test_full_storage(hosts):
    with qemu.nbdkit("memory", "1M", "--filter=error", "error-pwrite=ENOSPC", "error-pwrite-rate=100%") as url:
        for host in hosts:
            exchange(host.control, add("full", url=url, ops=["write"]))
        replies = [exchange(host.local, put("/images/full")) for host in hosts]
    assert [reply.status for reply in replies] == [500, 507]
    assert "space" in replies[1].body.decode()


def refuse(status: int, got: Got, query: str) -> bytes:
    """Answer a request once its body is there."""
    assert len(got.body) == got.length
    return response(status, b"by day\n")


@holds("refusal by the origin of a proxied image")
def test_refusal_by_the_origin(hosts, pki):
    """The origin is there until it has told what it is, and refuses the rest."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    image, seen = Image(bytearray(MiB)), []
    with ScriptedServer(image, context=context) as origin:
        for host in hosts:
            exchange(host.control, add("proxied", url=origin.url, ops=["write"]))
            for status in (503, 405, 500):
                image.do_put = functools.partial(refuse, status)
                seen.append(exchange(host.local, put("/images/proxied"))[::2])
            exchange(host.control, request("DELETE", "/tickets/proxied"))
    assert seen[:3] == [(503, b"by day\n"), (405, b"by day\n"), (500, b"by day\n")]
    assert seen[3:5] == [(503, b"the origin refused: by day\n"), (501, b"the origin refused: by day\n")]
    assert seen[5][0] == 500
    assert b"by day" not in seen[5][1]


@holds("cancelled ticket, storage or client stands still", "DELETE of a ticket whose client stands still")
def test_client_that_stands_still(hosts, folder):
    """A part of the body is never sent. 2.5.1 counts the request as running until the client goes."""
    seen = []
    for host in hosts:
        exchange(host.control, add("still", url=f"file://{folder}/disk-{host.generation.name}", ops=["write"]))
        with connect(host.local) as s:
            s.sendall(put("/images/still", b"x" * MiB)[: -MiB // 2])
            host.wait("still", active=True)
            deleted = exchange(host.control, request("DELETE", "/tickets/still")).status
            known = exchange(host.control, get("/tickets/still"))
            seen.append((deleted, known.status, known.status == 200 and json.loads(known.body)["active"]))
        while exchange(host.control, request("DELETE", "/tickets/still")).status != 204:
            pass
    assert seen == [(409, 200, True), (204, 404, False)]


@holds("`transferred` of a ticket to write", "`transferred` of a ticket to read")
def test_transferred(hosts, folder):
    """Reads and checksums do not count in what was written, nor checksums in what was read."""
    counts = []
    for host in hosts:
        for ops in (["write"], ["read"]):
            exchange(host.control, add("count", url=f"file://{folder}/disk-{host.generation.name}", ops=ops))
            exchange(host.local, get("/images/count/checksum"))
            counts.append(host.ticket("count")["transferred"])
    assert counts == [MiB, MiB, 0, 0]
