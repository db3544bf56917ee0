# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of PUT: what was acknowledged is written, and nothing else is."""

from __future__ import annotations

import os
import uuid

import pytest

from conformance.server import expect, expect_alive, expect_end, expect_error, half_close, head_of, require
from conformance.storage import DISK_SIZE, pattern
from imageio_testing.httppeer import ConnectionEnded, chunked

CHAPTER = "PUT /images/{id}"

GIB4 = 4 * 1024**3


def put_range(first: int, last: int, total: str = "*") -> tuple[str, str]:
    """Write a Content-Range field."""
    return ("Content-Range", f"bytes {first}-{last}/{total}")


@pytest.mark.parametrize("length", [1, 511, 512, 4095, 4096, 4097, 131072, 131073, 1048577, 3 * 1024**2 + 1])
def test_any_size(client, writing, disk, length):
    """A body of any size is written at the beginning, and the answer is an empty 200."""
    data = pattern(length)
    disk.fill(length, b"!")
    expect(client.put(writing, data), 200, headers={"Content-Length": "0", "Range": None}, body=b"")
    require(disk.content(0, length) == data, "the image does not hold what was acknowledged")
    require(disk.content(length, 1) == b"!", "the byte behind the body was changed")


@pytest.mark.parametrize("length", [1, 4097, 131075])
@pytest.mark.parametrize("offset", [1, 511, 4095, 4097, GIB4 - 1, GIB4 + 513, DISK_SIZE - 131075])
def test_any_offset(client, writing, disk, offset, length):
    """FIRST of Content-Range is the offset, whatever it is, past 4 GiB too; neighbours stay as they are."""
    data = pattern(length)
    disk.fill(offset - 1, b"\x11")
    if offset + length < DISK_SIZE:
        disk.fill(offset + length, b"\x22")
    expect(client.put(writing, data, put_range(offset, offset + length - 1)), 200, body=b"")
    require(disk.content(offset, length) == data, "the image does not hold what was acknowledged")
    require(disk.content(offset - 1, 1) == b"\x11", "the byte before the range was changed")
    if offset + length < DISK_SIZE:
        require(disk.content(offset + length, 1) == b"\x22", "the byte behind the range was changed")


@pytest.mark.parametrize(
    "text",
    ["bytes 512-1023/*", "bytes 512-1023/1024", "bytes 512-1023/9999999999", "bytes 512-*/*", "bytes 512-*/4096"],
)
def test_content_range(client, scratch, disks, text):
    """LAST and the total of Content-Range may be *; the total is not compared with the image."""
    data = pattern(512)
    expect(client.put(scratch, data, ("Content-Range", text)), 200)
    require(disks["file"].content(0, 1536) == bytes(512) + data + bytes(512), "the range is not what was written")


@pytest.mark.parametrize("total", ["511", "1", "0"])
def test_last_past_total(client, scratch, disks, total):
    """A LAST at or past the total is 400, and nothing is written."""
    expect_error(client.put(scratch, pattern(512), put_range(0, 511, total)), 400)
    require(disks["file"].content(0, 1024) == bytes(1024), "the image was changed")


def test_chunked_last_past_total(client, scratch, disks):
    """A LAST at or past the total is 400 for a body in chunks as well, and nothing is written."""
    client.send(head_of("PUT", scratch, ("Transfer-Encoding", "chunked"), put_range(0, 511, "511")))
    expect_error(client.response(), 400)
    require(disks["file"].content(0, 1024) == bytes(1024), "the image was changed")


@pytest.mark.parametrize("last", [510, 512, 0, 99999])
def test_contradicting_last(client, scratch, disks, last):
    """A LAST that contradicts Content-Length is 400, and nothing is written."""
    expect_error(client.put(scratch, pattern(512), put_range(0, last)), 400)
    require(disks["file"].content(0, 1024) == bytes(1024), "the image was changed")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes 0-",
        "bytes 0-511",
        "bytes */512",
        "bytes -512/*",
        "bytes 511-0/*",
        "bytes=0-511/*",
        "bytes a-b/*",
        "bytes 0x0-0x1ff/*",
        "bytes +0-511/*",
        "bytes 0-511/x",
        "lines 0-511/*",
        "bytes 0-511/*, bytes 512-1023/*",
        "bytes " + "9" * 5000 + "-*/*",
    ],
)
def test_malformed_content_range(client, scratch, disks, text):
    """A malformed Content-Range is 400, and nothing is written."""
    expect_error(client.put(scratch, pattern(512), ("Content-Range", text)), 400)
    require(disks["file"].content(0, 1024) == bytes(1024), "the image was changed")


