# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`ovirt-img` with an engine: the real SDK, an engine to try things on, a real daemon and qemu-nbd."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from functools import partial
from typing import NamedTuple

import pytest

from fakeengine.model import Fault
from fakeengine.site import SECTION, Site
from imageio_testing import enginesdk
from imageio_testing.enginesdk import needs_engine_sdk
from imageio_testing.qemu import Fill, MiB, make_image, needs_qemu
from ovirt_imageio.client import cli, disks, engine
from ovirt_imageio.common.qemu import img

pytestmark = [pytest.mark.system, needs_qemu, needs_engine_sdk]

SIZE = 16 * MiB
FILLS = [Fill(0, 65536, 0x11), Fill(8 * MiB, MiB, 0x22)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


class Done(NamedTuple):
    args: list[str]
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def ovirt_img(site, tmp_path, monkeypatch, capsys):
    """Runs the command in this process: loading the SDK takes longer than all else."""
    monkeypatch.syspath_prepend(str(enginesdk.folder()))
    monkeypatch.setenv("HOME", str(site.home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        line = [str(arg) for arg in args]
        status = cli.main(line)
        return Done(line, status, *capsys.readouterr())

    return run


def only_line(done):
    (line,) = done.stderr.splitlines()
    return line


def test_upload_makes_a_disk_with_the_content_of_the_image(site, ovirt_img, tmp_path):
    make_image(tmp_path / "my.qcow2", "qcow2", SIZE, FILLS)
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "-o", "json", "-d", "Mine", "my.qcow2")
    assert (done.returncode, done.stderr) == (0, "")
    (disk,) = [disk for disk in site.engine.disks.values() if disk.name == "my"]
    assert (disk.format, disk.size, disk.sparse, disk.description) == ("qcow2", SIZE, True, "Mine")
    assert disk.status == "ok"
    assert img.compare(str(tmp_path / "my.qcow2"), disk.active.path, fmt_a="qcow2", fmt_b="qcow2")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    phases = list(dict.fromkeys(record["description"] for record in records))
    assert phases == [
        "checking the image",
        "creating disk",
        "creating transfer",
        "uploading image",
        "finalizing transfer",
        "upload completed",
    ]
    last = records[-1]
    assert set(records[-2]) == {"transferred", "size", "elapsed", "description"}
    assert (last["disk_id"], last["transport"], last["checksum"]) == (disk.id, "unix", None)
    assert last["moved"] + last["zeroed"] + last["skipped"] == SIZE
    assert (last["transferred"], last["size"]) == (SIZE, SIZE)
    assert all("size" not in record for record in records[:2])


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_download_is_what_the_disk_holds(site, ovirt_img, tmp_path, fmt):
    disk = site.add_disk("some", SIZE, FILLS)
    done = ovirt_img("download-disk", "-c", SECTION, "-f", fmt, "--verify", disk.id, "my.img")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("| download completed")
    assert img.compare(str(tmp_path / "my.img"), disk.active.path, fmt_a=fmt, fmt_b="qcow2")
    assert disk.status == "ok"


def test_options_decide_what_disk_is_made(site, ovirt_img, tmp_path):
    make_image(tmp_path / "my.raw", "raw", SIZE, FILLS)
    disk_id = "0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52"
    done = ovirt_img(
        *("upload-disk", "--engine-url", site.server.url + "/ovirt-engine/api", "--username", "admin@internal"),
        *("--password-file", "password", "--cafile", site.ca_file, "--disk-id", disk_id, "--name", "other"),
        *("-f", "raw", "--preallocated", "-s", "nfs1", "my.raw"),
    )
    assert "password file password: No such file" in only_line(done)
    assert done.returncode == 2
    (tmp_path / "password").write_text("secret\n")
    assert ovirt_img(*done.args).returncode == 0
    disk = site.engine.disk(disk_id)
    assert (disk.name, disk.format, disk.sparse, disk.content_type) == ("other", "raw", False, "data")


def test_damaged_image_is_refused_before_a_disk_is_made(site, ovirt_img, tmp_path):
    make_image(tmp_path / "my.qcow2", "qcow2", SIZE, FILLS)
    os.truncate(tmp_path / "my.qcow2", 300 << 10)
    known = len(site.engine.disks)
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "my.qcow2")
    assert done.returncode == 1
    assert "my.qcow2 is damaged" in only_line(done)
    assert "give --no-check to upload what can be read" in only_line(done)
    assert len(site.engine.disks) == known
    assert ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "--no-check", "my.qcow2").returncode == 0


def test_iso_becomes_a_preallocated_raw_disk(site, ovirt_img, tmp_path):
    with open(tmp_path / "boot.iso", "wb") as f:
        f.truncate(SIZE)
        f.seek(0x8000)
        f.write(b"\x01CD001\x01\x00")
    assert ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "boot.iso").returncode == 0
    (disk,) = [disk for disk in site.engine.disks.values() if disk.name == "boot"]
    assert (disk.content_type, disk.format, disk.sparse) == ("iso", "raw", False)


