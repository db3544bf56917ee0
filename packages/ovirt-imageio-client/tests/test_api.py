# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface that programs written for 2.x rely on: names, order and defaults of parameters, results."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import random
import subprocess
import sys
import tarfile
import time

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.qemu import Backing, Fill, fill_image, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client.layers import UnsafeImage
from ovirt_imageio.client.local import Source
from ovirt_imageio.client.unchanged import SourceChanged
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.checksum import checksum
from ovirt_imageio.common.errors import AuthorizationError, ProtocolError, TransferError, UnsupportedOperation
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent
from ovirt_imageio.common.units import GiB, KiB, MiB

OLD = {
    client.upload: {
        "filename": None,
        "url": None,
        "cafile": None,
        "buffer_size": client.BUFFER_SIZE,
        "secure": True,
        "progress": None,
        "proxy_url": None,
        "max_workers": client.MAX_WORKERS,
        "member": None,
        "backing_chain": True,
        "disk_is_zero": False,
    },
    client.download: {
        "url": None,
        "filename": None,
        "cafile": None,
        "fmt": "qcow2",
        "incremental": False,
        "buffer_size": client.BUFFER_SIZE,
        "secure": True,
        "progress": None,
        "proxy_url": None,
        "max_workers": client.MAX_WORKERS,
        "backing_file": None,
        "backing_format": None,
    },
    client.info: {"filename": None, "member": None},
    client.measure: {"filename": None, "dst_fmt": None, "member": None},
    client.checksum: {
        "filename": None,
        "member": None,
        "block_size": 4 * MiB,
        "algorithm": "blake2b",
        "detect_zeroes": True,
    },
    client.extents: {"filename": None, "member": None, "bitmap": None},
    client.ImageioClient: {
        "transfer_url": None,
        "cafile": None,
        "secure": True,
        "proxy_url": None,
        "buffer_size": client.BUFFER_SIZE,
    },
    client.ProgressBar: {
        "phase": None,
        "error_phase": "command failed",
        "size": None,
        "output": sys.stdout,
        "format": "text",
        "step": None,
        "width": 79,
        "now": time.monotonic,
    },
}


@pytest.mark.parametrize("function", OLD, ids=lambda function: function.__name__)
def test_parameters_are_those_of_the_contract_and_new_ones_are_keywords(function):
    parameters = list(inspect.signature(function).parameters.values())
    old, new = parameters[: len(OLD[function])], parameters[len(OLD[function]) :]
    assert [parameter.name for parameter in old] == list(OLD[function])
    for parameter in old:
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        default = OLD[function][parameter.name]
        if default is not None and parameter.name not in ("output", "width"):
            assert parameter.default == default
    assert {parameter.kind for parameter in new} <= {inspect.Parameter.KEYWORD_ONLY}


def test_names_of_the_contract_are_there():
    for name in ("upload", "download", "info", "measure", "checksum", "extents", "ImageioClient", "ProgressBar"):
        assert name in dir(client)
    assert 4 * MiB == client.BUFFER_SIZE
    assert client.MAX_WORKERS == 4


# Images on this machine.


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "disk.raw"
    make_image(path, "raw", 5 * MiB + 512, [Fill(0, 64 * KiB, 1), Fill(4 * MiB, MiB, 2)])
    return path


def test_raw_images_are_looked_at_without_qemu(raw, monkeypatch):
    monkeypatch.setenv("PATH", "")
    info = client.info(raw)
    assert (info["format"], info["virtual-size"], info["filename"]) == ("raw", 5 * MiB + 512, str(raw))
    assert client.measure(raw, "raw") == {"required": 5 * MiB + 512, "fully-allocated": 5 * MiB + 512}
    assert client.checksum(raw) == {
        "algorithm": "blake2b",
        "block_size": 4 * MiB,
        "checksum": checksum([MemoryBackend(Memory(raw.read_bytes()))]).checksum,
    }
    extents = list(client.extents(raw))
    assert sum(extent.length for extent in extents) == 5 * MiB + 512
    assert {type(extent) for extent in extents} == {ZeroExtent}


@pytest.mark.parametrize("detect", [True, False])
def test_checksum_does_not_depend_on_how_zeroes_are_found(raw, detect):
    assert client.checksum(raw, detect_zeroes=detect) == client.checksum(raw)


