# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers that are hindered end byte-identical, or with the reason why not.

With IMAGEIO_TESTS=full a hundred seeds and ten kills, else a few of each.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from imageio_testing.chaos import ChaosProxy
from imageio_testing.daemon import Daemon
from imageio_testing.images import same_bytes
from imageio_testing.qemu import MiB, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client import executor, transfer
from ovirt_imageio.client.executor import Retry
from ovirt_imageio.client.journal import CannotResume
from ovirt_imageio.common.errors import AuthorizationError, ImageioError
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

pytestmark = [pytest.mark.system, needs_qemu]

FULL = os.environ.get("IMAGEIO_TESTS") == "full"
SEEDS = range(100 if FULL else 2)
KILLS = 10 if FULL else 2

SIZE = (192 if FULL else 64) * MiB
"""Each kill comes after at most 12 MiB more: not all of them may get to the end."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, pki):
    """Without a local service: everything passes the proxies of the tests."""
    with Daemon(tmp_path_factory.mktemp("daemon"), pki=pki, config={"local": {"enable": False}}) as daemon:
        yield daemon


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="survives-") as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """A few megabytes are on their way for a moment only: short steps, and a flush after each."""
    monkeypatch.setattr(transfer, "CHECKPOINT_LENGTH", 1)
    monkeypatch.setattr(transfer, "RESUMABLE_STEP", MiB)


def random_image(path, seed=0, size=SIZE):
    """Data that do not repeat, with a hole and a range of zeroes."""
    rand = random.Random(seed)
    with open(path, "wb") as f:
        f.write(rand.randbytes(size // 2))
        f.truncate(size)
        f.seek(size * 5 // 8)
        f.write(bytes(size // 8) + rand.randbytes(size // 4 - 512))
    return path


def add(daemon, path, size=SIZE, **options):
    return daemon.add_ticket(f"file://{path}", size=size, sparse=True, **options)


def image_url(port, ticket):
    return f"https://localhost:{port}/images/{ticket}"


class Stop(Exception):
    """The error that a test's progress raises, to end a transfer."""


class StopAfter:
    """A progress that calls something after so many bytes, once."""

    def __init__(self, limit, call):
        self.size = None
        self.left = limit
        self.call = call

    def update(self, n):
        self.left -= n
        if self.left <= 0 and self.call:
            call, self.call = self.call, None
            call()


def stop():
    raise Stop


# Resets.


@pytest.mark.parametrize("seed", SEEDS)
def test_connections_reset_after_random_bytes(daemon, folder, pki, seed):
    rand = random.Random(seed)
    size = 12 * MiB
    source = random_image(folder / "source", seed, size)
    img.create(str(folder / "disk"), "qcow2", size=size)

    def budget():
        return rand.randrange(1, 2 * MiB)

    with Server(str(folder / "disk"), "qcow2") as server, ChaosProxy(daemon.port, budget=budget) as proxy:
        ticket = daemon.add_ticket(server.url, size=size, sparse=True)
        client.upload(source, image_url(proxy.port, ticket), pki.ca_file, verify=True)
        up = proxy.resets
        client.download(image_url(proxy.port, ticket), folder / "copy", pki.ca_file, fmt="raw", verify=True)
        assert up
        assert proxy.resets > up
    same_bytes(source, folder / "copy")


def test_server_that_never_answers_ends_the_transfer_with_the_reason(folder, pki, monkeypatch):
    source = random_image(folder / "source", size=MiB)
    with ChaosProxy(1, budget=lambda: 1) as proxy, pytest.raises(ImageioError, match=f"localhost:{proxy.port}"):
        client.upload(source, image_url(proxy.port, "ticket"), pki.ca_file)
    assert os.listdir(folder) == ["source"]


# Kills.


def done_bytes(journal):
    try:
        with open(journal, "rb") as f:
            records = [json.loads(line) for line in f.readlines() if line.endswith(b"\n")]
    except FileNotFoundError:
        return 0
    return sum(length for record in records for _, length in record.get("done", ()))


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_daemon_is_killed_and_restarted(folder, pki, direction, monkeypatch):
    monkeypatch.setattr(executor, "Retry", lambda: Retry(attempts=3))
    rand = random.Random(direction)
    source = random_image(folder / "source")
    target = folder / "target"
    if direction == "upload":
        with open(target, "wb") as f:
            f.truncate(SIZE)
    journal = folder / "journal"
    done = 0
    with ChaosProxy(0) as proxy:
        for n in range(KILLS + 1):
            (folder / str(n)).mkdir()
            daemon = Daemon(folder / str(n), pki=pki, config={"local": {"enable": False}})
            daemon.start()
            proxy.target = daemon.port
            url = image_url(proxy.port, add(daemon, target if direction == "upload" else source))
            # Bytes of earlier runs count as well, as soon as their turn comes.
            progress = StopAfter(done + rand.randrange(4 * MiB, 12 * MiB), daemon.kill if n < KILLS else lambda: None)
            options = {"progress": progress, "resume": True, "journal": journal}
            try:
                if direction == "upload":
                    client.upload(source, url, pki.ca_file, **options)
                else:
                    client.download(url, target, pki.ca_file, fmt="raw", **options)
            except ImageioError:
                assert n < KILLS
                assert done_bytes(journal) >= done
                done = done_bytes(journal)
            else:
                daemon.kill()
    assert done
    same_bytes(source, target)
    assert not journal.exists()