def test_preallocated_qcow2_is_made_for_incremental_backup(site, ovirt_img, tmp_path):
    make_image(tmp_path / "full.raw", "raw", SIZE)
    assert ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "--preallocated", "full.raw").returncode == 0
    (disk,) = [disk for disk in site.engine.disks.values() if disk.name == "full"]
    assert (disk.format, disk.sparse, disk.backup) == ("qcow2", False, "incremental")


def test_insecure_asks_for_no_certificate(site, ovirt_img, tmp_path):
    disk = site.add_disk("some", SIZE, FILLS)
    (tmp_path / "password").write_text("secret\n")
    line = ["download-disk", "--engine-url", site.server.url, "--username", "admin@internal"]
    line += ["--password-file", "password", disk.id, "my.qcow2"]
    done = ovirt_img(*line)
    assert done.returncode == 1
    assert "certificate" in only_line(done)
    assert only_line(done).endswith("(give the engine's CA certificate by --cafile)")
    assert ovirt_img(*line[:1], "--insecure", *line[1:]).returncode == 0


def test_failed_upload_is_cancelled_and_its_disk_removed(site, ovirt_img, tmp_path, monkeypatch):
    make_image(tmp_path / "my.raw", "raw", SIZE, FILLS)
    before = set(site.engine.disks)
    original = site.engine.add_transfer

    def smaller(transfer):
        transfer.size = MiB
        return original(transfer)

    monkeypatch.setattr(site.engine, "add_transfer", smaller)
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "my.raw")
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert warning.endswith("is cancelled, its disk is removed")
    assert "does not fit" in error
    assert done.stdout.rstrip().endswith("| upload failed")
    assert set(site.engine.disks) == before


def test_disk_is_removed_when_its_transfer_cannot_start(site, ovirt_img, tmp_path, monkeypatch):
    make_image(tmp_path / "my.raw", "raw", SIZE, FILLS)
    before = set(site.engine.disks)

    def refuse(transfer):
        raise Fault(409, "There is no host")

    monkeypatch.setattr(site.engine, "add_transfer", refuse)
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "my.raw")
    assert (done.returncode, only_line(done)) == (1, "ovirt-img: cannot start the upload: There is no host")
    assert set(site.engine.disks) == before


def test_refusal_of_the_engine_is_told_in_its_words(site, ovirt_img, tmp_path):
    make_image(tmp_path / "my.raw", "raw", SIZE)
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "tape", "my.raw")
    assert done.returncode == 1
    assert only_line(done) == "ovirt-img: cannot make the disk: Entity not found: storage domain tape"


def test_locked_disk_is_told(site, ovirt_img, tmp_path):
    disk = site.add_disk("busy", SIZE)
    disk.owner = "somebody"
    done = ovirt_img("download-disk", "-c", SECTION, disk.id, "my.qcow2")
    assert done.returncode == 1
    assert "cannot start the download: Cannot transfer Virtual Disk: Disk busy is locked" in only_line(done)


def test_wrong_password_is_told(site, ovirt_img, tmp_path):
    (tmp_path / "password").write_text("guess\n")
    disk = site.add_disk("some", SIZE)
    done = ovirt_img("download-disk", "-c", SECTION, "--password-file", "password", disk.id, "my.qcow2")
    assert done.returncode == 1
    assert "Cannot authenticate user" in only_line(done)
    assert only_line(done).endswith("(check user name and password)")


def test_disk_that_is_never_ready_ends_after_the_timeout(site, ovirt_img, tmp_path, monkeypatch):
    make_image(tmp_path / "my.raw", "raw", SIZE)
    config = site.home / ".config" / "ovirt-img.conf"
    (tmp_path / "ovirt-img.conf").write_text(config.read_text() + "disk_timeout = 0.2\n")
    monkeypatch.setattr(site.engine, "patience", 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "my.raw")
    assert done.returncode == 1
    assert "in 0.2 seconds, see disk_timeout" in only_line(done)


def test_finalizing_may_take_longer_than_disk_timeout(site, ovirt_img, tmp_path, monkeypatch):
    """A disk is made in seconds; what was uploaded is checked and copied, which takes minutes."""
    make_image(tmp_path / "slow.raw", "raw", SIZE, FILLS)
    config = site.home / ".config" / "ovirt-img.conf"
    (tmp_path / "ovirt-img.conf").write_text(config.read_text() + "disk_timeout = 5\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    clock = Clock()
    monkeypatch.setattr(disks, "Engine", partial(engine.Engine, pause=clock.pause, now=clock))
    monkeypatch.setattr(site.engine, "finalizing", 100)
    assert ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "slow.raw").stderr == ""
    assert 90 < clock.seconds < 120
    monkeypatch.setattr(site.engine, "finalizing", 1000)
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "slow.raw")
    assert done.returncode == 1
    assert "in 300 seconds" in only_line(done)