def test_checksum_takes_other_algorithms_and_blocks(raw):
    result = client.checksum(raw, block_size=MiB, algorithm="sha256")
    assert (result["algorithm"], result["block_size"], len(result["checksum"])) == ("sha256", MiB, 64)
    with pytest.raises(ValueError, match="algorithm"):
        client.checksum(raw, algorithm="rot13")


@pytest.mark.parametrize("block_size", [1000, 4096, 64 * KiB, MiB + 1, 64 * MiB])
def test_checksum_of_a_local_image_takes_any_block_size(raw, block_size):
    # Servers of 2.x take from 1 MiB to 16 MiB, its client whatever it is given.
    data = raw.read_bytes()
    digests = [
        hashlib.blake2b(data[start : start + block_size], digest_size=32).digest()
        for start in range(0, len(data), block_size)
    ]
    expected = hashlib.blake2b(b"".join(digests), digest_size=32).hexdigest()
    assert client.checksum(raw, block_size=block_size)["checksum"] == expected


def test_checksum_of_an_image_that_changes_meanwhile_is_none(raw, monkeypatch):
    os.utime(raw, (0, 0))  # the clock of a file system may be coarse

    def open_(source, open_=Source.open):
        with open(raw, "r+b") as f:
            f.write(b"new")
        return open_(source)

    monkeypatch.setattr(Source, "open", open_)
    with pytest.raises(SourceChanged, match=f"{raw} was changed while it was read"):
        client.checksum(raw)


@pytest.mark.parametrize("block_size", [0, -1])
def test_block_without_bytes_is_refused(raw, block_size):
    with pytest.raises(ValueError, match=f"block_size {block_size}: expected 1 byte or more"):
        client.checksum(raw, block_size=block_size)


def test_member_is_told_with_its_place(raw, tmp_path):
    with tarfile.open(tmp_path / "vm.ova", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(raw, "disk1")
    info = client.info(tmp_path / "vm.ova", member="disk1")
    assert (info["member-offset"], info["member-size"]) == (512, 5 * MiB + 512)
    measure = client.measure(tmp_path / "vm.ova", "raw", member="disk1")
    assert (measure["member-offset"], measure["member-size"]) == (512, 5 * MiB + 512)
    assert client.checksum(tmp_path / "vm.ova", member="disk1") == client.checksum(raw)


@needs_qemu
def test_qcow2_is_described_as_qemu_img_does(tmp_path):
    path = tmp_path / "disk.qcow2"
    make_image(path, "qcow2", GiB, [Fill(MiB, MiB, 7)])
    said = json.loads(subprocess.check_output(["qemu-img", "info", "--output", "json", path]))
    info = client.info(path)
    assert {key: info[key] for key in said if key not in ("actual-size", "children")} == {
        key: said[key] for key in said if key not in ("actual-size", "children")
    }
    said = json.loads(subprocess.check_output(["qemu-img", "measure", "--output", "json", "-O", "qcow2", path]))
    assert {key: client.measure(path, "qcow2")[key] for key in said} == said


@needs_qemu
def test_dirty_extents_of_a_bitmap(tmp_path):
    path = str(tmp_path / "disk.qcow2")
    make_image(path, "qcow2", 4 * MiB, [Fill(0, MiB, 1)])
    subprocess.check_call(["qemu-img", "bitmap", "--add", path, "since"])
    subprocess.check_call(["qemu-io", "-c", "write -P 5 2M 64k", path], stdout=subprocess.DEVNULL)
    extents = list(client.extents(path, bitmap="since"))
    assert [(e.start, e.length) for e in extents if e.dirty] == [(2 * MiB, 64 * KiB)]
    assert {type(extent) for extent in extents} == {DirtyExtent}


@needs_qemu
def test_dirty_extents_tell_data_of_the_backing_file_from_zeroes(tmp_path):
    base, top = str(tmp_path / "base.qcow2"), str(tmp_path / "top.qcow2")
    make_image(base, "qcow2", 4 * MiB, [Fill(0, MiB, 1)])
    make_image(top, "qcow2", 4 * MiB, backing=Backing(base, "qcow2"))
    subprocess.check_call(["qemu-img", "bitmap", "--add", top, "since"])
    fill_image(top, "qcow2", [Fill(2 * MiB, 64 * KiB, 5), Fill(3 * MiB, 64 * KiB, 0)])
    kinds = {(e.dirty, e.data): (e.start, e.length) for e in client.extents(top, bitmap="since")}
    assert kinds[False, True] == (0, MiB)
    assert kinds[True, True] == (2 * MiB, 64 * KiB)
    assert kinds[True, False] == (3 * MiB, 64 * KiB)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("upload", lambda path: client.upload(path, "https://localhost:1/images/none", None)),
        ("checksum", lambda path: client.checksum(path)),
        ("extents", lambda path: list(client.extents(path))),
        ("measure", lambda path: client.measure(path, "raw")),
    ],
)
@needs_qemu
def test_hostile_image_is_refused_and_named_before_anything_is_opened(tmp_path, name, call):
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * MiB)
    path = tmp_path / "disk.qcow2"
    make_image(path, "qcow2", MiB)
    backing = "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(secret)}})
    subprocess.check_call(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path])
    with pytest.raises(UnsafeImage, match=r"json:.*refused"):
        call(path)


