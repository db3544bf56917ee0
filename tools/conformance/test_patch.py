# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of PATCH: zeroing and flushing."""

from __future__ import annotations

import json
import os
import uuid

import pytest

from conformance.server import expect, expect_alive, expect_error, require
from conformance.storage import DISK_SIZE, pattern

CHAPTER = "PATCH /images/{id}"


def patch(client, path, document):
    """Send a PATCH request."""
    return client.put_json(path, document, method="PATCH")


@pytest.mark.parametrize("flush", [{}, {"flush": True}, {"flush": False}])
def test_flush_of_zero(client, writing, disk, flush):
    """Zeroing may flush or not; the answer is an empty 200."""
    disk.fill(0, pattern(8192))
    response = patch(client, writing, {"op": "zero", "offset": 4096, "size": 4096, **flush})
    expect(response, 200, headers={"Content-Length": "0"}, body=b"")
    require(disk.content(0, 8192) == pattern(4096) + bytes(4096), "the image is not zeroed as it should be")


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1), (0, 512), (1, 1), (1, 511), (511, 4098), (4095, 4097), (4096, 65536), (1, 262140), (131071, 131073)],
)
def test_any_range(client, writing, disk, offset, size):
    """Any range can be zeroed; its neighbours stay as they are."""
    disk.fill(0, pattern(270000))
    expect(patch(client, writing, {"op": "zero", "offset": offset, "size": size}), 200)
    expected = bytearray(pattern(270000))
    expected[offset : offset + size] = bytes(size)
    require(disk.content(0, 270000) == expected, "the image is not zeroed as it should be")


def test_default_offset(client, scratch, disks):
    """Without an offset, zeroing begins at 0."""
    disks["file"].fill(0, pattern(1024))
    expect(patch(client, scratch, {"op": "zero", "size": 512}), 200)
    require(disks["file"].content(0, 1024) == bytes(512) + pattern(1024)[512:], "the image is not zeroed as it should")


def test_whole_image(client, writing, disk):
    """A whole large image is zeroed by one request."""
    disk.fill(0, b"first")
    disk.fill(DISK_SIZE - 4, b"last")
    expect(patch(client, writing, {"op": "zero", "size": DISK_SIZE, "flush": True}), 200)
    require(disk.content(0, 5) == bytes(5), "the beginning is not zero")
    require(disk.content(DISK_SIZE - 4, 4) == bytes(4), "the end is not zero")


def test_no_bytes(client, scratch):
    """Zeroing no bytes is 200."""
    expect(patch(client, scratch, {"op": "zero", "offset": 0, "size": 0}), 200)


@pytest.mark.parametrize(("offset", "size"), [(65536, 1), (65535, 2), (0, 65537), (2**62, 2**62)])
def test_past_end(client, grants, disk, offset, size):
    """A range that passes the ticket's end is 416 with the size, and nothing is zeroed."""
    path = f"/images/{grants.add(disk, ('write',), size=65536)}"
    disk.fill(0, pattern(65537))
    response = patch(client, path, {"op": "zero", "offset": offset, "size": size})
    expect_error(response, 416)
    expect(response, 416, headers={"Content-Range": "bytes */65536"})
    require(disk.content(0, 65537) == pattern(65537), "the image was changed")


def test_file_grows(client, grants, disks):
    """Zeroing past the end of a file that is smaller than its ticket makes it grow."""
    disk = disks["file"]
    os.truncate(disk.path, 0)
    path = f"/images/{grants.add(disk, ('write',), size=1048576)}"
    expect(client.put(f"{path}?flush=n", pattern(8192)), 200)
    expect(patch(client, path, {"op": "zero", "offset": 4096, "size": 75 * 4096}), 200)
    require(disk.path.read_bytes() == pattern(4096) + bytes(75 * 4096), "the file is not what was sent")


def test_flush(client, writing, disk):
    """Flushing brings to stable storage what was acknowledged; the answer is an empty 200."""
    expect(client.put(f"{writing}?flush=n", pattern(5000)), 200)
    expect(patch(client, writing, {"op": "flush"}), 200, headers={"Content-Length": "0"}, body=b"")
    require(disk.content(0, 5000) == pattern(5000), "the image does not hold what was acknowledged")


