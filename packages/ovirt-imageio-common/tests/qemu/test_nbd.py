# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

from imageio_testing import qemu
from imageio_testing.qemu import Backing, Fill, KiB, MiB
from ovirt_imageio.common import nbd
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import QemuNbdError, Server

pytestmark = qemu.needs_qemu

SIZE = 4 * MiB


def read(server, offset, length):
    client = nbd.Client(server.address)
    try:
        buf = bytearray(length)
        client.read_into(offset, buf)
        return bytes(buf)
    finally:
        client.close()


def make(tmp_path, fmt, name="disk"):
    path = str(tmp_path / name)
    qemu.make_image(path, fmt, SIZE, [Fill(MiB, MiB, 0x55)])
    return path


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_server_serves_at_once(tmp_path, fmt):
    with Server(make(tmp_path, fmt), fmt) as server:
        assert read(server, MiB - 1, 2) == b"\0\x55"


@pytest.mark.parametrize("name", ["nbd:localhost:10809", 'json:{"a":1}', "a,b=c", "-x", "ü"])
def test_any_name_is_a_file(tmp_path, monkeypatch, name):
    make(tmp_path, "raw", name)
    monkeypatch.chdir(tmp_path)
    with Server(name, "raw") as server:
        assert read(server, MiB, 1) == b"\x55"


def test_nothing_is_left_behind(tmp_path):
    server = Server(make(tmp_path, "raw"), "raw")
    with server:
        folder = os.path.dirname(server.socket_path)
        pid = server.pid
        assert os.path.isdir(folder)
    assert not os.path.exists(folder)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()


def test_missing_image_is_named_with_the_reason(tmp_path):
    path = str(tmp_path / "no-such")
    with pytest.raises(QemuNbdError, match="no-such.*No such file"):
        Server(path, "raw").start()


def test_wrong_format_is_told(tmp_path):
    with pytest.raises(QemuNbdError, match="not in qcow2 format"):
        Server(make(tmp_path, "raw"), "qcow2").start()


def test_unknown_bitmap_is_told(tmp_path):
    with pytest.raises(QemuNbdError, match="no-bitmap"):
        Server(make(tmp_path, "qcow2"), "qcow2", bitmap="no-bitmap").start()


def test_program_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/no/such/folder")
    with pytest.raises(QemuNbdError, match="not installed") as e:
        Server(make(tmp_path, "raw"), "raw").start()
    assert isinstance(e.value, FileNotFoundError)


def test_socket_is_where_it_was_wanted(tmp_path):
    path = str(tmp_path / "sock")
    with Server(make(tmp_path, "raw"), "raw", socket_path=path) as server:
        assert server.url == f"nbd:unix:{path}"
        assert read(server, MiB, 1) == b"\x55"
    assert not os.path.exists(path)