@pytest.mark.parametrize("coding", ["gzip", "DEFLATE", "zstd", "identity, br"])
def test_compressed(client, scratch, disks, coding):
    """A compressed body is 415, and nothing is written: an image is written as it comes."""
    fields = [("Content-Encoding", coding)]
    expect(expect_error(client.put(scratch, pattern(512), *fields), 415), 415, headers={"Accept-Encoding": "identity"})
    require(disks["file"].content(0, 1024) == bytes(1024), "the image was changed")


@pytest.mark.parametrize("coding", ["identity", "", "utf-8", "binary"])
def test_content_encoding_that_is_no_coding(client, scratch, disks, coding):
    """A Content-Encoding that names no compression has no effect."""
    expect(client.put(scratch, pattern(512), ("Content-Encoding", coding)), 200)
    require(disks["file"].content(0, 512) == pattern(512), "the image is not what was sent")


def test_no_length(client, scratch):
    """Neither Content-Length nor Transfer-Encoding is 411."""
    expect_error(client.get(scratch, method="PUT"), 411)


def test_storage_that_can_only_be_read(client, unwritable):
    """A ticket for writing on storage that can only be read serves reads; writes are 403."""
    expect(client.get(unwritable, ("Range", "bytes=0-511")), 206)
    expect_error(client.put(unwritable, pattern(512)), 403)
    expect_error(client.put_json(unwritable, {"op": "zero", "size": 512}, method="PATCH"), 403)
    expect(client.put_json(unwritable, {"op": "flush"}, method="PATCH"), 200)


def test_empty_body(client, scratch, disks):
    """A body of no bytes is 200 and changes nothing."""
    expect(client.put(scratch, b""), 200, body=b"")
    require(disks["file"].content(0, 512) == bytes(512), "the image was changed")


def test_both_lengths(client, scratch, disks):
    """Content-Length and Transfer-Encoding together are 400, and the connection ends."""
    client.send(
        head_of("PUT", scratch, ("Content-Length", "5"), ("Transfer-Encoding", "chunked")) + chunked(pattern(5))
    )
    expect_error(client.response(), 400)
    expect_end(client)
    require(disks["file"].content(0, 5) == bytes(5), "the image was changed")


@pytest.mark.parametrize("sizes", [(1,), (4096,), (1, 511, 4095, 131072, 70001), (1048576, 1048576)])
def test_chunked(client, writing, disk, sizes):
    """A body in chunks of any size is written, and the connection stays."""
    data = pattern(sum(sizes))
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    client.send(head_of("PUT", writing, ("Transfer-Encoding", "chunked")) + chunked(*pieces))
    expect(client.response(), 200, body=b"")
    require(disk.content(0, len(data) + 1) == data + b"\0", "the image does not hold the body")
    expect_alive(client)


def test_chunked_at_offset(client, writing, disk):
    """A body in chunks may have an offset."""
    data = pattern(70000)
    fields = (("Transfer-Encoding", "chunked"), ("Content-Range", "bytes 4097-*/*"))
    client.send(head_of("PUT", writing, *fields) + chunked(data[:5], data[5:]))
    expect(client.response(), 200, body=b"")
    require(disk.content(4096, len(data) + 2) == b"\0" + data + b"\0", "the image does not hold the body")


def test_empty_chunked(client, scratch):
    """A body of no chunks is 200."""
    client.send(head_of("PUT", scratch, ("Transfer-Encoding", "chunked")) + chunked())
    expect(client.response(), 200)
    expect_alive(client)


def test_chunk_extensions_and_trailers(client, scratch, disks):
    """Chunk extensions and trailers are ignored."""
    body = b'5;name="value"\r\nhello\r\n0;last\r\nX-Trailer: value\r\n\r\n'
    client.send(head_of("PUT", scratch, ("Transfer-Encoding", "chunked")) + body)
    expect(client.response(), 200)
    expect_alive(client)
    require(disks["file"].content(0, 6) == b"hello\0", "the image does not hold the body")


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"\r\n",
        b"5\nhello\n0\n\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"5" + b";x" * 100000 + b"\r\nhello\r\n0\r\n\r\n",
    ],
    ids=["letter", "sign", "prefix", "empty", "line-feeds", "too-long", "overflow", "extension"],
)
def test_malformed_chunks(client, scratch, body):
    """Malformed chunks are 400, and the connection ends."""
    client.send(head_of("PUT", scratch, ("Transfer-Encoding", "chunked")) + body)
    expect_error(client.response(), 400)
    expect_end(client)


