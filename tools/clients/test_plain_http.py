# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Programs that know HTTP and nothing of images: curl, wget, and qemu's driver of libcurl.

2.5.1 has no HEAD and takes no chunks, so what needs those is tried with ours alone.

Source: the programs themselves, which are run: curl 7.88, wget 1.21 and qemu 7.2 of Debian 12 were tried.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from clients.host import Host, assert_content, raw_volume
from conformance.storage import pattern
from imageio_testing.qemu import needs, needs_qemu

SIZE = (1 << 20) + 512
DATA = pattern(SIZE)

TIMEOUT = 60


def run(*command: object, stdin: bytes = b"") -> bytes:
    """Run a program.

    Raises:
        AssertionError: It failed. The text is what it wrote.
    """
    done = subprocess.run([*map(str, command)], input=stdin, capture_output=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def readable(host: Host, tmp_path):
    """The transfer URL of a disk to read."""
    return host.image_url(host.add_ticket(raw_volume(tmp_path / "volume", SIZE, DATA), SIZE, ["read"]))


@pytest.fixture
def writable(host: Host, tmp_path):
    """The transfer URL of an empty file that may grow."""
    return host.image_url(host.add_ticket(raw_volume(tmp_path / "volume", 0), SIZE, ["write"]))


def only_here(host: Host) -> None:
    if host.generation.name == "2.5.1":
        pytest.skip("2.5.1 has no HEAD and takes no chunks")


@needs("curl")
def test_curl_goes_on_with_a_download(host, readable, tmp_path):
    path = tmp_path / "copy"
    path.write_bytes(DATA[:100_000])
    run("curl", "-sS", "-f", "--cacert", host.cafile, "-C", "-", "-o", path, readable)
    assert path.read_bytes() == DATA


@needs("curl")
def test_curl_has_nothing_to_go_on_with(host, readable, tmp_path):
    """It takes 416 for the end where the size in Content-Range is that of its file."""
    only_here(host)
    path = tmp_path / "copy"
    path.write_bytes(DATA)
    run("curl", "-sS", "--cacert", host.cafile, "-C", "-", "-o", path, readable)
    assert path.read_bytes() == DATA


@needs("curl")
def test_curl_uploads_a_file(host, writable, tmp_path):
    """A large body is announced by Expect; the answer to that is waited for."""
    (tmp_path / "image").write_bytes(DATA)
    status = run("curl", "-sS", "--cacert", host.cafile, "-w", "%{http_code}", "-T", tmp_path / "image", writable)
    assert status == b"200"
    assert_content(host, tmp_path / "volume", DATA)


@needs("curl")
def test_curl_goes_on_with_an_upload(host, writable, tmp_path):
    """The rest has a Content-Range with a total."""
    (tmp_path / "image").write_bytes(DATA)
    (tmp_path / "begun").write_bytes(DATA[:65536])
    for options in (("-T", tmp_path / "begun"), ("-C", 65536, "-T", tmp_path / "image")):
        assert run("curl", "-sS", "--cacert", host.cafile, "-w", "%{http_code}", *options, writable) == b"200"
    assert_content(host, tmp_path / "volume", DATA)


@needs("curl")
def test_curl_uploads_a_pipe(host, writable, tmp_path):
    only_here(host)
    command = ("curl", "-sS", "--cacert", host.cafile, "-w", "%{http_code}", "-T", "-", writable)
    assert run(*command, stdin=DATA) == b"200"
    assert_content(host, tmp_path / "volume", DATA)


@needs("wget")
def test_wget_goes_on_with_a_download(host, readable, tmp_path):
    path = tmp_path / "copy"
    path.write_bytes(DATA[:100_000])
    run("wget", "-q", "-c", f"--ca-certificate={host.cafile}", "-O", path, readable)
    assert path.read_bytes() == DATA


@needs_qemu
def test_qemu_reads_by_its_driver_of_libcurl(host, readable, tmp_path):
    """It asks for the size by HEAD, for Accept-Ranges, and then for ranges up to the last byte."""
    only_here(host)
    options = {"driver": "https", "url": readable, "sslverify": "off", "cookie": "session=none"}
    image = "json:" + json.dumps({"driver": "raw", "file": options})
    command = ["qemu-img", "convert", "-O", "raw", image, str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if "Unknown driver" in done.stderr or "Unknown protocol" in done.stderr:
        pytest.skip("this qemu lacks its driver of libcurl, on Debian of qemu-block-extra")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy").read_bytes() == DATA
