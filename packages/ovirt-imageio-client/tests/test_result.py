# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The result that a transfer returns."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import ssl

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.qemu import Fill, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client import executor, plan
from ovirt_imageio.client import transfer as transfer_module
from ovirt_imageio.common.units import KiB, MiB

DATA = random.Random(1).randbytes(3 * MiB)
SIZE = 8 * MiB

# |  data, 3 MiB  |  zeroes written, 2 MiB  |  hole, 3 MiB  |
IMAGE = DATA + bytes(5 * MiB)
HOLE = 5 * MiB


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(plan, "SHORTEST_CUT", MiB)
    monkeypatch.setattr(executor.Retry, "pause", lambda self, failures: 0.0)


@pytest.fixture
def image(tmp_path):
    """A raw image on a file system that tells holes."""
    path = tmp_path / "image"
    with open(path, "wb") as f:
        f.write(IMAGE[:HOLE])
        f.truncate(SIZE)
    return str(path)


class Server(Image):
    """Tells the hole of the image as zero."""

    def extents(self, got, query):
        return response(
            200,
            b'[{"start": 0, "length": %d, "zero": false}, {"start": %d, "length": %d, "zero": true}]'
            % (HOLE, HOLE, SIZE - HOLE),
        )


@contextlib.contextmanager
def serving(data=IMAGE, **keys):
    with ScriptedServer(Server(bytearray(data)), **keys) as server:
        yield server


def test_upload_tells_what_it_did(image):
    with serving(bytes(b"\xff" * SIZE)) as server:
        result = client.upload(image, server.url, None)
    assert (result.moved, result.zeroed, result.skipped, result.resumed) == (len(DATA), SIZE - len(DATA), 0, 0)
    assert (result.size, result.retries, result.transport) == (SIZE, 0, "tcp")
    assert (result.verified, result.checksum, result.algorithm, result.block_size) == (False, None, None, None)
    assert result.seconds > 0


def test_upload_to_a_zero_disk_skips_zeroes_that_are_told_and_found(image):
    with serving(bytes(SIZE)) as server:
        result = client.upload(image, server.url, None, disk_is_zero=True)
    assert (result.moved, result.zeroed, result.skipped) == (len(DATA), 0, SIZE - len(DATA))


def test_download_tells_what_it_did(tmp_path):
    with serving() as server:
        result = client.download(server.url, str(tmp_path / "copy"), None, fmt="raw")
    assert (result.moved, result.zeroed, result.skipped) == (HOLE, 0, SIZE - HOLE)
    assert (tmp_path / "copy").read_bytes() == IMAGE


def test_verified_transfer_has_the_checksum_of_the_image(image, tmp_path):
    class Hashing(Server):
        FEATURES = ("extents", "flush", "zero")

    with ScriptedServer(Hashing(bytearray(SIZE), features=Hashing.FEATURES)) as server:
        up = client.upload(image, server.url, None, verify=True)
        down = client.download(server.url, str(tmp_path / "copy"), None, fmt="raw", verify=True)
    expected = client.checksum(image)
    for result in (up, down):
        assert result.verified
        assert (result.checksum, result.algorithm, result.block_size) == tuple(
            expected[key] for key in ("checksum", "algorithm", "block_size")
        )


def test_bytes_that_are_sent_again_count_once_and_attempts_are_counted(image):
    failures = [3]

    class Flaky(Server):
        def do_put(self, got, query):
            if failures[0]:
                failures[0] -= 1
                return response(503, b"busy\n")
            return super().do_put(got, query)

    with ScriptedServer(Flaky(bytearray(SIZE))) as server:
        result = client.upload(image, server.url, None, max_workers=1)
    assert result.retries == 3
    assert (result.moved, result.zeroed) == (len(DATA), SIZE - len(DATA))


def test_first_contact_counts_as_well(image):
    failures = [2]

    class Late(Server):
        def do_options(self, got, query):
            if failures[0]:
                failures[0] -= 1
                return response(503, b"busy\n")
            return super().do_options(got, query)

    with ScriptedServer(Late(bytearray(SIZE))) as server:
        assert client.upload(image, server.url, None).retries == 2


def test_resumed_transfer_tells_what_an_earlier_run_did(image, monkeypatch):
    monkeypatch.setattr(transfer_module, "CHECKPOINT_LENGTH", MiB)
    left = [1]

    class Ends(Server):
        def do_put(self, got, query):
            left[0] -= 1
            return response(500) if left[0] < 0 else super().do_put(got, query)

    with ScriptedServer(Ends(bytearray(b"\xff" * SIZE))) as server:
        with pytest.raises(Exception, match="500"):
            client.upload(image, server.url, None, resume=True, max_workers=1)
        left[0] = 100
        result = client.upload(image, server.url, None, resume=True, max_workers=1)
        assert bytes(server.answer.data) == IMAGE
    assert result.resumed >= MiB
    assert result.size == SIZE
    assert result.moved == len(DATA) - result.resumed


def test_transport_is_told(image, tmp_path, pki):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert_file, pki.key_file)
    with serving(context=context) as server:
        assert client.upload(image, server.url, None, secure=False).transport == "tls"
    # An HTTP server of 2.x that names its Unix socket.
    answer = Server(bytearray(SIZE), unix_socket=str(tmp_path / "sock"))
    with ScriptedServer(answer) as server, ScriptedServer(answer, unix=str(tmp_path / "sock")):
        assert client.upload(image, server.url, None).transport == "unix"


@needs_qemu
def test_layer_tells_what_it_left_alone(tmp_path):
    make_image(tmp_path / "base", "raw", SIZE)
    make_image(tmp_path / "top", "qcow2", SIZE, [Fill(0, MiB, 0x11)])
    with serving() as server:
        result = client.upload(str(tmp_path / "top"), server.url, None, backing_chain=False, verify=True)
    assert (result.moved, result.zeroed, result.skipped) == (MiB, 0, SIZE - MiB)
    assert (result.verified, result.checksum) == (True, None)


def test_empty_image_moves_nothing(tmp_path):
    (tmp_path / "empty").touch()
    with serving(b"") as server:
        result = client.upload(str(tmp_path / "empty"), server.url, None)
    assert (result.size, result.moved) == (0, 0)


def test_result_is_a_value_that_cannot_be_changed():
    result = client.TransferResult(moved=1, zeroed=2, skipped=3, resumed=4, seconds=0.5, retries=0, transport="unix")
    assert result.size == 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.moved = 2
    assert dataclasses.asdict(result) == {
        "moved": 1,
        "zeroed": 2,
        "skipped": 3,
        "resumed": 4,
        "seconds": 0.5,
        "retries": 0,
        "transport": "unix",
        "verified": False,
        "checksum": None,
        "algorithm": None,
        "block_size": None,
    }


def test_pieces_of_odd_length_are_counted_to_the_byte(tmp_path):
    data = DATA[: MiB + 513] + bytes(7) + DATA[:1]
    (tmp_path / "odd").write_bytes(data)
    with ScriptedServer(Image(bytearray(len(data) + 4 * KiB))) as server:
        result = client.upload(str(tmp_path / "odd"), server.url, None)
    assert result.size == len(data)
