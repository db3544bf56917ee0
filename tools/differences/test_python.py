# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Python. Both libraries run `program.py`; the server is of this checkout."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from imageio_testing import peer, vhd
from imageio_testing.daemon import Daemon
from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.mounts import loop_device, mount
from imageio_testing.qemu import Fill, needs, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

from .both import MiB
from .page import cases, holds

pytestmark = needs_qemu

PROGRAM = Path(__file__).with_name("program.py")


@dataclass(frozen=True)
class Call:
    """A function of the program, and its result with 2.5.1 and with ours."""

    row: str
    name: str
    theirs: object
    ours: object


RESULT = "`upload`, `download`"
OUTSIDE = "`zero`, `read_from`, `write_to` outside the image"
BAD_IMAGE = "damaged, packed, encrypted image"

CALLS = (
    Call(RESULT, "upload_returns", "NoneType", "TransferResult"),
    Call(RESULT, "download_returns", "NoneType", "TransferResult"),
    Call("failures that pass", "failure_that_passes", "Error", "TransferResult"),
    Call("`download` to a file", "download_keeps_the_file", True, False),
    Call("`download` to a file with hard links", "download_to_a_file_with_links", True, False),
    Call(
        "`download` to an open file, read by its old descriptor",
        "download_to_an_open_file",
        True,
        False,
    ),
    Call("`download`, a qemu has the image open", "download_to_an_image_in_use", "CalledProcessError", "ImageInUse"),
    Call("two downloads to one name", "two_downloads_to_one_name", "CalledProcessError", "ImageInUse"),
    Call(
        "`backing_file` is the target, by another spelling, or below",
        "backing_file_is_the_target",
        False,
        True,
    ),
    Call("`incremental` without `backing_file`", "incremental_without_backing_file", ["d", "\0"], ["d", "b"]),
    Call("source that is written to meanwhile", "source_that_is_written_to", None, "SourceChanged"),
    Call("image with unnamed data files, protocols, `json:`", "external_data", None, "UnsafeImage"),
    Call(BAD_IMAGE, "packed", None, "UnsupportedImage"),
    Call(BAD_IMAGE, "damaged", None, "DamagedImage"),
    Call("fixed VHD, `.dmg`", "fixed_vhd", 512, 0),
    Call("VHD by VirtualBox, Azure, others unknown to qemu", "vhd_of_others", False, True),
    Call("differencing VHD", "differencing_vhd", "int", "UnsupportedImage"),
    Call("image of 0 bytes", "empty_image", "AttributeError", "TransferError"),
    Call("image of 0 bytes", "empty_image_to_an_empty_disk", "AttributeError", "TransferResult"),
    Call("name of an image that is a URL or `json:`", "name_that_is_json", "raw", "FileNotFoundError"),
    Call("image of odd size", "odd_size", 1024, 1000),
    Call("image larger than the disk", "larger_than_the_disk", "Error", "TransferError"),
    Call("ticket to read, `upload` or `write`", "ticket_to_read", "Error", "UnsupportedOperation"),
    Call("`download(fmt=…)` of other formats", "other_formats", "NoneType", "ValueError"),
    Call(
        "`backing_file` without `backing_format`", "backing_file_without_format", "CalledProcessError", "TransferResult"
    ),
    Call("`filename` of `info` of a member", "filename_of_a_member", True, False),
    Call("`full-backing-filename` of `info`", "full_name_of_a_backing_file", False, True),
    Call("missing `member`, or no tar file", "missing_member", "KeyError", "InvalidImage"),
    Call("missing `member`, or no tar file", "member_of_no_tar_file", "ReadError", "InvalidImage"),
    Call("`bitmap` that the image lacks", "missing_bitmap", "ConnectionResetError", "QemuNbdError"),
    Call("name of an image in bytes", "name_in_bytes", "raw", "TypeError"),
    Call(OUTSIDE, "zero_outside", "Error", "OutOfBounds"),
    Call(OUTSIDE, "read_from_outside", "Error", "OutOfBounds"),
    Call(OUTSIDE, "write_to_outside", "Error", "OutOfBounds"),
    Call("`write`, `read_from`, `write_to` of no bytes", "write_nothing", "Error", None),
    Call("`write_to`, the writer takes a part", "writer_that_takes_a_part", 1, 10),
    Call("`ProgressBar.phase` that was not set", "phase_that_was_not_set", None, ""),
    Call("URL with a query", "url_with_a_query", MiB, "ValueError"),
    Call("a caller's mistake", "mistake", "RuntimeError", "ValueError"),
    Call("progress that cannot be written", "progress_that_cannot_be_written", "OSError", None),
    Call(
        "text of the progress bar",
        "text_of_progress",
        "[  50% ] 500 bytes, 2.00 s, 250 bytes/s",
        "[  50% ] 500 bytes of 0.977 KiB, 2.00 s, 250 bytes/s, 2 s left",
    ),
    Call("`admin.load_config`", "configuration_can_be_changed", 1, "AttributeError"),
    Call("`admin.load_config`", "wrong_configuration", "ValueError", "ConfigError"),
    Call("`admin.load_config`, sections of logging", "sections_of_logging", "INFO", "AttributeError"),
    Call("`admin.Client`, empty id", "empty_id", "ServerError", "ClientError"),
    Call("`admin.Client`, id with a space", "id_with_a_space", "ClientError", None),
    Call("`admin.Client.con`", "connection_of_admin", "UnixHTTPConnection", "AttributeError"),
    Call("`admin.Client`, ticket without `uuid`", "ticket_without_uuid", "KeyError", "ClientError"),
    Call("`admin.Client`, after a failed request", "client_after_a_failure", "ClientError", None),
    Call("`extents`, `info`, … of an image", "raw_image_without_qemu", "FileNotFoundError", 2),
    Call("`ovirt_imageio._internal`", "internal_modules", ["directio", "nbd", "ops", "util"], ["directio", "nbd"]),
)


