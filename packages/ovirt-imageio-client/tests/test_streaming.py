# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw images from and to streams: the bytes, what is sent again, and what ends them."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import socket
import tarfile
import threading

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.vhd import FIXED, make_vhd
from ovirt_imageio.client import streaming
from ovirt_imageio.client.executor import Retry
from ovirt_imageio.client.streaming import ReaderGone, StreamEnded
from ovirt_imageio.client.unchanged import SourceChanged
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import OperationCancelled, TransferError, UnsupportedOperation
from ovirt_imageio.common.units import KiB, MiB

pytestmark = pytest.mark.timeout(60)

STEP = MiB


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(streaming, "STEP", STEP)
    monkeypatch.setattr(Retry, "pause", lambda self, failures: 0.0)


def content(size=5 * MiB + 513):
    """Data, zeroes in the middle, and an end that is no whole sector."""
    rand = random.Random(1)
    data = bytearray(rand.randbytes(size))
    data[MiB + 700 * KiB : 3 * MiB] = bytes(1348 * KiB)
    return bytes(data)


@contextlib.contextmanager
def written(data, *, chunk=100_000):
    """The end of a pipe that another thread fills; the thread ends with the context."""
    read, write = os.pipe()

    def fill():
        with contextlib.suppress(BrokenPipeError), open(write, "wb", buffering=0) as pipe:
            for start in range(0, len(data), chunk):
                pipe.write(data[start : start + chunk])

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield read
    finally:
        os.close(read)
        thread.join()


@contextlib.contextmanager
def collected():
    """The end of a pipe that another thread empties, and what it got."""
    read, write = os.pipe()
    got = []

    def empty():
        with open(read, "rb") as pipe:
            got.append(pipe.read())

    thread = threading.Thread(target=empty)
    thread.start()
    try:
        yield write, got
    finally:
        os.close(write)
        thread.join()


@pytest.fixture
def image():
    return Image(bytearray(b"\xff" * len(content())))


# Up.


def test_upload_from_a_pipe_sends_data_and_zeroes_the_rest(image):
    data = content()
    counted = []
    with ScriptedServer(image) as server, written(data) as fd:
        result = streaming.upload(fd, server.url, None, progress=counted.append)
        assert "PATCH" in server.methods()
    assert bytes(image.data) == data
    assert sum(counted) == result.size == len(data)
    assert result.zeroed == MiB  # pieces of 1 MiB that are all zero
    assert (result.moved + result.zeroed, result.transport) == (len(data), "tcp")
    assert image.flushes == 6  # after each step: this server does not tell if it was restarted


def test_upload_to_a_zero_disk_skips_zeroes(image):
    data = content()
    image.data[:] = bytes(len(data))
    with ScriptedServer(image) as server, written(data) as fd:
        result = streaming.upload(fd, server.url, None, disk_is_zero=True)
    assert bytes(image.data) == data
    assert (result.zeroed, result.skipped) == (0, MiB)


def test_what_is_lost_is_sent_again_from_the_window(image):
    data = content()
    left = [4]

    class Flaky(Image):
        def do_put(self, got, query):
            if left[0] and got.length > 1000:
                left[0] -= 1
                return None  # closes the connection
            return super().do_put(got, query)

    flaky = Flaky(image.data)
    with ScriptedServer(flaky) as server, written(data) as fd:
        result = streaming.upload(fd, server.url, None)
    assert bytes(flaky.data) == data
    assert result.retries == 4


@pytest.mark.parametrize("size", [1, STEP - 1, STEP, STEP + 1, 2 * STEP, 4 * STEP + 7])
def test_upload_of_any_length(size):
    data = content()[:size]
    image = Image(bytearray(b"\xff" * len(content())))
    with ScriptedServer(image) as server, written(data, chunk=333_333) as fd:
        assert streaming.upload(fd, server.url, None, size=size).size == size
    assert bytes(image.data[:size]) == data
    assert set(image.data[size:]) <= {0xFF}


def test_pipe_that_ends_early_is_no_image(image):
    with ScriptedServer(image) as server, written(content()[:-1]) as fd:
        with pytest.raises(StreamEnded, match=rf"ended after {len(content()) - 1} of {len(content())} bytes"):
            streaming.upload(fd, server.url, None)


def test_pipe_that_goes_on_is_no_image(image):
    with ScriptedServer(image) as server, written(content() + b"x") as fd:
        with pytest.raises(StreamEnded, match=f"more than the {len(content())} bytes"):
            streaming.upload(fd, server.url, None)


