# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers that lie, disks that are full, sources that change: a clear error, and no image
that could be taken for a complete one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.qemu import Backing, Fill, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client import executor
from ovirt_imageio.client.executor import Retry
from ovirt_imageio.client.unchanged import SourceChanged
from ovirt_imageio.client.verify import VerificationFailed
from ovirt_imageio.common.errors import ImageioError, ProtocolError, TransferError
from ovirt_imageio.common.qemu import nbd
from ovirt_imageio.common.units import MiB

SIZE = 2 * MiB


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(executor, "Retry", lambda: Retry(attempts=3, delay=0.001))


@pytest.fixture
def data():
    return bytearray(random.Random(8).randbytes(SIZE))


def download(answer, folder, **options):
    with ScriptedServer(answer) as server:
        client.download(server.url, folder / "copy", None, **{"fmt": "raw", **options})


def upload(answer, folder, content, **options):
    (folder / "source").write_bytes(content)
    os.utime(folder / "source", (0, 0))  # the clock of a file system may be coarse
    with ScriptedServer(answer) as server:
        client.upload(folder / "source", server.url, None, **options)


def extents_of(*extents, raw=None):
    """An image whose server tells these extents: start, length, zero."""

    class Lying(Image):
        def extents(self, got, query):
            listing = [{"start": start, "length": length, "zero": zero} for start, length, zero in extents]
            return response(200, json.dumps(listing).encode() if raw is None else raw)

    return Lying


def test_honest_server_is_fine(data, tmp_path):
    download(Image(data), tmp_path)
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [(0, SIZE - 1, False)],
        [(0, SIZE + 1, False)],
        [(0, 1 << 70, True)],
        [(0, MiB, False), (MiB + 1, MiB - 1, False)],
        [(0, MiB, False), (MiB - 1, MiB + 1, False)],
        [(-MiB, SIZE + MiB, False)],
        [(0, 0, False)] * 3 + [(0, SIZE, False)],
        [(0, -5, False), (-5, SIZE + 5, False)],
        [(0, "2097152", False)],
        [(0, 2097152.0, False)],
        [(0, SIZE, "no")],
    ],
)
def test_extents_that_do_not_cover_the_image_are_refused(data, tmp_path, extents):
    with pytest.raises(ProtocolError, match="extents"):
        download(extents_of(*extents)(data, server="imageio/3.0.0"), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"nonsense",
        b"[[]]",
        b"[1]",
        b"[null]",
        b'[{"start": 0, "length": 2097152, "zero": false}',
        b"[" * 60000,
        b'[{"start": ' + b"[" * 60000 + b"]" * 60000 + b"}]",
        b'[{"start": ' + b"9" * 60000 + b"}]",
        b"[" + b" " * 200000,
        b'[{"' + b"x" * 200000 + b'": 1}]',
    ],
    ids=range(12),
)
def test_extents_that_are_no_list_of_extents_are_refused(data, tmp_path, text):
    with pytest.raises(ProtocolError):
        download(extents_of(raw=text)(data), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "document",
    [
        b"[" * 100000,
        b'{"features": ' + b"[" * 100000 + b"]" * 100000 + b"}",
        b'{"features": 5}',
        b'{"max_readers": "8"}',
        b'{"max_readers": ' + b"9" * 5000 + b"}",
        b'{"\xff\xfe',
    ],
    ids=range(6),
)
def test_options_that_make_no_sense_are_refused(data, tmp_path, document):
    class Lying(Image):
        def do_options(self, got, query):
            return response(200, document)

    with pytest.raises(ProtocolError, match="options"):
        download(Lying(data), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [-1, 0, 1 << 63, 1 << 64, 10**30])
def test_sizes_that_no_image_has_are_refused(data, tmp_path, size):
    class Lying(Image):
        def do_get(self, got, query):
            return response(206, b"x", Content_Range=f"bytes 0-0/{size}")

    with pytest.raises((ImageioError, OSError)):
        download(Lying(data), tmp_path)
    assert os.listdir(tmp_path) == []


