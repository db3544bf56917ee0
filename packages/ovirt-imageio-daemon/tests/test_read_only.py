# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A ticket for writing on storage that can only be read: reads are served, writes get 403."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imageio_testing import qemu
from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.errors import ReadOnlyStorage, UnsupportedOperation
from ovirt_imageio.common.qemu.nbd import Server
from ovirt_imageio.daemon import auth
from ovirt_imageio.daemon.config import Config
from ovirt_imageio.daemon.tickets import Ticket

SIZE = 1 << 20
DATA = bytes(range(1, 256)) * 4096 + bytes(4096)
LONG = 256 * 1024  # goes by a worker

pytestmark = pytest.mark.system

Url = Callable[[Path], Any]


@contextmanager
def executable(folder: Path) -> Iterator[str]:
    """A file that nobody may write, not even root: a program that runs."""
    path = folder / "program"
    shutil.copy(shutil.which("sleep") or "", path)
    with open(path, "ab") as f:
        f.write(DATA)
    with subprocess.Popen([path, "600"]) as process:
        yield f"file://{path}"
        process.kill()


@contextmanager
def export(folder: Path) -> Iterator[str]:
    """An NBD export that is read-only."""
    path = folder / "disk"
    path.write_bytes(DATA)
    with Server(path, "raw", read_only=True) as server:
        yield server.url


@pytest.fixture(params=[executable, pytest.param(export, marks=qemu.needs_qemu)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with request.param(tmp_path) as url:
        yield url


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, tls=False) as daemon:
        yield daemon


def origin_of(daemon: Daemon, url: str, *, ops: tuple[str, ...]) -> str:
    return f"{daemon.url}/images/{daemon.add_ticket(url, size=SIZE, ops=ops)}"


def assert_serves_reads_only(daemon: Daemon, url: str, ops: tuple[str, ...]) -> None:
    ticket_id = daemon.add_ticket(url, size=SIZE, ops=ops)
    image = f"/images/{ticket_id}"
    with HttpPeer.unix(daemon.local_socket) as client:
        for length in (512, LONG):
            answer = client.request("GET", image, headers=[("Range", f"bytes=0-{length - 1}")])
            assert (answer.status, len(answer.body)) == (206, length)
        assert client.request("GET", f"{image}/extents").status == 200
        assert client.request("GET", f"{image}/checksum").status == 200
        options = client.request("OPTIONS", image)
        assert options.header("Allow") == "OPTIONS,GET"
        assert not {"zero", "flush"} & set(options.json()["features"])
        for method, body in (
            ("PUT", b"x" * 512),
            ("PUT", b"x" * LONG),
            ("PUT", b""),
            ("PATCH", json.dumps({"op": "zero", "size": 4096}).encode()),
        ):
            with HttpPeer.unix(daemon.local_socket) as writer:
                refused = writer.request(method, image, body=body)
            assert (refused.status, refused.body) == (403, b"the storage can only be read\n"), (method, len(body))
        assert client.request("PATCH", image, body=json.dumps({"op": "flush"}).encode()).status == 200
        assert client.request("GET", image, headers=[("Range", "bytes=0-511")]).status == 206
    assert "last_error" not in daemon.ticket(ticket_id)
    daemon.remove_ticket(ticket_id)


@pytest.mark.parametrize("ops", [("read", "write"), ("write",)])
def test_storage_that_can_only_be_read_serves_reads(daemon: Daemon, storage: str, ops: tuple[str, ...]) -> None:
    assert_serves_reads_only(daemon, storage, ops)


def test_proxy_of_such_storage_serves_reads(daemon: Daemon, storage: str) -> None:
    assert_serves_reads_only(daemon, origin_of(daemon, storage, ops=("read", "write")), ("read", "write"))


def test_proxy_serves_reads_where_the_origin_grants_no_more(daemon: Daemon, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(DATA)
    assert_serves_reads_only(daemon, origin_of(daemon, f"file://{disk}", ops=("read",)), ("read", "write"))


def opened(monkeypatch: pytest.MonkeyPatch, error: Exception, *, ops: tuple[str, ...]) -> list[str]:
    """Open storage that fails with an error for writing; return the modes that were tried."""
    modes: list[str] = []

    def fake(url: str, *, mode: str, **options: Any) -> MemoryBackend:
        modes.append(mode)
        if mode == "r+":
            raise error
        return MemoryBackend(Memory(size=1), mode=mode)

    monkeypatch.setattr(auth.backends, "open", fake)
    backend = auth.open_storage(Config(), Ticket("t", 1, ops, 1, "file:///x", 60))
    assert backend.capabilities.read_only
    return modes


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY])
def test_file_that_may_not_be_written_is_opened_for_reading(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    assert opened(monkeypatch, OSError(number, os.strerror(number)), ops=("write",)) == ["r+", "r"]


def test_export_that_is_read_only_is_opened_for_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, ReadOnlyStorage("no"), ops=("read", "write")) == ["r+", "r"]


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "no"), OSError(errno.EIO, "no"), UnsupportedOperation("no")])
def test_other_errors_are_those_of_opening(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error), match="no"):
        opened(monkeypatch, error, ops=("write",))


def test_ticket_for_reading_is_opened_for_reading_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, OSError("no"), ops=("read",)) == ["r"]