def test_instance(client, writing):
    """Changes and flushes have an id of what acknowledged them; a flush covers what has the same one."""
    answers = [client.put(f"{writing}?flush=n", pattern(5000)), patch(client, writing, {"op": "zero", "size": 1})]
    answers.append(patch(client, writing, {"op": "flush"}))
    found = {expect(answer, 200).header("Imageio-Instance") for answer in answers}
    require(None not in found, "Imageio-Instance is absent")
    require(len(found) == 1, f"Imageio-Instance is not the same in all answers: {sorted(map(str, found))}")


def test_no_content_type_needed(client, scratch):
    """No Content-Type is needed, and any does."""
    for fields in ([], [("Content-Type", "application/x-www-form-urlencoded")], [("Content-Type", "application/json")]):
        expect(client.request("PATCH", scratch, headers=fields, body=b'{"op": "flush"}'), 200)


def test_unknown_keys(client, scratch):
    """Unknown keys are ignored."""
    expect(patch(client, scratch, {"op": "flush", "new": [1]}), 200)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({}, "op"),
        ({"op": None}, "op"),
        ({"op": 1}, "op"),
        ({"op": "read"}, "op"),
        ({"op": "zero"}, "size"),
        ({"op": "zero", "size": None}, "size"),
        ({"op": "zero", "size": "1"}, "size"),
        ({"op": "zero", "size": True}, "size"),
        ({"op": "zero", "size": 1.5}, "size"),
        ({"op": "zero", "size": -1}, "size"),
        ({"op": "zero", "size": 1, "offset": -1}, "offset"),
        ({"op": "zero", "size": 1, "offset": "0"}, "offset"),
        ({"op": "zero", "size": 1, "offset": False}, "offset"),
        ({"op": "zero", "size": 1, "flush": 1}, "flush"),
        ({"op": "zero", "size": 1, "flush": "y"}, "flush"),
        ({"op": "zero", "size": 1, "flush": None}, "flush"),
    ],
    ids=str,
)
def test_wrong_key(client, scratch, disks, document, word):
    """A key that is missing or of a wrong type is 400, and the text names it."""
    disks["file"].fill(0, b"x")
    expect_error(patch(client, scratch, document), 400, word)
    require(disks["file"].content(0, 1) == b"x", "the image was changed")
    expect_alive(client)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"flush",
        b"null",
        b"[]",
        b'"flush"',
        b"1",
        b'{"op": "flush"',
        b"\xff\xfe",
        b"[" * 60000,
        b'{"op":' * 10000,
        b'{"op": "zero", "size": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_no_object(client, scratch, body):
    """A body that is no JSON object is 400, also one that nests deep."""
    expect_error(patch(client, scratch, body), 400)
    expect_alive(client)


def test_large_document(client, scratch):
    """A document over 64 KiB is 413."""
    expect_error(patch(client, scratch, json.dumps({"op": "flush", "x": "x" * 65536}).encode()), 413)


def test_read_ticket(connect, grants, images):
    """A ticket to read is 403."""
    path = f"/images/{grants.add(images['file'])}"
    expect_error(patch(connect(), path, {"op": "zero", "size": 512}), 403)
    expect_error(patch(connect(), path, {"op": "flush"}), 403)


def test_unknown_ticket(client):
    """An unknown ticket is 403."""
    expect_error(patch(client, f"/images/{uuid.uuid4()}", {"op": "flush"}), 403)


def test_sparse_ticket(client, grants, disks):
    """With a sparse ticket zeroing deallocates; without, the range stays allocated."""
    for sparse in (False, True):
        disk = disks["file"]
        disk.clear()
        disk.fill(0, pattern(1048576))
        path = f"/images/{grants.add(disk, ('write',), sparse=sparse)}"
        expect(patch(client, path, {"op": "zero", "offset": 0, "size": 1048576, "flush": True}), 200)
        allocated = disk.path.stat().st_blocks * 512
        if sparse:
            require(allocated < 1048576, f"{allocated} bytes are allocated after zeroing with a sparse ticket")
        else:
            require(allocated >= 1048576, f"only {allocated} bytes are allocated after zeroing")