def test_long_temporary_folder_is_not_used(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with Server(make(tmp_path, "raw"), "raw") as server:
        assert not server.socket_path.startswith(str(folder))
        assert read(server, MiB, 1) == b"\x55"


@pytest.mark.parametrize("name", ["disk", "a/b:c ü", "%41"])
def test_url_reaches_a_named_export(tmp_path, name):
    with Server(make(tmp_path, "raw"), "raw", export_name=name) as server:
        client = nbd.Client(nbd.parse(server.url))
        client.close()
        assert client.export.size == SIZE


def test_read_only_export(tmp_path):
    with Server(make(tmp_path, "raw"), "raw", read_only=True) as server:
        client = nbd.Client(server.address)
        client.close()
        assert client.export.read_only


def test_backing_chain_can_be_cut_off(tmp_path):
    base = make(tmp_path, "raw", "base")
    top = str(tmp_path / "top")
    qemu.make_image(top, "qcow2", SIZE, [Fill(0, 64 * KiB, 7)], backing=Backing(base, "raw"))
    with Server(top, "qcow2") as server:
        assert read(server, MiB, 1) == b"\x55"
    with Server(top, "qcow2", backing_chain=False) as server:
        assert read(server, MiB, 1) == b"\0"
        assert read(server, 0, 1) == b"\x07"


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_member_of_a_tar_file(tmp_path, fmt):
    inner = make(tmp_path, fmt)
    with open(inner, "rb") as f:
        content = f.read()
    outer = tmp_path / "outer"
    outer.write_bytes(b"x" * 1536 + content + b"x" * 1024)
    with Server(str(outer), fmt, offset=1536, size=len(content), read_only=True) as server:
        assert read(server, MiB - 1, 2) == b"\0\x55"
        assert read(server, SIZE - 1, 1) == b"\0"


def test_cache_and_aio_are_passed_on(tmp_path):
    with Server(make(tmp_path, "raw"), "raw", cache="none", aio="native") as server:
        assert read(server, MiB, 1) == b"\x55"


def test_dirty_bitmap_is_offered(tmp_path):
    path = make(tmp_path, "qcow2")
    img.add_bitmap(path, "since")
    qemu.fill_image(path, "qcow2", [Fill(2 * MiB, 64 * KiB, 9)])
    with Server(path, "qcow2", bitmap="since") as server:
        client = nbd.Client(server.address, dirty=True)
        try:
            dirty = [extent for extent in client.extents(0, SIZE, "dirty") if extent.dirty]
        finally:
            client.close()
    assert [(extent.start, extent.length) for extent in dirty] == [(2 * MiB, 64 * KiB)]


_OWNER = """
import sys, time
from ovirt_imageio.common.qemu.nbd import Server
with Server(sys.argv[1], "raw") as server:
    print(server.pid, server.socket_path, flush=True)
    sys.stdin.read()
"""


def test_server_ends_when_its_owner_is_killed(tmp_path):
    command = [sys.executable, "-c", _OWNER, make(tmp_path, "raw")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        pid, path = owner.stdout.readline().split()
        watch = os.pidfd_open(int(pid))
        try:
            owner.kill()
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            assert poll.poll(30000), f"qemu-nbd {pid} outlived the process that started it"
        finally:
            os.close(watch)
    shutil.rmtree(os.path.dirname(path))


def test_killed_server_leaves_no_socket(tmp_path):
    server = Server(make(tmp_path, "qcow2"), "qcow2")
    server.start()
    folder = os.path.dirname(server.socket_path)
    server.stop(kill=True)
    assert not os.path.exists(folder)


# A socket without a name.


def test_private_server_leaves_nothing_while_it_runs(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    server = Server(make(tmp_path, "raw"), "raw", private=True)
    for _ in range(2):
        with server:
            assert os.listdir(tmp_path / "tmp") == []
            assert read(server, MiB, 1) == b"\x55"
        assert server.socket_path == ""


def test_private_servers_are_not_mixed_up(tmp_path):
    qemu.make_image(tmp_path / "one", "raw", SIZE, [Fill(0, SIZE, 1)])
    qemu.make_image(tmp_path / "two", "raw", SIZE, [Fill(0, SIZE, 2)])
    with Server(str(tmp_path / "one"), "raw", private=True) as one:
        with Server(str(tmp_path / "two"), "raw", private=True) as two:
            assert (read(one, 0, 1), read(two, 0, 1)) == (b"\1", b"\2")


def test_server_is_not_private_without_proc(tmp_path, monkeypatch):
    path = make(tmp_path, "raw")
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "exists", lambda path: False)
        server = Server(path, "raw", private=True)
    with server:
        assert "nbd.sock" in os.listdir(os.path.dirname(server.socket_path))
        assert read(server, MiB, 1) == b"\x55"


DISCONNECT = "qemu-nbd: Disconnect client, due to:"


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("", None),
        ("qemu-nbd: warning: something\n", None),
        (f"{DISCONNECT} Failed to read request: Unexpected end-of-file\n", None),
        (f"{DISCONNECT} Failed to send reply: Unable to write to socket: Broken pipe\n", None),
        (
            f"{DISCONNECT} Failed to send reply: reading from file failed: Input/output error\n{DISCONNECT} later\n",
            "reading from file failed: Input/output error",
        ),
    ],
)
def test_failure_is_what_the_server_said_of_its_file(tmp_path, said, failure):
    img.create(str(tmp_path / "disk"), "qcow2", size=MiB)
    with Server(str(tmp_path / "disk"), "qcow2") as server:
        os.write(server._stderr.fileno(), said.encode())
        assert server.failure() == failure
        assert server.words() == said.replace("qemu-nbd: ", "").strip()


def test_server_that_ended_is_a_failure(tmp_path):
    img.create(str(tmp_path / "disk"), "qcow2", size=MiB)
    with Server(str(tmp_path / "disk"), "qcow2") as server:
        os.kill(server.pid, signal.SIGKILL)
        server._process.wait()
        assert server.failure() == "it ended with status -9"