def body_of(change):
    """An image whose server answers ranges of more than a byte in its own way."""

    class Lying(Image):
        def do_get(self, got, query):
            answer = super().do_get(got, query)
            return answer if got.headers.get("range") == "bytes=0-0" else change(self, got, answer)

    return Lying


@pytest.mark.parametrize(
    "change",
    [
        lambda image, got, answer: response(206, bytes(image.data[:-1]), Content_Range=f"bytes 0-{SIZE - 2}/{SIZE}"),
        lambda image, got, answer: response(206, bytes(image.data), Content_Range=f"bytes 1-{SIZE}/{SIZE + 1}"),
        lambda image, got, answer: response(206, bytes(image.data)),
        lambda image, got, answer: response(206, bytes(image.data), Content_Range="bytes */5"),
        lambda image, got, answer: response(206, bytes(image.data) + b"more", Content_Range=f"bytes 0-{SIZE}/{SIZE}"),
        lambda image, got, answer: response(200, bytes(image.data[:100])),
        lambda image, got, answer: response(200, bytes(image.data), Content_Encoding="gzip"),
        lambda image, got, answer: response(204),
        lambda image, got, answer: response(302, Location="http://localhost/"),
        lambda image, got, answer: b"HTTP/1.1 banana\r\n\r\n",
    ],
    ids=range(10),
)
def test_answer_that_is_not_the_range_is_refused(data, tmp_path, change):
    with pytest.raises(ProtocolError):
        download(body_of(change)(data), tmp_path)
    assert os.listdir(tmp_path) == []


def test_body_that_always_ends_too_early_is_given_up(data, tmp_path):
    def change(image, got, answer):
        return answer[:-1000] if got.connection % 2 else None

    class Short(body_of(change)):
        def __call__(self, got):
            answer = super().__call__(got)
            got.headers["content-length"] = "1"  # the scripted server closes
            return answer

    with pytest.raises((TransferError, ImageioError)):
        download(Short(data), tmp_path)
    assert os.listdir(tmp_path) == []


def test_server_that_changes_bytes_is_found_by_verifying(data, tmp_path):
    honest = bytes(data)

    def change(image, got, answer):
        return answer[:-1] + bytes([answer[-1] ^ 1]) if got.headers["range"].endswith(f"-{SIZE - 1}") else answer

    class Lying(body_of(change)):
        FEATURES = ("checksum", "extents")

        def do_get(self, got, query):
            if not got.target.partition("?")[0].endswith("/checksum"):
                return super().do_get(got, query)
            (tmp_path / "honest").write_bytes(honest)
            result = client.checksum(tmp_path / "honest", fmt="raw")
            os.unlink(tmp_path / "honest")
            return response(200, json.dumps(result).encode())

    with pytest.raises(VerificationFailed, match="another checksum than the server's"):
        download(Lying(data, features=("checksum", "extents")), tmp_path, verify=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"[" * 100000, b'{"algorithm": "blake2b", "block_size": 4194304, "checksum": 5}'],
    ids=range(5),
)
def test_checksum_that_is_none_is_refused(data, tmp_path, text):
    class Lying(Image):
        def do_get(self, got, query):
            if got.target.partition("?")[0].endswith("/checksum"):
                return response(200, text)
            return super().do_get(got, query)

    with pytest.raises(ImageioError):
        download(Lying(data), tmp_path, verify=True)
    assert os.listdir(tmp_path) == []


def test_upload_that_is_acknowledged_before_it_was_sent_is_refused(data, tmp_path):
    class Hasty(Image):
        def do_put(self, got, query):
            return response(200)

    with pytest.raises(ImageioError, match="before it had the body|gave up"):
        upload(Hasty(bytearray(64 * MiB)), tmp_path, random.Random(1).randbytes(64 * MiB), max_workers=1)


def test_reason_of_a_refusal_while_the_body_is_sent_is_told(tmp_path):
    class Refusing(Image):
        def do_put(self, got, query):
            return response(403, b"the ticket was cancelled by the administrator\n", Connection="close")

    with pytest.raises(ImageioError, match="403 Forbidden: the ticket was cancelled by the administrator"):
        upload(Refusing(bytearray(64 * MiB)), tmp_path, random.Random(1).randbytes(64 * MiB), max_workers=1)


