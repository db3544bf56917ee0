# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which backend a URL opens."""

from __future__ import annotations

import pytest

from imageio_testing.nbdpeer import Image, Peer, serve
from ovirt_imageio.common import backends, nbd
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.errors import ImageioError


@pytest.mark.parametrize("form", ["nbd:unix:{}:exportname=a b", "nbd+unix:///a%20b?socket={}"])
def test_nbd(form):
    with serve(Image(bytearray(4096))) as peer, backends.open(form.format(peer.address.path), mode="r+") as backend:
        assert isinstance(backend, NbdBackend)
        assert backend.address.export == "a b"
        assert not backend.capabilities.read_only


def test_nbd_by_tcp():
    with serve(Image(bytearray(4096)), tcp=True) as peer:
        for url in (peer.address.uri(), f"nbd:127.0.0.1:{peer.address.port}"):
            with backends.open(url) as backend:
                assert backend.size == 4096


def test_file_opens_what_the_path_says_undecoded(tmp_path):
    path = tmp_path / "50% of #1?"
    path.write_bytes(b"x" * 100)
    for start in ("file://", "file://localhost", "file:", "FILE:"):
        with backends.open(f"{start}{path}") as backend:
            assert isinstance(backend, FileBackend)
            assert backend.size == 100


def test_http_goes_to_the_server_that_the_url_names():
    with pytest.raises(ImageioError, match="127.0.0.1"):
        backends.open("http://127.0.0.1:1/images/x")


@pytest.mark.parametrize("url", ["", "disk.raw", "/disk.raw", "ftp://host/disk", "rbd:pool/image", "http://[::1/x"])
def test_other_urls_are_refused_by_name(url):
    with pytest.raises(ValueError, match="storage URL") as e:
        backends.open(url)
    assert repr(url) in str(e.value)


@pytest.mark.parametrize(
    "url", ["file://", "file://host/disk", "file:disk", "file:", "file:localhost/disk", "file:///a\0b"]
)
def test_file_urls_without_an_absolute_path_are_refused(url):
    with pytest.raises(ValueError, match="file URL"):
        backends.file_path(url)


def test_file_urls_that_no_file_can_have_are_refused():
    assert backends.file_path("file:///" + "x" * 4094) == "/" + "x" * 4094
    for path in ("x" * 4095, "é" * 2048, "\ud800"):
        with pytest.raises(ValueError):
            backends.file_path(f"file:///{path}")


@pytest.mark.parametrize("form", ["{}", "http://[::1/{}", "file://{}"])
def test_refusal_is_one_short_line_however_long_the_url(form):
    with pytest.raises(ValueError) as e:
        backends.open(form.format("\n\x1b\u2028" * 20000))
    assert len(str(e.value)) < 1000
    assert str(e.value).isprintable()


def test_unknown_mode_is_a_mistake():
    with pytest.raises(ValueError, match="'rw'"):
        backends.open("file:///disk", mode="rw")


def test_time_limit_is_that_of_the_server():
    def script(talk):
        talk.negotiate(4096)
        talk.wait_for_hangup()

    with Peer(script) as peer, backends.open(peer.address.uri(), timeout=0.05) as backend:
        with pytest.raises(nbd.ServerTimeout):
            backend.read_into(0, bytearray(1))