def test_image_that_does_not_fit_is_told_before_it_is_sent(image):
    with ScriptedServer(image) as server, written(content()) as fd:
        with pytest.raises(TransferError, match="does not fit"):
            streaming.upload(fd, server.url, None, size=len(content()) + 1)
        assert "PUT" not in server.methods()


def test_source_of_no_bytes_is_no_image(image, tmp_path):
    (tmp_path / "file").touch()
    with open(tmp_path / "file", "rb") as f, ScriptedServer(image) as server:
        with pytest.raises(TransferError, match=f"has 0 bytes: nothing would reach the disk of {len(image.data)}"):
            streaming.upload(f.fileno(), server.url, None)


def test_disk_of_no_bytes_takes_a_source_of_none(tmp_path):
    (tmp_path / "file").touch()
    with open(tmp_path / "file", "rb") as f, ScriptedServer(Image(bytearray())) as server:
        assert streaming.upload(f.fileno(), server.url, None).size == 0


def test_file_tells_its_size_from_where_it_stands(image, tmp_path):
    data = content()[: 2 * MiB]
    (tmp_path / "file").write_bytes(b"header" + data)
    with open(tmp_path / "file", "rb", buffering=0) as f, ScriptedServer(image) as server:
        f.read(6)
        assert streaming.upload(f.fileno(), server.url, None).size == len(data)
    assert bytes(image.data[: len(data)]) == data