class Clock:
    """Time that passes by pauses only."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def pause(self, seconds):
        self.seconds += seconds


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_transfer_that_the_engine_has_forgotten_ended_as_the_disk_says(
    site, ovirt_img, tmp_path, monkeypatch, direction
):
    """Engines before 4.4.7 remove a transfer when it is finished, so that asking for it is a 404."""
    make_image(tmp_path / "my.raw", "raw", SIZE, FILLS)
    disk = site.add_disk("known", SIZE, FILLS)
    monkeypatch.setattr(site.engine, "forgets", True)
    args = ["upload-disk", "-s", "nfs1", "my.raw"] if direction == "upload" else ["download-disk", disk.id, "copy"]
    done = ovirt_img(args[0], "-c", SECTION, *args[1:])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("fate", "text"), [("illegal", "disk {} is illegal"), ("removed", "disk {} was removed")])
def test_forgotten_upload_that_the_engine_did_not_accept_is_told(site, ovirt_img, tmp_path, monkeypatch, fate, text):
    make_image(tmp_path / "my.raw", "raw", SIZE, FILLS)
    monkeypatch.setattr(site.engine, "forgets", True)
    monkeypatch.setattr(site.engine, "refuses", fate)
    disk_id = str(uuid.uuid4())
    done = ovirt_img("upload-disk", "-c", SECTION, "-s", "nfs1", "--disk-id", disk_id, "my.raw")
    assert done.returncode == 1
    assert only_line(done) == f"ovirt-img: the upload was not accepted: {text.format(disk_id)}"


@pytest.mark.parametrize("stream", [False, True])
def test_source_of_no_bytes_makes_no_disk(site, ovirt_img, tmp_path, stream):
    (tmp_path / "empty").touch()
    source, name = (["--size", "0", "--name", "x", "-"], "standard input") if stream else (["empty"], "empty")
    before = len(site.engine.disks)
    done = ovirt_img("upload-disk", "-q", "-c", SECTION, "-s", "nfs1", *source)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ovirt-img: {name} has 0 bytes: an engine makes no disk of none"
    assert len(site.engine.disks) == before


def test_missing_folder_is_told_before_the_disk_is_locked(site, ovirt_img, tmp_path):
    disk = site.add_disk("some", SIZE)
    before = len(site.engine.transfers)
    done = ovirt_img("download-disk", "-c", SECTION, disk.id, "none/my.qcow2")
    assert only_line(done) == f"ovirt-img: {tmp_path}/none: Not a directory"
    assert len(site.engine.transfers) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "command",
    [["download-disk", "0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52"], ["upload-disk", "-s", "nfs1"]],
    ids=["download-disk", "upload-disk"],
)
def test_signal_ends_the_wait_for_an_engine_that_is_silent(site, tmp_path, command, number):
    """libcurl, which waits for the answer to a login, comes back for no signal."""
    (tmp_path / "my.raw").write_bytes(bytes(4096))
    (tmp_path / "password").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = ["-o", "json", "--username", "a@internal", "--password-file", str(tmp_path / "password")]
        arguments = [*command, "--engine-url", address, *options, str(tmp_path / "my.raw")]
        with subprocess.Popen(
            [sys.executable, "-m", "ovirt_imageio.client.cli", *arguments],
            env=site.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as waiting:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(60)
                    assert connection.recv(4) == b"POST"
                    waiting.send_signal(number)
                    out, errors = waiting.communicate(timeout=60)
            finally:
                waiting.kill()
    assert waiting.returncode == 128 + number
    assert errors == f"ovirt-img: interrupted by {number.name}\n"
    assert json.loads(out.splitlines()[-1])["kind"] == "Interrupted"


@pytest.mark.parametrize("held", [False, True])
def test_engine_that_does_not_answer_is_given_up(monkeypatch, held):
    """A signal that is held back shortens the wait, and comes when it is over."""
    never = threading.Event()
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as stack:
            if held:
                stack.enter_context(pytest.raises(KeyboardInterrupt))
                stack.enter_context(engine._uninterrupted())
                monkeypatch.setattr(engine, "_LAST_WISHES", 0)
                signal.raise_signal(signal.SIGHUP)
            with pytest.raises(engine.EngineError, match="did not answer in 0 seconds"):
                engine._bounded(never.wait, 3600 if held else 0)
    finally:
        signal.signal(signal.SIGHUP, before)
        never.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cancels_the_transfer(site, tmp_path, monkeypatch, number):
    disk = site.add_disk("slow", SIZE)
    # It never begins to transfer: the command waits until it is told to end.
    monkeypatch.setattr(site.engine, "patience", 100000)
    command = ["download-disk", "-c", SECTION, "-o", "json", disk.id, str(tmp_path / "my.qcow2")]
    with subprocess.Popen(
        [sys.executable, "-m", "ovirt_imageio.client.cli", *command],
        env=site.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as waiting:
        try:
            while not any(transfer.disk_id == disk.id for transfer in list(site.engine.transfers.values())):
                assert waiting.poll() is None
            waiting.send_signal(number)
            _, errors = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
    assert waiting.returncode == 128 + number
    assert errors.splitlines()[-1] == f"ovirt-img: interrupted by {number.name}"
    assert disk.owner is None