CLIENT = """
import sys
from ovirt_imageio import client
from ovirt_imageio.client import transfer
transfer.CHECKPOINT_LENGTH = 1
transfer.RESUMABLE_STEP = 1 << 20

def progress(n):
    print(n, flush=True)

direction, image, url, cafile = sys.argv[1:]
options = {"progress": progress, "resume": True, "max_workers": 2}
if direction == "upload":
    client.upload(image, url, cafile, **options)
else:
    client.download(url, image, cafile, fmt="qcow2", **options)
"""


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_client_is_killed(daemon, folder, pki, direction):
    rand = random.Random(direction)
    source = random_image(folder / "source")
    target = folder / "target"
    if direction == "upload":
        with open(target, "wb") as f:
            f.truncate(SIZE)
    image, disk = (source, target) if direction == "upload" else (target, source)
    journal = folder / f"{image.name}.{direction}.journal"
    done = 0
    for n in range(KILLS + 1):
        url = image_url(daemon.port, add(daemon, disk))
        command = [sys.executable, "-c", CLIENT, direction, str(image), url, pki.ca_file]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            left = done + rand.randrange(4 * MiB, 12 * MiB) if n < KILLS else 2 * SIZE
            for line in process.stdout:
                left -= int(line)
                if left <= 0:
                    process.kill()
                    break
            error = process.stderr.read()
        assert process.returncode == (-signal.SIGKILL if n < KILLS else 0), error
        if n < KILLS:
            assert done_bytes(journal) >= done
            done = done_bytes(journal)
    assert done
    if direction == "upload":
        same_bytes(source, target)
    else:
        client.download(url, folder / "copy", pki.ca_file, fmt="raw")
        same_bytes(source, folder / "copy")
        assert client.checksum(target) == client.checksum(source)
    assert not journal.exists()


# Resuming.


def interrupted_upload(daemon, folder, pki, **options):
    source = random_image(folder / "source")
    with open(folder / "disk", "wb") as f:
        f.truncate(SIZE)
    url = image_url(daemon.port, add(daemon, folder / "disk"))
    with pytest.raises(Stop):
        client.upload(source, url, pki.ca_file, progress=StopAfter(40 * MiB, stop), resume=True, **options)
    return source, url


def interrupted_download(daemon, folder, pki, fmt="raw"):
    source = random_image(folder / "source")
    url = image_url(daemon.port, add(daemon, source, ops=["read"]))
    with pytest.raises(Stop):
        client.download(url, folder / "copy", pki.ca_file, fmt=fmt, progress=StopAfter(40 * MiB, stop), resume=True)
    return source, url


def first_done(journal):
    """Offset of the first range that the next run takes for done."""
    with open(journal, "rb") as f:
        return min(offset for line in f for offset, _ in json.loads(line).get("done", ()))


def change(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 1]))


def test_interrupted_upload_moves_only_the_rest(daemon, folder, pki):
    source, _ = interrupted_upload(daemon, folder, pki)
    done = done_bytes(folder / "source.upload.journal")
    ticket = add(daemon, folder / "disk")
    client.upload(source, image_url(daemon.port, ticket), pki.ca_file, resume=True, verify=True)
    same_bytes(source, folder / "disk")
    assert done >= 8 * MiB
    assert sorted(os.listdir(folder)) == ["disk", "source"]


@pytest.mark.parametrize("end", ["source", "disk"])
def test_changed_end_of_an_upload_is_refused_with_the_range(daemon, folder, pki, end):
    source, url = interrupted_upload(daemon, folder, pki)
    offset = first_done(folder / "source.upload.journal")
    change(folder / end, offset + 5)
    with pytest.raises(CannotResume, match=rf"target changed since, 1048576 bytes at {offset} differ; remove /.*"):
        client.upload(source, url, pki.ca_file, resume=True)
    os.unlink(folder / "source.upload.journal")
    client.upload(source, url, pki.ca_file, resume=True)
    same_bytes(source, folder / "disk")


def test_image_of_another_size_is_refused(daemon, folder, pki):
    source, url = interrupted_upload(daemon, folder, pki)
    os.truncate(source, SIZE - 512)
    with pytest.raises(CannotResume, match=f"size {SIZE}, not {SIZE - 512}"):
        client.upload(source, url, pki.ca_file, resume=True)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_interrupted_download_keeps_the_part_and_goes_on(daemon, folder, pki, fmt):
    source, url = interrupted_download(daemon, folder, pki, fmt)
    assert sorted(os.listdir(folder)) == ["copy.download.journal", "copy.part", "source"]
    client.download(url, folder / "copy", pki.ca_file, fmt=fmt, resume=True, verify=True)
    assert sorted(os.listdir(folder)) == ["copy", "source"]
    assert client.checksum(folder / "copy") == client.checksum(source)