def test_source_that_shrinks_is_told(tmp_path):
    content = random.Random(1).randbytes(16 * MiB)

    class Shrinking(Image):
        def do_put(self, got, query):
            os.truncate(tmp_path / "source", MiB)
            return super().do_put(got, query)

    with pytest.raises(OSError, match=f"the file ended at .* had {len(content)} bytes when it was opened"):
        upload(Shrinking(bytearray(len(content))), tmp_path, content, max_workers=1)


def test_source_that_is_changed_is_told(tmp_path):
    content = random.Random(1).randbytes(2 * MiB)

    class Changing(Image):
        def do_put(self, got, query):
            with open(tmp_path / "source", "r+b") as f:
                f.write(bytes(MiB))
            return super().do_put(got, query)

    with pytest.raises(SourceChanged, match=f"{tmp_path}/source was changed while it was read"):
        upload(Changing(bytearray(len(content))), tmp_path, content, max_workers=1)


@needs_qemu
def test_backing_file_that_is_changed_is_told(tmp_path):
    make_image(tmp_path / "base", "raw", 2 * MiB, [Fill(0, MiB, 1)])
    make_image(tmp_path / "top", "qcow2", 2 * MiB, backing=Backing(str(tmp_path / "base"), "raw"))
    os.utime(tmp_path / "base", (0, 0))

    class Changing(Image):
        def do_put(self, got, query):
            with open(tmp_path / "base", "r+b") as f:
                f.write(bytes(MiB))
            return super().do_put(got, query)

    with ScriptedServer(Changing(bytearray(2 * MiB))) as server:
        with pytest.raises(SourceChanged, match=f"{tmp_path}/base was changed while it was read"):
            client.upload(tmp_path / "top", server.url, None)


def test_source_that_is_replaced_is_uploaded_as_it_was(tmp_path):
    """As by a download to the same name: a worker that opens its ends again must not read the other file."""
    content = random.Random(1).randbytes(64 * MiB)

    class Replacing(Image):
        requests = 0

        def do_put(self, got, query):
            self.requests += 1
            if self.requests == 2:
                (tmp_path / "new").write_bytes(bytes(len(content)))
                os.replace(tmp_path / "new", tmp_path / "source")
                return None
            return super().do_put(got, query)

    image = Replacing(bytearray(len(content)))
    upload(image, tmp_path, content, max_workers=1)
    assert image.data == content


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_raw_file_that_a_qemu_writes_to_is_told(tmp_path, caplog, fmt):
    make_image(tmp_path / "base", "raw", MiB)
    path = tmp_path / "base"
    if fmt == "qcow2":
        path = tmp_path / "top"
        make_image(path, "qcow2", MiB, backing=Backing(str(tmp_path / "base"), "raw"))
    with nbd.Server(str(tmp_path / "base"), "raw"), ScriptedServer(Image(bytearray(MiB))) as server:
        client.upload(path, server.url, None)
    assert f"{tmp_path}/base is open for writing in a running qemu" in caplog.text


FULL_DISK = """
import sys
from ovirt_imageio import client
try:
    client.download(sys.argv[1], sys.argv[2] + "/copy", None, fmt=sys.argv[3])
except Exception as e:
    print(type(e).__name__, e)
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="not installed: unshare")
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_full_disk_is_told_and_nothing_is_left(data, tmp_path, fmt):
    if fmt == "qcow2" and not shutil.which("qemu-nbd"):
        pytest.skip("not installed: qemu-nbd")
    script = 'mount -t tmpfs -o size=1m none "$1" && "$2" -c "$3" "$4" "$1" "$5"; ls -A "$1"'
    with ScriptedServer(Image(data)) as server:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, sys.executable, FULL_DISK, server.url, fmt],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    if "mount" in done.stdout or "unshare" in done.stdout:
        pytest.skip(f"no mount namespaces: {done.stdout}")
    told, error = done.stdout.splitlines()  # and no name of a file
    assert "copy is not made; nothing can be resumed" in told
    assert re.search("No space left on device: .*copy.part'|ENOSPC", error)
