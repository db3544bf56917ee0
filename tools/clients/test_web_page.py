# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The web administration page: uploads in pieces, resumed ones, and downloads by a hidden frame.

Source: oVirt/ovirt-engine, ovirt-engine-4.5.7-57-g0111fc63036, frontend/webadmin/modules/uicommonweb,
    - UploadImageHandler.java: the pieces, their fields, and what is read from the answers.
    - DownloadImageHandler.java: the frame.
    - UploadImageModel.java: the test of the connection.

A piece has 100 MiB (UploadImageChunkSizeKB); here it is smaller. Each but the last has ``?flush=n``, the last one
``?close=y``. The statuses 200, 204 and 206 are success; a field Range in the answer would say how many bytes were
taken. A failed piece is sent again three times, then the upload is paused. It goes on at what the
monitor saw transferred. The page is of the engine, so a browser asks first whether it may. It asks for each URL: before
the first piece and, as the query is another, before the last one (Fetch, CORS-preflight cache).
"""

from __future__ import annotations

import uuid

import pytest

from clients.host import Host, assert_content, qcow2_volume, raw_volume
from clients.wire import pieces
from conformance.storage import pattern
from imageio_testing.httppeer import HttpPeer, Response
from imageio_testing.qemu import Fill, make_image, needs_qemu
from imageio_testing.volatile import Volatile
from ovirt_imageio.common.qemu import img

PIECE = 256 * 1024
ORIGIN = "https://engine.example.com"
SIZE = 3 * PIECE + 512
DATA = pattern(SIZE)

# Fields that Chrome sends with each request of a page, beside the fields of the page.
BROWSER = (
    ("Connection", "keep-alive"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0",
    ),
    ("Accept", "*/*"),
    ("Origin", ORIGIN),
    ("Sec-Fetch-Site", "cross-site"),
    ("Sec-Fetch-Mode", "cors"),
    ("Sec-Fetch-Dest", "empty"),
    ("Referer", f"{ORIGIN}/"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "en-US,en;q=0.9,de;q=0.8"),
)


def preflight(client: HttpPeer, target: str) -> None:
    """Ask as a browser does before the first piece, and judge the answer as it does (Fetch, CORS-preflight fetch)."""
    asked = "cache-control,content-range,content-type,pragma"
    response = client.request(
        "OPTIONS",
        target,
        headers=(*BROWSER, ("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", asked)),
    )
    assert 200 <= response.status < 300
    readable(response)
    methods = {method.strip() for method in (response.header("Access-Control-Allow-Methods") or "").split(",")}
    assert methods & {"PUT", "*"}
    headers = {name.strip().lower() for name in (response.header("Access-Control-Allow-Headers") or "").split(",")}
    assert "*" in headers or headers >= set(asked.split(","))


def readable(response: Response) -> Response:
    """Return a response that a page of the engine may read.

    Raises:
        AssertionError: The browser would keep it from the page.
    """
    assert response.header("Access-Control-Allow-Origin") in ("*", ORIGIN)
    return response


def address(target: str, offset: int, length: int, total: int) -> str:
    """The target of a piece."""
    return f"{target}?{'close=y' if offset + length == total else 'flush=n'}"


def head(target: str, offset: int, length: int, total: int) -> bytes:
    """The head of a piece."""
    fields = [
        ("Host", "engine.example.com:54323"),
        ("Content-Length", str(length)),
        ("Pragma", "no-cache"),
        ("Cache-Control", "no-cache"),
        ("Content-Range", f"bytes {offset}-{offset + length - 1}/{total}"),
        ("Content-Type", "application/octet-stream"),
        *BROWSER,
    ]
    lines = [f"PUT {address(target, offset, length, total)} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode()


def send_piece(client: HttpPeer, target: str, offset: int, piece: bytes, total: int) -> None:
    """Upload a piece, and judge the answer as the page does."""
    client.send(head(target, offset, len(piece), total))
    client.send(piece)
    response = readable(client.response("PUT"))
    assert response.status in (200, 204, 206), response
    assert response.header("Range") is None


def upload(host: Host, ticket_id: str, data: bytes, start: int = 0) -> None:
    """Upload all from a start; the connection ends with the last piece."""
    target = f"/images/{ticket_id}"
    asked = set()
    with host.connect() as client:
        for offset, piece in pieces(data[start:], PIECE):
            url = address(target, start + offset, len(piece), len(data))
            if url not in asked:
                preflight(client, url)
            asked.add(url)
            send_piece(client, target, start + offset, piece, len(data))
        assert client.ended()


@pytest.fixture(params=["host", "proxy"])
def door(request, host, engine_host):
    """The daemon that the page talks to: the engine's, if transfers go by the proxy."""
    return host if request.param == "host" else engine_host


def add_ticket(door: Host, host: Host, url: str, size: int, ops: list[str], **keys: object) -> str:
    """Add a ticket to the host, and to the proxy if the page talks to that."""
    ticket_id = host.add_ticket(url, size, ops, **keys)
    if door is not host:
        door.add_ticket(host.image_url(ticket_id), size, ops, uuid=ticket_id, **keys)
    return ticket_id