def test_download_whose_part_is_gone_begins_anew(daemon, folder, pki):
    source, url = interrupted_download(daemon, folder, pki)
    os.unlink(folder / "copy.part")
    client.download(url, folder / "copy", pki.ca_file, fmt="raw", resume=True)
    same_bytes(source, folder / "copy")


@pytest.mark.parametrize("end", ["source", "copy.part"])
def test_changed_end_of_a_download_is_refused(daemon, folder, pki, end):
    _, url = interrupted_download(daemon, folder, pki)
    offset = first_done(folder / "copy.download.journal")
    change(folder / end, offset + 5)
    with pytest.raises(CannotResume, match=f"changed since, 1048576 bytes at {offset} differ"):
        client.download(url, folder / "copy", pki.ca_file, fmt="raw", resume=True)
    assert not (folder / "copy").exists()


def test_download_with_a_backing_file_resumes(daemon, folder, pki):
    """Ranges done before are compared where they were moved; those that show the backing file are left alone."""
    source = random_image(folder / "source")
    with open(folder / "base", "wb") as f:
        f.truncate(SIZE)
    url = image_url(daemon.port, add(daemon, source, ops=["read"]))
    options = {"backing_file": "base", "backing_format": "raw", "resume": True}
    with pytest.raises(Stop):
        client.download(url, folder / "copy", pki.ca_file, progress=StopAfter(40 * MiB, stop), **options)
    client.download(url, folder / "copy", pki.ca_file, verify=True, **options)
    assert client.checksum(folder / "copy") == client.checksum(source)


def test_without_resume_nothing_is_left(daemon, folder, pki, caplog):
    source = random_image(folder / "source")
    url = image_url(daemon.port, add(daemon, source, ops=["read"]))
    with pytest.raises(Stop):
        client.download(url, folder / "copy", pki.ca_file, progress=StopAfter(MiB, stop))
    assert os.listdir(folder) == ["source"]
    assert f"of {SIZE} bytes: {folder}/copy is not made; nothing can be resumed" in caplog.text


# Ways.


def test_proxy_url_is_taken_when_url_cannot_be_reached(daemon, folder, pki):
    source = random_image(folder / "source", size=MiB)
    with open(folder / "disk", "wb") as f:
        f.truncate(MiB)
    ticket = add(daemon, folder / "disk", size=MiB)
    with ChaosProxy(1) as dead:
        client.upload(source, image_url(dead.port, ticket), pki.ca_file, proxy_url=image_url(daemon.port, ticket))
    same_bytes(source, folder / "disk")


def test_local_socket_that_is_gone_leaves_tls(tmp_path, folder, pki):
    source = random_image(folder / "source", size=MiB)
    with open(folder / "disk", "wb") as f:
        f.truncate(MiB)
    daemon = Daemon(tmp_path, pki=pki)
    with daemon:
        os.rename(daemon.local_socket, daemon.local_socket + ".gone")
        client.upload(source, image_url(daemon.port, add(daemon, folder / "disk", size=MiB)), pki.ca_file)
        os.rename(daemon.local_socket + ".gone", daemon.local_socket)
    same_bytes(source, folder / "disk")


def test_ticket_that_is_cancelled_while_a_body_is_sent_is_told(daemon, folder, pki):
    source = random_image(folder / "source")
    with open(folder / "disk", "wb") as f:
        f.truncate(SIZE)
    ticket = add(daemon, folder / "disk")
    progress = StopAfter(4 * MiB, lambda: daemon.remove_ticket(ticket))
    with pytest.raises(AuthorizationError, match="403 Forbidden: .*ticket"):
        client.upload(source, image_url(daemon.port, ticket), pki.ca_file, progress=progress, max_workers=1)


INTERRUPTED = """
import logging, sys
from ovirt_imageio import client
logging.basicConfig(format="%(message)s")
try:
    client.upload(sys.argv[1], sys.argv[2], sys.argv[3], resume=True)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_control_c_ends_a_transfer_whose_server_is_silent(daemon, folder, pki):
    source = random_image(folder / "source")
    with open(folder / "disk", "wb") as f:
        f.truncate(SIZE)
    with ChaosProxy(daemon.port, budget=lambda: 4 * MiB, stall=True) as proxy:
        url = image_url(proxy.port, add(daemon, folder / "disk"))
        command = [sys.executable, "-c", INTERRUPTED, str(source), url, pki.ca_file]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert proxy.stalled.wait(60)
            process.send_signal(signal.SIGINT)
            # The server may be silent for a minute before it is given up.
            out, err = process.communicate(timeout=30)
    assert out == "interrupted\n"
    what = f"{source}.upload.journal has what is done"
    assert f"of {SIZE} bytes: {what}; run it again with resume=True to continue" in err
    assert "Traceback" not in err
