# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of extents: what is data, what is zero, and what changed since a checkpoint."""

from __future__ import annotations

import uuid

import pytest

from conformance.server import expect, expect_alive, expect_error, require
from conformance.storage import IMAGE_DATA, Volume, qemu_img, qemu_nbd

CHAPTER = "GET /images/{id}/extents"

KIB64 = 65536


@pytest.mark.parametrize("query", ["", "?context=zero"])
def test_zero_extents(client, reading, image, query):
    """Zero extents cover the image in order, without gaps or overlaps, neighbours merged."""
    response = expect(client.get(f"{reading}/extents{query}"), 200, headers={"Content-Type": "application/json"})
    _check(response.json(), image, {"start", "length", "zero", "hole"})


def test_data_and_zeroes(client, grants, images):
    """Ranges that were never written read as zero, all others are data."""
    path = f"/images/{grants.add(images['nbd'])}"
    extents = expect(client.get(f"{path}/extents"), 200).json()
    found = tuple((extent["start"], extent["length"]) for extent in extents if not extent["zero"])
    require(found == IMAGE_DATA, f"data are at {found}, expected {IMAGE_DATA}")


@pytest.mark.parametrize("kind", ["nbd", "http"])
def test_holes(client, grants, server, kind):
    """A hole is what is not allocated in a qcow2 image; clusters of zeroes are zero and no hole."""
    path = server.folder / f"holes-{uuid.uuid4()}"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "1M")
    with qemu_nbd(path, "--allocation-depth", fmt="qcow2") as url:
        volume = Volume(kind, path, url, 1048576)
        writing = f"/images/{grants.add(volume, ('write',))}"
        expect(client.put(writing, b"x" * KIB64), 200)
        zero = {"op": "zero", "offset": 2 * KIB64, "size": KIB64}
        expect(client.put_json(writing, zero, method="PATCH"), 200)
        expected = [
            {"start": 0, "length": KIB64, "zero": False, "hole": False},
            {"start": KIB64, "length": KIB64, "zero": True, "hole": True},
            {"start": 2 * KIB64, "length": KIB64, "zero": True, "hole": False},
            {"start": 3 * KIB64, "length": 13 * KIB64, "zero": True, "hole": True},
        ]
        expect(client.get(f"{writing}/extents"), 200, document=expected)
        grants.remove_all()


def test_ticket_bounds_extents(client, grants, image):
    """Extents show no more than the ticket's size."""
    path = f"/images/{grants.add(image, size=2 * 1048576)}"
    extents = expect(client.get(f"{path}/extents"), 200).json()
    end = extents[-1]["start"] + extents[-1]["length"]
    require(end == 2 * 1048576, f"the extents end at {end}, expected 2097152")


def test_no_bytes(client, grants, image):
    """A ticket for no bytes has no extents."""
    path = f"/images/{grants.add(image, size=0)}"
    expect(client.get(f"{path}/extents"), 200, document=[])


def test_head(client, reading):
    """HEAD is answered as GET, without the body."""
    expect(client.get(f"{reading}/extents", method="HEAD"), 200, headers={"Content-Type": "application/json"})
    expect_alive(client)


@pytest.mark.parametrize("query", ["?context=", "?context=used", "?context=ZERO"])
def test_unknown_context(client, anything, query):
    """An unknown context is 400 and named."""
    expect_error(client.get(f"{anything}/extents{query}"), 400, "context")


def test_dirty_without_permission(client, grants, image):
    """Dirty extents with a ticket that does not say dirty are 404."""
    expect_error(client.get(f"/images/{grants.add(image)}/extents?context=dirty"), 404)


def test_dirty_without_bitmap(client, grants, images):
    """Dirty extents of storage that has none are 404."""
    expect_error(client.get(f"/images/{grants.add(images['file'], dirty=True)}/extents?context=dirty"), 404)
    expect_alive(client)


@pytest.mark.parametrize("kind", ["nbd", "http"])
def test_dirty_extents(connect, grants, server, kind):
    """Dirty extents tell what changed since the checkpoint, and what of it reads as zero."""
    path = server.folder / f"dirty-{uuid.uuid4()}"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "1M")
    qemu_img("bitmap", "--add", str(path), "checkpoint")
    with qemu_nbd(path, fmt="qcow2") as url:
        volume = Volume("nbd", path, url, 1048576)
        filling = f"/images/{grants.add(volume, ('write',))}"
        client = connect()
        for offset in (KIB64, 2 * KIB64, 8 * KIB64):
            field = ("Content-Range", f"bytes {offset}-{offset + KIB64 - 1}/*")
            expect(client.put(filling, b"x" * KIB64, field), 200)
        grants.remove_all()
    with qemu_nbd(path, "--bitmap=checkpoint", "--read-only", fmt="qcow2") as url:
        ticket = grants.add(Volume(kind, path, url, 1048576), dirty=True)
        expected = [
            {"start": 0, "length": KIB64, "dirty": False, "zero": True},
            {"start": KIB64, "length": 2 * KIB64, "dirty": True, "zero": False},
            {"start": 3 * KIB64, "length": 5 * KIB64, "dirty": False, "zero": True},
            {"start": 8 * KIB64, "length": KIB64, "dirty": True, "zero": False},
            {"start": 9 * KIB64, "length": 7 * KIB64, "dirty": False, "zero": True},
        ]
        expect(connect().get(f"/images/{ticket}/extents?context=dirty"), 200, document=expected)
        grants.remove_all()


def test_unknown_ticket(client):
    """An unknown ticket is 403."""
    expect_error(client.get(f"/images/{uuid.uuid4()}/extents"), 403)


def _check(extents, image, keys):
    position = 0
    for last, extent in zip([None, *extents], extents):
        require(set(extent) == keys, f"the extent {extent} has other keys than {sorted(keys)}")
        require(extent["start"] == position, f"the extent {extent} does not begin at {position}")
        require(extent["length"] > 0, f"the extent {extent} is empty")
        if last is not None:
            same = all(last[key] == extent[key] for key in keys - {"start", "length"})
            require(not same, f"the extents {last} and {extent} are not merged")
        if extent["zero"]:
            data = image.content(extent["start"], extent["length"])
            require(data.count(0) == len(data), f"the extent {extent} holds data")
        position += extent["length"]
    require(position == image.size, f"the extents end at {position}, expected {image.size}")