def test_chunks_past_end(client, grants, disk):
    """Chunks that pass the end of the ticket are 416, nothing is written there, and the connection ends."""
    path = f"/images/{grants.add(disk, ('write',), size=131072)}"
    client.send(head_of("PUT", path, ("Transfer-Encoding", "chunked")) + chunked(pattern(131072), b"past the end"))
    response = expect_error(client.response(), 416)
    expect(response, 416, headers={"Content-Range": "bytes */131072"})
    expect_end(client)
    require(disk.content(131072, 512) == bytes(512), "the image was changed past the end of the ticket")


@pytest.mark.parametrize("length", [511, 513])
def test_chunks_that_contradict_range(client, scratch, length):
    """Chunks that are fewer or more than the bytes of Content-Range are 400, and the connection ends."""
    fields = (("Transfer-Encoding", "chunked"), put_range(0, 511))
    client.send(head_of("PUT", scratch, *fields) + chunked(pattern(length)))
    expect_error(client.response(), 400, "Content-Range")
    expect_end(client)


@pytest.mark.parametrize("query", ["", "?flush=y", "?flush=n", "?flush=n&close=n", "?unknown=1"])
def test_flush(client, writing, disk, query):
    """The query flush is y or n; unknown parameters have no effect."""
    expect(client.put(writing + query, pattern(5000)), 200)
    require(disk.content(0, 5000) == pattern(5000), "the image does not hold the body")


@pytest.mark.parametrize("query", ["?flush=yes", "?flush=", "?flush=Y", "?flush=1"])
def test_malformed_flush(client, scratch, disks, query):
    """Any other value of flush is 400, names it, and nothing is written."""
    expect_error(client.put(scratch + query, pattern(512)), 400, "flush")
    require(disks["file"].content(0, 512) == bytes(512), "the image was changed")


def test_close(client, scratch):
    """With ?close=y the connection is closed after the response, and it says so."""
    expect(client.put(f"{scratch}?flush=n&close=y", pattern(512)), 200, headers={"Connection": "close"})
    expect_end(client)


def test_expectation(client, scratch, disks):
    """A client that expects 100-continue is told to go on."""
    client.send(head_of("PUT", scratch, ("Content-Length", "4096"), ("Expect", "100-continue")))
    require(client.head().status == 100, "no 100 (Continue) came")
    client.send(pattern(4096))
    expect(client.response(), 200)
    require(disks["file"].content(0, 4096) == pattern(4096), "the image does not hold the body")


def test_refused_expectation(client, anything):
    """A refusal comes in place of 100-continue, before the body is asked for."""
    client.send(head_of("PUT", anything, ("Content-Length", str(1024**4)), ("Expect", "100-continue")))
    response = client.head()
    require(response.status == 403, f"the status is {response.status}, expected 403")


@pytest.mark.parametrize(("first", "length"), [(65536, 1), (65535, 2), (61440, 4097), (0, 1048576), (2**62, 512)])
def test_past_end(client, grants, disk, first, length):
    """A range that passes the ticket's end is 416 with the size, and nothing is written."""
    path = f"/images/{grants.add(disk, ('write',), size=65536)}"
    response = client.put(path, pattern(length), put_range(first, first + length - 1))
    expect_error(response, 416)
    expect(response, 416, headers={"Content-Range": "bytes */65536"})
    require(disk.content(0, 2 * 1048576) == bytes(2 * 1048576), "the image was changed")


def test_past_end_of_image(client, grants, disk):
    """A range that passes the end of what is no file is 416, though the ticket allows it."""
    if disk.kind == "file":
        pytest.skip("a file grows")
    path = f"/images/{grants.add(disk, ('write',), size=DISK_SIZE + 4096)}"
    response = client.put(path, pattern(1024), put_range(DISK_SIZE - 512, DISK_SIZE + 511))
    expect_error(response, 416)
    require(disk.content(DISK_SIZE - 512, 512) == bytes(512), "the image was changed")


