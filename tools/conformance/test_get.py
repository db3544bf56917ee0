# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of GET and HEAD: the image, or exactly the range that was asked for."""

from __future__ import annotations

import re
import uuid
from urllib.parse import unquote

import pytest

from conformance.server import expect, expect_alive, expect_end, expect_error, head_of, require
from conformance.storage import IMAGE_SIZE

CHAPTER = "GET /images/{id}"

LAST = IMAGE_SIZE - 1


def test_whole_image(client, reading, image):
    """Without a range the answer is 200 and the whole image."""
    expect(
        client.get(reading),
        200,
        headers={
            "Content-Type": "application/octet-stream",
            "Content-Length": str(IMAGE_SIZE),
            "Content-Disposition": "attachment",
            "Content-Range": None,
            "Transfer-Encoding": None,
        },
        body=image.content(),
    )


def test_every_response_names_server_and_date(client, reading):
    """Every response carries Server: imageio/VERSION and Date."""
    for path in (reading, f"/images/{uuid.uuid4()}"):
        response = client.get(path, ("Range", "bytes=0-0"))
        name = response.header("Server") or ""
        require(re.fullmatch(r"imageio/\S+", name), f"Server is {name!r}, expected imageio/VERSION")
        date = response.header("Date") or ""
        require(re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date), f"Date is {date!r}")


def test_not_stored(client, reading):
    """Image data may not be stored by caches, and ranges are accepted."""
    headers = {"Cache-Control": "no-store", "Accept-Ranges": "bytes"}
    expect(client.get(reading, ("Range", "bytes=0-0")), 206, headers=headers)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        (f"bytes=0-{LAST}", 0, LAST),
        ("bytes=1-511", 1, 511),
        ("bytes=511-4607", 511, 4607),
        ("bytes=4095-8191", 4095, 8191),
        ("bytes=1048575-1048576", 1048575, 1048576),
        (f"bytes={LAST}-{LAST}", LAST, LAST),
        ("bytes=6000000-", 6000000, LAST),
        (f"bytes={LAST}-", LAST, LAST),
        ("bytes=-1", LAST, LAST),
        ("bytes=-4097", LAST - 4096, LAST),
        (f"bytes=-{IMAGE_SIZE}", 0, LAST),
        (f"bytes=-{IMAGE_SIZE + 1}", 0, LAST),
        ("Bytes=0-9", 0, 9),
    ],
)
def test_range(client, reading, image, text, first, last):
    """A range is answered with 206, Content-Range, and exactly its bytes."""
    length = last - first + 1
    expect(
        client.get(reading, ("Range", text)),
        206,
        headers={
            "Content-Range": f"bytes {first}-{last}/{IMAGE_SIZE}",
            "Content-Length": str(length),
            "Content-Type": "application/octet-stream",
            "Content-Disposition": "attachment",
        },
        body=image.content(first, length),
    )


@pytest.mark.parametrize(
    "text",
    [
        "bytes=0-0,2-3",
        "bytes=0-0,",
        f"bytes=0-{IMAGE_SIZE}",
        f"bytes={IMAGE_SIZE}-",
        f"bytes={IMAGE_SIZE}-{IMAGE_SIZE}",
        f"bytes={LAST}-{IMAGE_SIZE}",
        "bytes=2-1",
        "bytes=-0",
        "bytes=-",
        "bytes=",
        "bytes=a-b",
        "bytes=1",
        "bytes=+1-2",
        "bytes=1_0-20",
        "bytes=0x1-0x2",
        "bytes=0-99999999999999999999",
        "bytes=0-" + "9" * 5000,
        "bytes",
        "bytes 0-1",
    ],
)
def test_impossible_range(client, anything, text):
    """Several ranges, a malformed one, or one that passes the end is 416 with the size, never a short image."""
    response = client.get(anything, ("Range", text))
    expect_error(response, 416)
    expect(
        response,
        416,
        headers={
            "Content-Range": f"bytes */{IMAGE_SIZE}",
            "Content-Disposition": None,
            "Accept-Ranges": None,
        },
    )
    expect_alive(client)