# Transfers.


@pytest.fixture
def data():
    return bytearray(random.Random(3).randbytes(2 * MiB))


def test_progress_may_be_a_function_or_an_object_with_size_and_update(data, tmp_path):
    class Only:
        size = None
        done = 0

        def update(self, n):
            self.done += n

    counted, only = [], Only()
    with ScriptedServer(Image(data)) as server:
        client.download(server.url, tmp_path / "one", None, fmt="raw", progress=counted.append)
        client.download(server.url, tmp_path / "two", None, fmt="raw", progress=only)
    assert sum(counted) == only.done == only.size == len(data)


def test_environment_and_netrc_override_nothing(data, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    os.chmod(tmp_path / "netrc", 0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "/no/such/file")
    with ScriptedServer(Image(data)) as server:
        client.download(server.url, tmp_path / "copy", None, fmt="raw")
    assert (tmp_path / "copy").read_bytes() == data
    assert not any("authorization" in got.headers for got in server.requests)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"fmt": "vmdk"}, "invalid format 'vmdk'"),
        ({"fmt": "raw", "incremental": True}, "incremental download needs the format 'qcow2'"),
        ({"fmt": "raw", "backing_file": "base"}, "backing file 'base' needs the format 'qcow2'"),
        ({"max_workers": 0}, "max_workers 0"),
        ({"buffer_size": 0}, "buffer_size 0"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_done(tmp_path, options, error):
    with pytest.raises(ValueError, match=error):
        client.download("https://localhost:1/images/none", tmp_path / "copy", None, **options)
    assert os.listdir(tmp_path) == []


def test_backing_format_without_a_backing_file_means_nothing(data, tmp_path):
    # Programs that make backups pass it always, and the first backup has no backing file.
    with ScriptedServer(Image(data)) as server:
        client.download(server.url, tmp_path / "copy", None, fmt="raw", backing_format="qcow2")
    assert (tmp_path / "copy").read_bytes() == data


@needs_qemu
def test_qcow2_with_a_backing_format_alone_has_no_backing_file(data, tmp_path):
    with ScriptedServer(Image(data)) as server:
        client.download(server.url, tmp_path / "copy", None, backing_format="qcow2")
    info = client.info(tmp_path / "copy")
    assert (info["format"], info["virtual-size"]) == ("qcow2", len(data))
    assert "backing-filename" not in info


def test_image_that_does_not_fit_is_told(data, tmp_path):
    (tmp_path / "disk").write_bytes(bytes(data) + b"x")
    with ScriptedServer(Image(data)) as server:
        with pytest.raises(TransferError, match="does not fit: the disk has 2097152 bytes"):
            client.upload(tmp_path / "disk", server.url, None)
    assert "PUT" not in server.methods()


def test_empty_image_is_not_uploaded_without_a_word(data, tmp_path):
    (tmp_path / "disk").write_bytes(b"")
    with ScriptedServer(Image(data)) as server, pytest.raises(TransferError, match=r"disk has 0 bytes.*2097152 bytes"):
        client.upload(tmp_path / "disk", server.url, None)
    with ScriptedServer(Image(bytearray())) as server:
        client.upload(tmp_path / "disk", server.url, None)


def test_smaller_image_leaves_the_rest_of_the_disk(data, tmp_path):
    (tmp_path / "disk").write_bytes(b"new" * 1000)
    expected = b"new" * 1000 + bytes(data[3000:])
    with ScriptedServer(Image(data)) as server:
        client.upload(tmp_path / "disk", server.url, None, fmt="raw")
    assert data == expected


# A layer of a chain: the disk has the layers below.

LAYER = [Fill(0, MiB, 0x11), Fill(MiB, MiB, 0)]
HELD = {"qcow2": 2 * MiB, "qed": 2 * MiB, "vmdk": MiB, "qcow": MiB, "raw": 4 * MiB}
"""Bytes from the start that an image of LAYER holds; vmdk and qcow keep no zeroes."""


@needs_qemu
@pytest.mark.parametrize("is_zero", [False, True])
@pytest.mark.parametrize("fmt", HELD)
def test_layer_hides_what_it_holds_and_shows_the_rest(tmp_path, fmt, is_zero):
    make_image(tmp_path / "layer", fmt, 4 * MiB, LAYER if HELD[fmt] > MiB else LAYER[:1])
    below = bytes(random.Random(7).randbytes(4 * MiB))
    disk = bytearray(below)
    with ScriptedServer(Image(disk)) as server:
        client.upload(tmp_path / "layer", server.url, None, backing_chain=False, disk_is_zero=is_zero, fmt=fmt)
    expected = (b"\x11" * MiB).ljust(HELD[fmt], b"\0") + below[HELD[fmt] :]
    assert disk == expected


def test_read_ticket_refuses_an_upload_before_a_byte_is_sent(data, tmp_path):
    class ReadOnly(Image):
        def do_options(self, got, query):
            return super().do_options(got, query).replace(b"OPTIONS,GET,PUT,PATCH", b"OPTIONS,GET")

    (tmp_path / "disk").write_bytes(bytes(data))
    with ScriptedServer(ReadOnly(data)) as server, pytest.raises(UnsupportedOperation, match="not allow writing"):
        client.upload(tmp_path / "disk", server.url, None)


def test_expired_ticket_is_told_with_the_servers_words(data, tmp_path):
    class Expired(Image):
        def do_options(self, got, query):

            return response(403, b"the ticket has expired\n")

    with ScriptedServer(Expired(data)) as server:
        with pytest.raises(AuthorizationError, match="403 Forbidden: the ticket has expired"):
            client.download(server.url, tmp_path / "copy", None)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("at", [0, MiB])
def test_source_that_cannot_be_read_is_named_at_the_first_try(data, tmp_path, monkeypatch, at):
    (tmp_path / "disk").write_bytes(b"x" * len(data))
    read = os.preadv
    tries = []

    def preadv(fd, buffers, offset, *flags):
        if offset >= at and not flags:
            tries.append(offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", preadv)
    with ScriptedServer(Image(data)) as server, pytest.raises(OSError, match="Input/output error") as e:
        client.upload(tmp_path / "disk", server.url, None, max_workers=1)
    assert e.value.filename == str(tmp_path / "disk")
    assert len(tries) == 1


@pytest.mark.parametrize("kind", ["folder", "fifo"])
@pytest.mark.parametrize("call", [client.info, client.checksum, lambda path: list(client.extents(path))])
def test_what_is_no_file_is_named(tmp_path, kind, call):
    path = tmp_path / "thing"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    words = {"folder": "Is a directory", "fifo": "neither a regular file nor a block device"}
    with pytest.raises(OSError, match=words[kind]) as e:
        call(path)
    assert e.value.filename == str(path)


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file_is_named_as_the_source_of_an_upload(tmp_path, data, kind):
    path = tmp_path / "thing"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    for member in (None, "disk"):
        with ScriptedServer(Image(data)) as server, pytest.raises(OSError, match="directory|regular file") as e:
            client.upload(path, server.url, None, member=member)
        assert e.value.filename == str(path)


def test_redirect_is_not_followed(data, tmp_path):

    elsewhere = []
    with ScriptedServer(lambda got: elsewhere.append(got)) as other:

        class Redirecting(Image):
            def do_get(self, got, query):
                return response(302, Location=other.url)

        with ScriptedServer(Redirecting(data)) as server, pytest.raises(ProtocolError, match="302"):
            client.download(server.url, tmp_path / "copy", None, fmt="raw")
    assert elsewhere == []