def test_file_grows(client, grants, disks):
    """A file that is smaller than its ticket grows, by pieces as the web page sends them, and no further."""
    disk, size = disks["file"], 3 * 65536
    os.truncate(disk.path, 0)
    path = f"/images/{grants.add(disk, ('write',), size=size)}"
    total = f"/{size}"
    for first in (0, 65536):
        fields = ("Content-Range", f"bytes {first}-{first + 65535}{total}")
        expect(client.put(f"{path}?flush=n", pattern(65536, first), fields), 200)
    last = ("Content-Range", f"bytes 131072-{size - 1}{total}")
    expect(client.put(f"{path}?close=y", pattern(65536, 131072), last), 200)
    expected = b"".join(pattern(65536, first) for first in (0, 65536, 131072))
    require(disk.path.read_bytes() == expected, "the file is not what was sent")


def test_file_grows_by_a_whole_body(client, grants, disks):
    """A body without Content-Range is written to an empty file, as terraform sends it."""
    disk = disks["file"]
    os.truncate(disk.path, 0)
    path = f"/images/{grants.add(disk, ('write',), size=1048576)}"
    data = pattern(75 * 4096)
    expect(client.put(path, data), 200)
    require(disk.path.read_bytes() == data, "the file is not what was sent")
    expect(client.get(path), 200, body=data)


def test_read_ticket(client, grants, images):
    """A ticket to read is 403, and nothing is written."""
    before = images["file"].content(0, 512)
    path = f"/images/{grants.add(images['file'])}"
    expect_error(client.put(path, bytes(512)), 403)
    require(images["file"].content(0, 512) == before, "the image was changed")


def test_unknown_ticket(client):
    """An unknown ticket is 403."""
    expect_error(client.put(f"/images/{uuid.uuid4()}", bytes(512)), 403)
    expect_alive(client)


@pytest.mark.parametrize("case", ["unknown ticket", "read ticket", "range"])
def test_refusal_is_delivered(connect, grants, images, disks, case):
    """An upload that is refused is answered while the client still sends, and the answer can be read."""
    fields = [("Content-Length", str(1024**3))]
    if case == "unknown ticket":
        path, status = f"/images/{uuid.uuid4()}", 403
    elif case == "read ticket":
        path, status = f"/images/{grants.add(images['file'])}", 403
    else:
        path, status = f"/images/{grants.add(disks['file'], ('write',), size=4096)}", 416
    for _ in range(3):
        client = connect()
        client.send(head_of("PUT", path, *fields))
        piece = pattern(1 << 18)
        sent = 0
        try:
            while sent < 1 << 25:
                client.send(piece)
                sent += len(piece)
        except OSError:
            pass  # the server has had enough: the answer must be here all the same
        try:
            response = client.response()
        except (ConnectionEnded, OSError) as e:
            require(False, f"no answer can be read after {sent} bytes were sent: {type(e).__name__}: {e}")
        expect_error(response, status)
        client.close()


def test_vanished_client(connect, disk, grants):
    """A client that vanishes in the middle of a body ends its operation and leaves the image writable."""
    ticket = grants.add(disk, ("write",))
    client = connect()
    client.send(head_of("PUT", f"/images/{ticket}", ("Content-Length", "1048576")) + pattern(300000))
    client.close()
    for _ in range(1000):
        if not grants.info(ticket)["active"]:
            break
    expect(connect().put(f"/images/{ticket}", pattern(1048576, 3)), 200)
    require(disk.content(0, 1048576) == pattern(1048576, 3), "the image does not hold what was acknowledged")


def test_short_body(client, scratch):
    """A body that ends before its length is never acknowledged."""
    client.send(head_of("PUT", scratch, ("Content-Length", "200000")) + pattern(1000))
    half_close(client)
    try:
        response = client.response()
    except (ConnectionEnded, OSError):
        return
    expect_error(response, 400)


def test_parallel_uploads(connect, writing, disk):
    """Several connections write pieces of an image side by side."""
    clients = [connect() for _ in range(4)]
    length = 75 * 4096
    for number, client in enumerate(clients):
        first = number * length
        head = head_of("PUT", writing, ("Content-Length", str(length)), put_range(first, first + length - 1))
        client.send(head + pattern(length, number))
    for number, client in enumerate(clients):
        expect(client.response(), 200)
        require(disk.content(number * length, length) == pattern(length, number), f"upload {number} is not there")