def test_file_that_is_written_to_meanwhile_is_told(image, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(content())
    os.utime(path, (0, 0))  # the clock of a file system may be coarse

    def answer(got):
        if got.method == "PUT":
            with open(path, "r+b") as f:
                f.write(b"new")
        return image(got)

    with ScriptedServer(answer) as server, open(path, "rb") as f:
        with pytest.raises(SourceChanged, match="standard input was changed while it was read"):
            streaming.upload(f.fileno(), server.url, None)


def test_other_formats_are_named_before_a_byte_is_sent(image):
    qcow2 = b"QFI\xfb\0\0\0\3" + content()[8:]
    with ScriptedServer(image) as server:
        with written(qcow2) as fd:
            with pytest.raises(UnsupportedOperation, match='a qcow2 image, and only raw.*pass fmt="raw"'):
                streaming.upload(fd, server.url, None)
        assert "PUT" not in server.methods()
        with written(qcow2) as fd:
            streaming.upload(fd, server.url, None, is_raw=True)
    assert bytes(image.data) == qcow2


def packed(path):
    path.write_bytes(gzip.compress(content()[: 2 * MiB]))


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


def vhd(path):
    make_vhd(path, 2 * MiB, kind=FIXED)


@pytest.mark.parametrize(
    ("make", "words"), [(packed, "is packed by gzip: unpack it on its way"), (tar, "is a tar file"), (vhd, "is a vpc")]
)
def test_file_that_is_no_raw_image_is_named_before_a_byte_is_sent(image, tmp_path, make, words):
    make(tmp_path / "file")
    with open(tmp_path / "file", "rb", buffering=0) as f, ScriptedServer(image) as server:
        with pytest.raises(UnsupportedOperation, match=f'{words}.*pass fmt="raw"'):
            streaming.upload(f.fileno(), server.url, None)
        assert "PUT" not in server.methods()
        f.seek(0)
        streaming.upload(f.fileno(), server.url, None, is_raw=True)
    data = (tmp_path / "file").read_bytes()
    assert bytes(image.data[: len(data)]) == data


def test_mark_at_the_end_of_a_pipe_is_seen_when_it_has_passed(image, tmp_path):
    vhd(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    with ScriptedServer(image) as server, written(data) as fd:
        with pytest.raises(UnsupportedOperation, match="a vpc image"):
            streaming.upload(fd, server.url, None, size=len(data))
    with ScriptedServer(image) as server, written(data) as fd:
        streaming.upload(fd, server.url, None, size=len(data), is_raw=True)


def test_reset_of_a_socket_is_no_lost_server(image):
    """Tried again, it would be read on as if nothing were missing."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ScriptedServer(image) as server:
        theirs.send(content()[:100])
        ours.send(b"unread: closing resets the connection")
        theirs.close()
        with pytest.raises(TransferError, match="standard input: Connection reset by peer"):
            streaming.upload(ours.fileno(), server.url, None)


def test_cancel_ends_the_wait_for_a_silent_writer(image):
    cancel = Cancel()
    read, write = os.pipe()
    os.write(write, content()[:4096])

    class Cancelling(Image):
        def do_get(self, got, query):
            timer.start()
            return super().do_get(got, query)

    timer = threading.Timer(0.05, cancel.cancel)
    try:
        with ScriptedServer(Cancelling(image.data)) as server:
            with pytest.raises(OperationCancelled):
                streaming.upload(read, server.url, None, cancel=cancel)
    finally:
        timer.join()
        os.close(read)
        os.close(write)


def test_input_that_cannot_be_read_is_named(image):
    fd = os.open(os.devnull, os.O_WRONLY)
    try:
        with ScriptedServer(image) as server:
            with pytest.raises(OSError, match="Bad file descriptor") as e:
                streaming.upload(fd, server.url, None)
        assert e.value.filename == "standard input"
    finally:
        os.close(fd)


# Down.


class Listing(Image):
    """Tells the zeroes of `content` as an extent."""

    def extents(self, got, query):
        start, end, size = MiB + 700 * KiB, 3 * MiB, len(self.data)
        return response(
            200,
            b'[{"start":0,"length":%d,"zero":false},{"start":%d,"length":%d,"zero":true},'
            b'{"start":%d,"length":%d,"zero":false}]' % (start, start, end - start, end, size - end),
        )


def test_download_to_a_pipe_has_all_bytes_in_order():
    counted = []
    with ScriptedServer(Listing(bytearray(content()))) as server, collected() as (fd, got):
        result = streaming.download(server.url, fd, None, progress=counted.append)
    assert got == [content()]
    assert sum(counted) == result.size == len(content())
    assert result.zeroed == 1348 * KiB


def test_download_goes_on_behind_the_last_byte_that_was_written():
    """Each connection breaks after some bytes."""

    class Breaking(Listing):
        def do_get(self, got, query):
            answer = super().do_get(got, query)
            if got.headers.get("range") == "bytes=0-0" or len(answer) < 1_500_000:
                return answer
            got.socket.sendall(answer[:1_300_000])
            return None

    with ScriptedServer(Breaking(bytearray(content()))) as server, collected() as (fd, got):
        result = streaming.download(server.url, fd, None)
    assert got == [content()]
    assert result.retries > 1


@pytest.mark.parametrize("append", [False, True])
def test_download_to_a_file_leaves_holes_at_its_end(tmp_path, append):
    path = tmp_path / "file"
    path.write_bytes(b"before" if append else b"")
    flags = os.O_WRONLY | (os.O_APPEND if append else 0)
    fd = os.open(path, flags)
    try:
        with ScriptedServer(Listing(bytearray(content()))) as server:
            streaming.download(server.url, fd, None)
        os.write(fd, b"after")
    finally:
        os.close(fd)
    assert path.read_bytes() == (b"before" if append else b"") + content() + b"after"
    assert os.stat(path).st_blocks * 512 < len(content()) - MiB


def test_download_into_the_middle_of_a_file_overwrites_what_is_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * (len(content()) + 10))
    fd = os.open(path, os.O_WRONLY)
    try:
        os.lseek(fd, 5, os.SEEK_SET)
        with ScriptedServer(Listing(bytearray(content()))) as server:
            streaming.download(server.url, fd, None)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"\xff" * 5 + content() + b"\xff" * 5


def test_reader_that_leaves_ends_the_download_at_once():
    """EPIPE is no connection that could be made again."""
    read, write = os.pipe()
    os.close(read)
    try:
        with ScriptedServer(Listing(bytearray(content()))) as server:
            with pytest.raises(ReaderGone, match="standard output: Broken pipe"):
                streaming.download(server.url, write, None)
            assert len([got for got in server.requests if got.headers.get("range", "") > "bytes=0-0"]) == 1
    finally:
        os.close(write)


def test_full_disk_is_told_of_the_output():
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with ScriptedServer(Listing(bytearray(content()))) as server:
            with pytest.raises(OSError, match="No space left") as e:
                streaming.download(server.url, fd, None)
        assert e.value.filename == "standard output"
    finally:
        os.close(fd)


def test_output_that_does_not_block_is_waited_for():
    with ScriptedServer(Listing(bytearray(content()))) as server, collected() as (fd, got):
        os.set_blocking(fd, False)
        streaming.download(server.url, fd, None)
    assert got == [content()]