def test_impossible_range_with_every_storage(client, reading):
    """The size in a 416 is that of the image, whatever the storage."""
    response = client.get(reading, ("Range", f"bytes={IMAGE_SIZE}-"))
    expect(response, 416, headers={"Content-Range": f"bytes */{IMAGE_SIZE}"})


def test_repeated_range(client, anything):
    """Two Range fields are several ranges: 416."""
    expect_error(client.get(anything, ("Range", "bytes=0-0"), ("Range", "bytes=4-4")), 416)


@pytest.mark.parametrize("text", ["lines=0-1", "seconds=1-2", "x-blocks=1"])
def test_unknown_unit(client, anything, text):
    """A range of an unknown unit has no effect."""
    expect(client.get(anything, ("Range", text)), 200, headers={"Content-Length": str(IMAGE_SIZE)})


@pytest.mark.parametrize("text", ['"etag"', "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_if_range(client, anything, text):
    """There are no validators, so If-Range never holds: the whole image."""
    response = client.get(anything, ("Range", "bytes=0-1"), ("If-Range", text))
    expect(response, 200, headers={"Content-Length": str(IMAGE_SIZE), "Content-Range": None})


def test_head(client, reading):
    """HEAD is answered with the headers of GET and no body."""
    for status, headers in ((200, []), (206, [("Range", "bytes=512-1023")])):
        theirs = expect(client.get(reading, *headers), status)
        ours = expect(client.get(reading, *headers, method="HEAD"), status)
        for name, value in theirs.headers:
            if name.lower() != "date":
                expect(ours, status, headers={name: value})


def test_head_of_error(client, anything):
    """HEAD of what cannot be had has the status of GET and no body."""
    expect(client.get(anything, ("Range", "bytes=5-4"), method="HEAD"), 416)
    expect(client.get(f"/images/{uuid.uuid4()}", method="HEAD"), 403)
    expect_alive(client)


def test_never_encoded(client, anything, images):
    """Data are never compressed, whatever Accept-Encoding says."""
    response = client.get(anything, ("Range", "bytes=0-4095"), ("Accept-Encoding", "gzip, br, deflate"))
    expect(response, 206, headers={"Content-Encoding": None}, body=images["file"].content(0, 4096))


def test_close(client, anything):
    """With ?close=y the connection is closed after the response, and it says so."""
    expect(client.get(f"{anything}?close=y"), 200, headers={"Connection": "close"})
    expect_end(client)


def test_close_n(client, anything):
    """With ?close=n it stays."""
    expect(client.get(f"{anything}?close=n", ("Range", "bytes=0-1")), 206)
    expect_alive(client)


def test_filename(client, grants, images):
    """The ticket's file name is offered to a browser."""
    path = f"/images/{grants.add(images['file'], filename='disk.qcow2')}"
    response = expect(client.get(path, ("Range", "bytes=0-0")), 206)
    value = response.header("Content-Disposition") or ""
    require(
        re.fullmatch(r'attachment; filename=("disk\.qcow2"|disk\.qcow2)', value), f"Content-Disposition is {value!r}"
    )


@pytest.mark.parametrize(
    "name",
    [
        "a b.raw",
        'say "hi".raw',
        "back\\slash",
        "semi;colon=x",
        "dîsk.qcow2",
        "\u30c7\u30a3\u30b9\u30af",
        "a\r\nX-Injected: yes",
        "a\nb",
        "nul\0",
        "\x7f",
        "%2e%2e/../etc",
        "x" * 2000,
    ],
)
def test_any_filename(client, grants, images, name):
    """A file name is quoted as RFC 6266 says, whatever it holds, and cannot add headers."""
    path = f"/images/{grants.add(images['file'], filename=name)}"
    response = expect(client.get(path, ("Range", "bytes=0-0")), 206, headers={"X-Injected": None})
    value = response.header("Content-Disposition") or ""
    quoted = re.fullmatch(r'attachment; filename="((?:[^"\\]|\\.)*)"(?:; filename\*=UTF-8\'\'(\S*))?', value)
    token = re.fullmatch(r"attachment; filename=([!#$%&'*+.^_`|~0-9A-Za-z-]+)", value)
    require(quoted or token, f"Content-Disposition is {value!r}, which RFC 6266 does not know")
    if token:
        found = token[1]
    else:
        assert quoted
        found = unquote(quoted[2]) if quoted[2] is not None else re.sub(r"\\(.)", r"\1", quoted[1])
    require(found == name, f"the name is {found!r}, expected {name!r}")


def test_size_zero(client, grants, image):
    """A ticket for no bytes gives an empty 200."""
    path = f"/images/{grants.add(image, size=0)}"
    expect(client.get(path), 200, headers={"Content-Length": "0"}, body=b"")
    expect(client.get(path, ("Range", "bytes=0-0")), 416, headers={"Content-Range": "bytes */0"})


def test_ticket_bounds_image(client, grants, image):
    """A ticket smaller than the image shows only so much of it."""
    path = f"/images/{grants.add(image, size=5000)}"
    expect(client.get(path), 200, headers={"Content-Length": "5000"}, body=image.content(0, 5000))
    expect(client.get(path, ("Range", "bytes=4999-5000")), 416, headers={"Content-Range": "bytes */5000"})
    expect(client.get(path, ("Range", "bytes=-6000")), 206, headers={"Content-Range": "bytes 0-4999/5000"})


def test_image_bounds_ticket(client, grants, image):
    """An image smaller than the ticket bounds what is read."""
    path = f"/images/{grants.add(image, size=image.size + 4096)}"
    expect(client.get(path), 200, headers={"Content-Length": str(image.size)}, body=image.content())
    expect(client.get(path, ("Range", f"bytes=0-{image.size}")), 416)


@pytest.mark.parametrize("ops", [("write",), ("read", "write")])
def test_write_implies_read(client, grants, images, ops):
    """A ticket to write allows reading."""
    path = f"/images/{grants.add(images['file'], ops)}"
    expect(client.get(path, ("Range", "bytes=0-9")), 206, body=images["file"].content(0, 10))


def test_http_1_0(client, anything):
    """HTTP/1.0 is answered, never in chunks, and then closed."""
    client.send(head_of("GET", anything, ("Range", "bytes=0-9"), version="1.0"))
    expect(client.response(), 206, headers={"Transfer-Encoding": None, "Content-Length": "10"})
    expect_end(client)


def test_absolute_target(client, anything):
    """A request target in absolute form means the same."""
    expect(client.get(f"http://localhost{anything}", ("Range", "bytes=0-9")), 206)


def test_encoded_path(client, anything):
    """A percent-encoded path names the same image."""
    last = anything[-1]
    expect(client.get(f"{anything[:-1]}%{ord(last):02X}", ("Range", "bytes=0-9")), 206)


def test_body_of_get(client, anything, images):
    """The body of a GET is dropped and never read as the next request."""
    smuggled = head_of("DELETE", "/images/smuggled")
    client.send(head_of("GET", anything, ("Range", "bytes=0-3"), ("Content-Length", str(len(smuggled)))) + smuggled)
    expect(client.response(), 206, body=images["file"].content(0, 4))
    expect_alive(client)


def test_missing_storage(client, grants):
    """An image that cannot be opened is 500; the reason stays in the server's log."""
    path = f"/images/{grants.put(url='file:///nowhere/at/all', size=4096, ops=['read'])}"
    response = expect_error(client.get(path), 500)
    require("nowhere" not in response.text, f"the text {response.text!r} tells a path of the host")
    expect_alive(client)
