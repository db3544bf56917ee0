# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""URLs of one storage are known as such, and those of two are not taken for one."""

from __future__ import annotations

import os

import pytest

from ovirt_imageio.common.backends.identity import identity


@pytest.fixture
def folder(tmp_path):
    """A folder with a socket's name, a file, and links to them and to the folder."""
    (tmp_path / "vm").mkdir()
    (tmp_path / "link").symlink_to("vm")
    (tmp_path / "vm" / "disk").write_bytes(b"x")
    (tmp_path / "vm" / "other").write_bytes(b"x")
    (tmp_path / "vm" / "disk-link").symlink_to("disk")
    os.link(tmp_path / "vm" / "disk", tmp_path / "vm" / "hard")
    (tmp_path / "vm" / "sock-link").symlink_to("sock")
    return tmp_path


@pytest.mark.parametrize(
    "spelling",
    [
        "nbd:unix:{0}/vm/sock:exportname=sda/1",
        "nbd+unix:///sda/1?socket={0}/vm/sock",
        "nbd+unix:///%73da%2F1?socket={0}/vm/s%6Fck",
        "nbd:unix:{0}/vm/./sock:exportname=sda/1",
        "nbd:unix:{0}/vm//sock:exportname=sda/1",
        "nbd:unix:{0}/link/../vm/sock:exportname=sda/1",
        "nbd:unix:{0}/link/sock:exportname=sda/1",
        "nbd+unix:///sda/1?socket={0}/vm/sock-link",
    ],
)
def test_unix_socket_is_known_by_its_path_and_export(folder, spelling):
    assert identity(spelling.format(folder)) == identity(f"nbd:unix:{folder}/vm/sock:exportname=sda/1")


def test_server_that_is_not_there_has_an_identity(folder):
    (folder / "vm" / "sock").write_bytes(b"")
    before = identity(f"nbd:unix:{folder}/vm/sock")
    (folder / "vm" / "sock").unlink()
    assert identity(f"nbd+unix:///?socket={folder}/link/sock") == before


def test_abstract_socket_is_known_by_its_name():
    assert identity("nbd:unix:\\u0000name") == identity("nbd:unix:\0name") == identity("nbd+unix:///?socket=%00name")
    assert identity("nbd:unix:\0name") != identity("nbd:unix:\0./name")


@pytest.mark.parametrize(
    "spelling",
    ["nbd:server:10809:exportname=a", "nbd:SERVER:10809:exportname=a", "nbd://Server/a", "nbd://server:10809/%61"],
)
def test_tcp_server_is_known_by_host_port_and_export(spelling):
    assert identity(spelling) == identity("nbd://server/a")


def test_address_is_known_by_its_number():
    assert identity("nbd://[FE80:0::0:1]/") == identity("nbd:[fe80::1]:10809")
    assert identity("nbd://[fe80::1%25eth0]/") == identity("nbd://[FE80::1%eth0]/") != identity("nbd://[fe80::1]/")


@pytest.mark.parametrize(
    "spelling",
    [
        "file://{0}/vm/disk",
        "file:{0}/vm/disk",
        "file://localhost{0}/vm/disk",
        "file:{0}/vm/../link/./disk",
        "file://{0}/vm/disk-link",
        "file://{0}/vm/hard",
    ],
)
def test_file_is_known_by_its_inode(folder, spelling):
    assert identity(spelling.format(folder)) == identity(f"file://{folder}/vm/disk")


def test_block_device_is_known_by_its_number(monkeypatch):
    device = os.stat_result((0o60660, 5, 6, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": 2065})
    monkeypatch.setattr(os, "stat", lambda path: device)
    assert identity("file:///dev/sdb1") == ("device", 2065)


@pytest.mark.parametrize(
    "spelling",
    [
        "https://server:443/images/a-b",
        "https://server/images/a-b",
        "HTTPS://SERVER/images/a-b",
        "https://server/images/%61%2Db",
    ],
)
def test_image_is_known_by_server_and_path(spelling):
    assert identity(spelling) == identity("https://server/images/a-b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nbd:unix:/a:exportname=x", "nbd:unix:/a:exportname=X"),
        ("nbd:unix:/a", "nbd:unix:/A"),
        ("nbd:unix:/a", "nbd:unix:/a:exportname=a"),
        ("nbd://server:1/", "nbd://server:2/"),
        ("nbd://server/a", "nbd://other/a"),
        ("file:///vm/disk", "file:///vm/other"),
        ("file:///none", "file:///no"),
        ("https://server/images/a", "http://server/images/a"),
        ("https://server/images/a", "https://server/images/A"),
        ("https://server:1/images/a", "https://server:2/images/a"),
        ("gopher://a", "gopher://b"),
        ("nbd:", "nbd::"),
    ],
)
def test_other_storage_has_another_identity(one, other):
    assert identity(one) != identity(other)
    assert identity(one) == identity(one)


def test_files_of_one_content_are_two(folder):
    assert identity(f"file://{folder}/vm/disk") != identity(f"file://{folder}/vm/other")