@pytest.fixture(scope="module")
def results(generations, folder, tmp_path_factory):
    """Answers of each library."""
    outcomes = []
    for generation in generations:
        place = folder / f"program-{generation.name}"
        place.mkdir()
        daemon = Daemon(tmp_path_factory.mktemp("daemon"), tls=False)
        with daemon, dirty_export(place) as dirty, ScriptedServer(Busy()) as busy:
            prepare(place, daemon)
            outcomes.append(run_program(generation, place, {**tickets(place, daemon, dirty), "busy": busy.url}))
    return outcomes


def run_program(generation, place, urls):
    done = subprocess.run(
        [generation.python, str(PROGRAM), str(place)],
        input=json.dumps(urls),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def prepare(place, daemon):
    """Make images that the program cannot make, and configurations."""
    fills = [Fill(0, 4096, 0x11)]
    vhd.make_vhd(place / "vbox.vhd", 9 * MiB + 512, fills, kind=vhd.DYNAMIC, creator=b"vbox")
    vhd.make_vhd(place / "child.vhd", MiB, fills, kind=vhd.DIFFERENCING, creator=b"vbox")
    (place / "vbox.size").touch()
    with open(place / "vbox.size", "wb") as f:
        f.truncate(9 * MiB + 512)
    texts = {
        "conf": f"[control]\nsocket = {daemon.control_socket}\n",
        "late": f"[control]\nsocket = {place}/run/control\n",
        "wrong": "[remote]\nport = x\n",
    }
    for name, text in texts.items():
        (place / name / "conf.d").mkdir(parents=True)
        (place / name / "conf.d" / "50-a.conf").write_text(text)


def tickets(place, daemon, dirty):
    """URLs of a disk of 1 MiB, by name."""
    with open(place / "target", "wb") as f:
        f.truncate(MiB)
    (place / "nothing").touch()
    target = f"file://{place}/target"
    ids = {
        "disk": daemon.add_ticket(target, size=MiB),
        "read": daemon.add_ticket(target, size=MiB, ops=["read"]),
        "empty": daemon.add_ticket(f"file://{place}/nothing", size=0),
        "dirty": daemon.add_ticket(dirty, size=MiB, ops=["read"], dirty=True),
    }
    return {name: f"{daemon.url}/images/{ticket_id}" for name, ticket_id in ids.items()}


@contextlib.contextmanager
def dirty_export(place):
    """A cluster of `b`, of which 4096 bytes are `d` since the checkpoint."""
    path = str(place / "changed.qcow2")
    img.create(path, "qcow2", size=MiB)
    qemu_io = ["qemu-io", "-f", "qcow2", path]
    subprocess.run([*qemu_io, "-c", "write -P 98 0 64k"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["qemu-img", "bitmap", "--add", "-g", "4096", path, "since"], check=True)
    subprocess.run([*qemu_io, "-c", "write -P 100 0 4k"], check=True, stdout=subprocess.DEVNULL)
    with Server(path, "qcow2", bitmap="since", read_only=True) as server:
        yield f"nbd:unix:{server.socket_path}"


class Busy(Image):
    """A disk whose server refuses the first PUT."""

    def __init__(self):
        super().__init__(bytearray(MiB))
        self.refused = False

    def do_put(self, got, query):
        if self.refused:
            return super().do_put(got, query)
        assert len(got.body) == got.length
        self.refused = True
        return response(503, b"busy\n")


@cases("call", CALLS)
def test_call(results, call):
    assert [result[call.name] for result in results] == [call.theirs, call.ours]


class Counting(Image):
    """A disk of a server that counts what is sent."""

    def __init__(self, size):
        super().__init__(bytearray(size))
        self.sent = 0

    def do_put(self, got, query):
        self.sent += got.length
        return super().do_put(got, query)


@holds("VHDX with zeroes")
def test_zeroes_of_a_vhdx(generations, tmp_path):
    path = str(tmp_path / "disk.vhdx")
    img.create(path, "vhdx", size=8 * MiB)
    sent = []
    for upload in (
        lambda url: peer.call(peer.environment(), "upload", path, url, None),
        lambda url: client.upload(path, url, None),
    ):
        disk = Counting(8 * MiB)
        with ScriptedServer(disk) as server:
            upload(server.url)
        sent.append(disk.sent)
    assert sent == [8 * MiB, 0]


@holds("one package, `ovirt-imageio`")
def test_packages(generations):
    """The environment of 2.5.1 has one, with a module in C."""
    program = "import ovirt_imageio._internal.ioutil as m; print(m.__file__)"
    done = [
        subprocess.run([generation.python, "-c", program], capture_output=True, text=True, check=False)
        for generation in generations
    ]
    assert done[0].stdout.strip().endswith(".so")
    assert done[1].returncode == 1


READ = "import sys; from ovirt_imageio import client; client.ImageioClient(sys.argv[1]).read(0, bytearray(1))"


@holds("Unix socket of the server")
def test_unix_socket_that_is_named(generations, folder):
    """The server behind it is another one."""
    used = []
    for generation in generations:
        path = str(folder / f"named-{generation.name}")
        with ScriptedServer(Image(bytearray(MiB)), unix=path) as local:
            with ScriptedServer(Image(bytearray(MiB), unix_socket=path)) as remote:
                subprocess.run([generation.python, "-W", "ignore", "-c", READ, remote.url], check=True)
        used.append("GET" in local.methods())
    assert used == [True, False]


@holds("`download` to a device that is mounted")
@needs("mkfs.ext4")
def test_mounted_device(generations, tmp_path):
    size = 16 * MiB
    outcomes = []
    for generation in generations:
        path, folder = tmp_path / generation.name, tmp_path / f"{generation.name}.mounted"
        folder.mkdir()
        with open(path, "wb") as f:
            f.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", path], check=True)
        program = "import sys; from ovirt_imageio import client; client.download(*sys.argv[1:], None, fmt='raw')"
        with loop_device(path) as device, mount(device, folder), ScriptedServer(Image(bytearray(size))) as server:
            command = [generation.python, "-c", program, server.url, device]
            outcomes.append(subprocess.run(command, capture_output=True, text=True, check=False))
    theirs, ours = outcomes
    # Some kernels refuse it.
    assert theirs.returncode == 0 or "Writing to file failed" in theirs.stderr
    assert "ImageInUse" in ours.stderr


class Zeroes(Image):
    """A disk that has nothing but zeroes, and says so."""

    def extents(self, got, query):
        return response(200, json.dumps([{"start": 0, "length": len(self.data), "zero": True, "hole": False}]).encode())


@holds("`download` to a device that held something")
def test_device_that_held_something(generations, tmp_path):
    held = []
    for generation in generations:
        path = tmp_path / generation.name
        path.write_bytes(b"x" * MiB)
        program = "import sys; from ovirt_imageio import client; client.download(*sys.argv[1:], None, fmt='raw')"
        with loop_device(path) as device, ScriptedServer(Zeroes(bytearray(MiB))) as server:
            subprocess.run([generation.python, "-c", program, server.url, device], check=True, timeout=60)
        # qemu-img clears the first sector for 2.5.1.
        held.append(path.read_bytes()[-1:])
    assert held == [b"x", b"\0"]
