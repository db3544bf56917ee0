# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Programs that use the client library: nbdkit's plugin, upstream's examples, those of SDK 4.6.

Each program is a script of `programs/`, where its source is named. It runs with the library of either generation,
and talks to the daemon of either. `packages/ovirt-imageio-client/tests/system/test_sdk_examples.py` runs
the examples of SDK 4.6 themselves, with an engine; here they meet 2.5.1.
"""

from __future__ import annotations

import contextlib
import json
import tarfile

import pytest

from clients.host import raw_volume
from conformance.storage import pattern
from imageio_testing.images import as_raw, same_bytes
from imageio_testing.ports import held_port
from imageio_testing.qemu import Fill, MiB, content, fill_image, make_image, needs_qemu
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

SIZE = 8 * MiB
FILLS = [Fill(0, 65536, 1), Fill(2 * MiB, MiB, 2), Fill(SIZE - 65536, 65536, 3)]

pytestmark = needs_qemu


@contextlib.contextmanager
def transfer(host, path, fmt, *ops, **keys):
    """Serve a disk by qemu-nbd, and yield its transfer URL."""
    options = {"bitmap": keys.pop("bitmap")} if "bitmap" in keys else {}
    with Server(str(path), fmt, shared=8, read_only=ops == ("read",), **options) as server:
        ticket_id = host.add_ticket(server.url, img.info(str(path))["virtual-size"], ops, sparse=True, **keys)
        yield host.image_url(ticket_id)
        assert host.remove_ticket(ticket_id) < 300


def test_nbdkit_plugin(host, library, tmp_path):
    img.create(str(tmp_path / "disk"), "qcow2", size=SIZE)
    with transfer(host, tmp_path / "disk", "qcow2", "read", "write") as url:
        library.run("nbdkit_imageio", url, SIZE)


def test_sparse_stream(host, library, tmp_path):
    """A full backup, and its restore to another disk that holds something else."""
    make_image(tmp_path / "disk", "qcow2", SIZE, FILLS)
    with transfer(host, tmp_path / "disk", "qcow2", "read") as url:
        stream = library.run("sparse_stream", "download", url)
    meta = json.loads(stream.split(b"\n", 1)[0])[1]
    assert meta == {"virtual-size": SIZE, "data-size": sum(fill.length for fill in FILLS)}
    make_image(tmp_path / "restored", "qcow2", SIZE, [Fill(MiB, 2 * MiB, 9)])
    with transfer(host, tmp_path / "restored", "qcow2", "write") as url:
        library.run("sparse_stream", "upload", url, stdin=stream)
    assert img.compare(str(tmp_path / "disk"), str(tmp_path / "restored"), fmt_a="qcow2", fmt_b="qcow2")


def test_sparse_stream_of_changes(host, library, tmp_path):
    """An incremental backup, restored above the full one."""
    for name in ("disk", "restored"):
        make_image(tmp_path / name, "qcow2", SIZE, FILLS)
    img.add_bitmap(str(tmp_path / "disk"), "since")
    fill_image(tmp_path / "disk", "qcow2", [Fill(2 * MiB, 65536, 7), Fill(4 * MiB, 65536, 8), Fill(0, 65536, 0)])
    with transfer(host, tmp_path / "disk", "qcow2", "read", dirty=True, bitmap="since") as url:
        stream = library.run("sparse_stream", "incremental", url)
    assert len(stream) < 3 * 65536
    with transfer(host, tmp_path / "restored", "qcow2", "write") as url:
        library.run("sparse_stream", "upload", url, stdin=stream)
    assert img.compare(str(tmp_path / "disk"), str(tmp_path / "restored"), fmt_a="qcow2", fmt_b="qcow2")


def test_libvirt_stream(host, library, tmp_path):
    """The disk is larger than what comes, and held something else."""
    data = content(SIZE, FILLS)
    (tmp_path / "source").write_bytes(data)
    make_image(tmp_path / "disk", "qcow2", SIZE + MiB, [Fill(MiB, SIZE, 9)])
    with transfer(host, tmp_path / "disk", "qcow2", "write") as url:
        shown = library.run("libvirt_stream", tmp_path / "source", url)
    assert b"100%" in shown
    as_raw(tmp_path / "disk", "qcow2", tmp_path / "copy")
    same_bytes(tmp_path / "source", tmp_path / "copy", size=SIZE)
    assert not any((tmp_path / "copy").read_bytes()[SIZE:])


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("reach", ["transfer", "proxy", "fallback"])
def test_sdk_4_6_moves_a_disk(host, engine_host, library, tmp_path, fmt, reach):
    """By the host, by the engine's proxy, and by the proxy since the host cannot be reached."""
    make_image(tmp_path / f"image.{fmt}", fmt, SIZE, FILLS)
    img.create(str(tmp_path / "disk"), "qcow2", size=SIZE)
    with Server(str(tmp_path / "disk"), "qcow2", shared=8) as server, held_port() as closed:
        ticket_id = host.add_ticket(server.url, SIZE, ["write"], sparse=True)
        engine_host.add_ticket(host.image_url(ticket_id), SIZE, ["write"], uuid=ticket_id, sparse=True)
        direct, proxy = host.image_url(ticket_id), engine_host.image_url(ticket_id)
        urls = {"transfer": (direct, ""), "proxy": (proxy, "")}.get(
            reach, (direct.replace(str(host.port), str(closed)), proxy)
        )
        library.run("sdk_4_6", "upload", tmp_path / f"image.{fmt}", fmt, host.cafile, *urls)
        out = library.run("sdk_4_6", "download", tmp_path / f"copy.{fmt}", fmt, host.cafile, *urls)
    assert b"100%" in out
    for name, name_fmt in (("disk", "qcow2"), (f"copy.{fmt}", fmt)):
        assert img.compare(str(tmp_path / f"image.{fmt}"), str(tmp_path / name), fmt_a=fmt, fmt_b=name_fmt)