@needs_qemu
def test_qcow2_is_uploaded_to_file_storage(door, host, tmp_path):
    """The volume is smaller than the image, and grows piece by piece."""
    make_image(tmp_path / "image", "qcow2", 64 << 20, [Fill(0, PIECE, 1), Fill(32 << 20, 3 * PIECE, 2)])
    data = (tmp_path / "image").read_bytes()
    assert len(data) > 4 * PIECE
    ticket_id = add_ticket(door, host, qcow2_volume(tmp_path / "volume", 64 << 20), len(data), ["write"])
    upload(door, ticket_id, data)
    assert_content(host, tmp_path / "volume", data)
    assert img.compare(str(tmp_path / "image"), str(tmp_path / "volume"), fmt_a="qcow2", fmt_b="qcow2")
    info = host.ticket(ticket_id)
    assert (info["transferred"], info["active"]) == (len(data), False)


def test_iso_is_uploaded_to_a_volume_of_its_size(door, host, tmp_path):
    ticket_id = add_ticket(door, host, raw_volume(tmp_path / "volume", SIZE), SIZE, ["write"], sparse=True)
    upload(door, ticket_id, DATA)
    assert_content(host, tmp_path / "volume", DATA)


def test_last_piece_brings_all_to_stable_storage(door, host):
    """The pieces before it are not flushed; a host that then loses power loses nothing."""
    with Volatile(SIZE) as disk:
        ticket_id = add_ticket(door, host, disk.url, SIZE, ["write"])
        upload(door, ticket_id, DATA)
        assert disk.stable == DATA
        assert host.remove_ticket(ticket_id) < 300


def test_upload_is_resumed_at_what_was_transferred(door, host, tmp_path):
    """Bytes that the monitor saw are in the volume: the page goes on behind them."""
    ticket_id = add_ticket(door, host, raw_volume(tmp_path / "volume", 0), SIZE, ["write"])
    target = f"/images/{ticket_id}"
    with door.connect() as client:
        preflight(client, address(target, 0, PIECE, SIZE))
        send_piece(client, target, 0, DATA[:PIECE], SIZE)
        client.send(head(target, PIECE, PIECE, SIZE))
        client.send(DATA[PIECE : PIECE + 65536])
        client.reset()
    seen = settled(host, ticket_id)
    assert PIECE <= seen <= PIECE + 65536
    assert (tmp_path / "volume").read_bytes()[:seen] == DATA[:seen]
    upload(door, ticket_id, DATA, seen)
    assert_content(host, tmp_path / "volume", DATA)


def test_failed_piece_is_sent_again(door, host, tmp_path):
    """The page repeats a piece on a new connection, from its beginning."""
    ticket_id = add_ticket(door, host, raw_volume(tmp_path / "volume", 0), SIZE, ["write"])
    target = f"/images/{ticket_id}"
    with door.connect() as client:
        client.send(head(target, 0, PIECE, SIZE))
        client.send(DATA[:1000])
        client.reset()
    upload(door, ticket_id, DATA)
    assert_content(host, tmp_path / "volume", DATA)


def test_refusal_has_a_status(host):
    """The page tells the user the status and the text; 2.5.1 keeps both from it, for lack of a field."""
    with host.connect() as client:
        client.send(head(f"/images/{uuid.uuid4()}", 0, 1, SIZE))
        client.send(b"x")
        response = client.response("PUT")
    assert response.status == 403
    if host.generation.name == "ours":
        readable(response)


def test_connection_is_tested(host):
    """GWT gives a request without fields a Content-Type."""
    with host.connect() as client:
        fields = (*BROWSER, ("Content-Type", "text/plain; charset=utf-8"))
        response = readable(client.request("GET", "/info/", headers=fields))
    assert response.status == 200
    assert response.json()["version"]


def test_frame_downloads_a_file_with_a_name(door, host, tmp_path):
    """A navigation has no Origin; a browser keeps what has the disposition of an attachment."""
    url = raw_volume(tmp_path / "volume", SIZE, DATA)
    ticket_id = add_ticket(door, host, url, SIZE, ["read"], filename="disk 1.raw")
    fields = (
        ("Connection", "keep-alive"),
        ("Upgrade-Insecure-Requests", "1"),
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Dest", "iframe"),
        ("Referer", f"{ORIGIN}/"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
    )
    with door.connect() as client:
        response = client.request("GET", f"/images/{ticket_id}?close=y", headers=fields)
        assert client.ended()
    assert response.status == 200
    assert (response.header("Content-Disposition") or "").startswith("attachment; filename=")
    assert "disk 1.raw" in str(response.header("Content-Disposition"))
    assert response.header("Content-Encoding") is None
    assert response.body == DATA
    info = host.ticket(ticket_id)
    assert (info["transferred"], info["active"]) == (SIZE, False)


def settled(host: Host, ticket_id: str) -> int:
    """Return what was transferred once nothing is active, as the page waits for a paused transfer."""
    return int(host.wait(ticket_id, active=False)["transferred"])
