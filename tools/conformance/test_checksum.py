# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of checksums: the digest of the digests of equal blocks."""

from __future__ import annotations

import hashlib
import uuid

import pytest

from conformance.server import expect, expect_alive, expect_error, require
from conformance.storage import IMAGE_SIZE

CHAPTER = "GET /images/{id}/checksum"

MIB = 1024**2


def digest(name: str, data: bytes = b"") -> bytes:
    """Digest data; blake2 with 32 bytes."""
    if name in ("blake2b", "blake2s"):
        digest_of: bytes = getattr(hashlib, name)(data, digest_size=32).digest()
        return digest_of
    return hashlib.new(name, data).digest()


def block_digests(data: bytes, name: str = "blake2b", block_size: int = 4 * MIB) -> list[bytes]:
    """Digest every block."""
    return [digest(name, data[start : start + block_size]) for start in range(0, len(data), block_size)]


def block_hash(data: bytes, name: str = "blake2b", block_size: int = 4 * MIB) -> str:
    """Compute the digest of the digests."""
    return digest(name, b"".join(block_digests(data, name, block_size))).hex()


def test_defaults(client, reading, image):
    """By default blake2b with digests of 32 bytes over blocks of 4 MiB."""
    expected = {"algorithm": "blake2b", "block_size": 4 * MIB, "checksum": block_hash(image.content())}
    response = client.get(f"{reading}/checksum")
    expect(response, 200, headers={"Content-Type": "application/json"}, document=expected)


@pytest.mark.parametrize("name", ["blake2b", "blake2s", "sha1", "sha256", "sha512", "sha3_256", "md5"])
def test_algorithm(client, anything, images, name):
    """The algorithm can be chosen among those that the server lists."""
    listed = expect(client.get(f"{anything}/checksum/algorithms"), 200).json()["algorithms"]
    if name not in listed:
        pytest.skip(f"the server does not list {name}")
    expected = {"algorithm": name, "block_size": 4 * MIB, "checksum": block_hash(images["file"].content(), name)}
    expect(client.get(f"{anything}/checksum?algorithm={name}"), 200, document=expected)


def test_all_listed_algorithms(client, grants, images):
    """Every algorithm that is listed works."""
    path = f"/images/{grants.add(images['file'], size=MIB)}"
    for name in expect(client.get(f"{path}/checksum/algorithms"), 200).json()["algorithms"]:
        document = expect(client.get(f"{path}/checksum?algorithm={name}"), 200).json()
        require(document["algorithm"] == name, f"the document {document} is not of {name}")


def test_algorithms_need_no_ticket(client):
    """Algorithms are listed without a ticket, the default among them."""
    response = expect(client.get(f"/images/{uuid.uuid4()}/checksum/algorithms"), 200)
    require("blake2b" in response.json()["algorithms"], "blake2b is not listed")


@pytest.mark.parametrize("block_size", [MIB, MIB + 4096, 2 * MIB, 16 * MIB])
def test_block_size(client, anything, images, block_size):
    """Blocks have 1 to 16 MiB, in steps of 4096 bytes; the last may be short."""
    expected = {
        "algorithm": "blake2b",
        "block_size": block_size,
        "checksum": block_hash(images["file"].content(), block_size=block_size),
    }
    expect(client.get(f"{anything}/checksum?block_size={block_size}"), 200, document=expected)


@pytest.mark.parametrize("text", ["0", "-1", "4096", str(MIB - 4096), str(MIB + 1), str(16 * MIB + 4096), "1m", ""])
def test_wrong_block_size(client, anything, text):
    """Any other block size is 400."""
    expect_error(client.get(f"{anything}/checksum?block_size={text}"), 400)
    expect_alive(client)


@pytest.mark.parametrize("name", ["", "none", "shake_128", "BLAKE2B", "x" * 2000])
def test_unknown_algorithm(client, anything, name):
    """An algorithm that is not listed is 400."""
    expect_error(client.get(f"{anything}/checksum?algorithm={name}"), 400)
    expect_alive(client)


def test_ticket_bounds_checksum(client, grants, image):
    """A checksum sees no more than the ticket's size."""
    path = f"/images/{grants.add(image, size=4 * MIB + 512)}"
    document = expect(client.get(f"{path}/checksum"), 200).json()
    expected = block_hash(image.content(0, 4 * MIB + 512))
    require(document["checksum"] == expected, f"the checksum is {document['checksum']}, expected {expected}")


def test_no_bytes(client, grants, image):
    """A ticket for no bytes has the digest of nothing."""
    document = expect(client.get(f"/images/{grants.add(image, size=0)}/checksum"), 200).json()
    require(document["checksum"] == digest("blake2b").hex(), f"the checksum is {document['checksum']}")


@pytest.mark.parametrize(("offset", "length"), [(0, 2 * MIB), (MIB, 4 * MIB), (5 * MIB, IMAGE_SIZE - 5 * MIB), (0, 0)])
def test_range(client, reading, image, offset, length):
    """With the feature checksum-range a range is digested, and its blocks are listed on demand."""
    _need_feature(client, reading)
    query = f"block_size={MIB}&offset={offset}&length={length}"
    data = image.content(offset, length)
    expected = {"algorithm": "blake2b", "block_size": MIB, "checksum": block_hash(data, block_size=MIB)}
    expect(client.get(f"{reading}/checksum?{query}"), 200, document=expected)
    expected["blocks"] = [block.hex() for block in block_digests(data, block_size=MIB)]
    expect(client.get(f"{reading}/checksum?{query}&blocks=y"), 200, document=expected)


@pytest.mark.parametrize(
    "query",
    ["offset=1", "length=1", f"offset={16 * MIB}&length={MIB}", "offset=-1", "offset=x", "blocks=1", "length=-4096"],
)
def test_wrong_range(client, anything, query):
    """With the feature checksum-range a range that is not of whole blocks of the image is 400."""
    _need_feature(client, anything)
    expect_error(client.get(f"{anything}/checksum?block_size={MIB}&{query}"), 400)


def test_unknown_ticket(client):
    """An unknown ticket is 403."""
    expect_error(client.get(f"/images/{uuid.uuid4()}/checksum"), 403)


def _need_feature(client, path):
    if "checksum-range" not in client.get(path, method="OPTIONS").json()["features"]:
        pytest.skip("the server does not announce checksum-range")