def test_sdk_4_6_checks_a_disk(host, library, tmp_path):
    """checksum_disk.py asks the daemon by http.client, checksum_image.py the library: both say the same."""
    make_image(tmp_path / "image", "qcow2", SIZE, FILLS)
    with transfer(host, tmp_path / "image", "qcow2", "read") as url:
        found = json.loads(library.run("sdk_4_6", "checksum", tmp_path / "image", "qcow2", host.cafile, url, ""))
    assert found["disk"] == found["image"]
    assert found["disk"]["algorithm"] == "blake2b"


def test_sdk_4_6_backs_up_in_steps(host, library, tmp_path):
    """backup_vm.py: a full backup, then an incremental one above it."""
    make_image(tmp_path / "disk", "qcow2", SIZE, FILLS)
    with transfer(host, tmp_path / "disk", "qcow2", "read") as url:
        library.run("sdk_4_6", "backup", tmp_path / "full.qcow2", "", host.cafile, url, "")
    img.add_bitmap(str(tmp_path / "disk"), "since")
    fill_image(tmp_path / "disk", "qcow2", [Fill(4 * MiB, 65536, 8), Fill(0, 65536, 0)])
    with transfer(host, tmp_path / "disk", "qcow2", "read", dirty=True, bitmap="since") as url:
        library.run("sdk_4_6", "backup", tmp_path / "inc.qcow2", "full.qcow2", host.cafile, url, "")
    assert img.info(str(tmp_path / "inc.qcow2"))["backing-filename"] == "full.qcow2"
    assert img.compare(str(tmp_path / "disk"), str(tmp_path / "inc.qcow2"), fmt_a="qcow2", fmt_b="qcow2")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_sdk_4_6_uploads_a_disk_of_an_ova(host, library, tmp_path, fmt):
    """upload_from_ova.py looks at the image within the archive, measures it, and uploads it."""
    make_image(tmp_path / "image", fmt, SIZE, FILLS)
    (tmp_path / "vm.ovf").write_text("<Envelope/>")
    with tarfile.open(tmp_path / "vm.ova", "w", format=tarfile.USTAR_FORMAT) as ova:
        ova.add(tmp_path / "vm.ovf", "vm.ovf")
        ova.add(tmp_path / "image", "disk1")
    img.create(str(tmp_path / "disk"), "qcow2", size=SIZE)
    with transfer(host, tmp_path / "disk", "qcow2", "write") as url:
        out = library.run("sdk_4_6", "ova", tmp_path / "vm.ova", "disk1", host.cafile, url, "")
    found = json.loads(out.splitlines()[-1])
    assert (found["format"], found["virtual-size"]) == (fmt, SIZE)
    assert found["required"] > sum(fill.length for fill in FILLS)
    assert img.compare(str(tmp_path / "image"), str(tmp_path / "disk"), fmt_a=fmt, fmt_b="qcow2")


def test_sdk_4_6_reads_the_beginning_again_and_again(host, library, tmp_path):
    """image_transfer.py shows that a transfer works."""
    raw_volume(tmp_path / "disk", SIZE, pattern(4096))
    ticket_id = host.add_ticket(f"file://{tmp_path}/disk", SIZE, ["read"])
    out = library.run("sdk_4_6", "look", "", "", host.cafile, host.image_url(ticket_id), "")
    assert json.loads(out) == {"size": SIZE, "first": pattern(8).hex()}
