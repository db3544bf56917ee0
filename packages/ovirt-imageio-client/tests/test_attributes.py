# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import struct

import pytest

from imageio_testing.mounts import NOBODY, folder_of, unprivileged
from ovirt_imageio.client import attributes
from ovirt_imageio.client.attributes import Attributes

OTHER = 4242
"""A user and a group that tests have nothing to do with."""

ACL = "system.posix_acl_access"


def acl(*entries):
    """An ACL as linux/posix_acl_xattr.h has it: tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


FOR_ONE_MORE = acl(
    (0x01, 6, 0xFFFFFFFF),  # the owner
    (0x02, 6, OTHER),
    (0x04, 4, 0xFFFFFFFF),  # the group
    (0x10, 6, 0xFFFFFFFF),  # the mask
    (0x20, 0, 0xFFFFFFFF),  # others
)


@pytest.fixture(autouse=True)
def _known(tmp_path):
    try:
        os.setxattr(tmp_path, "user.comment", b"a folder of tests")
    except OSError as e:
        pytest.skip(f"no extended attributes in {tmp_path}: {e.strerror}")


@pytest.fixture
def opened():
    """Opens files, and closes them in the end."""
    fds = []

    def opened(path, mode=0o600):
        fds.append(os.open(path, os.O_RDWR | os.O_CREAT, mode))
        return fds[-1]

    yield opened
    for fd in fds:
        os.close(fd)


def test_all_that_was_read_is_given(tmp_path, opened):
    old, new = opened(tmp_path / "old"), opened(tmp_path / "new")
    os.chmod(tmp_path / "old", 0o2754)
    os.setxattr(tmp_path / "old", "user.comment", b"golden\0image")
    os.setxattr(tmp_path / "old", ACL, FOR_ONE_MORE)
    if os.geteuid() == 0:
        os.chown(tmp_path / "old", 107, 36)
        os.chmod(tmp_path / "old", 0o6765)
        os.setxattr(tmp_path / "old", "trusted.mark", b"1")
        os.setxattr(tmp_path / "old", "security.selinux", b"system_u:object_r:virt_image_t:s0\0")
    wanted = attributes.read(old)
    assert attributes.give(new, wanted) == []
    assert attributes.read(new) == wanted
    assert {"user.comment", ACL} <= set(wanted.xattrs)
    if os.geteuid() == 0:
        assert (wanted.uid, wanted.gid, wanted.mode) == (107, 36, 0o6765)
        assert {"trusted.mark", "security.selinux"} <= set(wanted.xattrs)


def test_signatures_of_the_content_are_not_given(tmp_path, opened, monkeypatch):
    old = opened(tmp_path / "old")
    monkeypatch.setattr(os, "listxattr", lambda fd: ["security.ima", "security.evm"])
    assert attributes.read(old).xattrs == {}


def test_acl_that_a_new_file_inherits_goes_where_the_old_one_had_none(tmp_path, opened):
    old = opened(tmp_path / "old", 0o640)
    os.setxattr(tmp_path, "system.posix_acl_default", FOR_ONE_MORE)
    new = opened(tmp_path / "new")
    assert ACL in os.listxattr(tmp_path / "new")
    attributes.give(new, attributes.read(old))
    assert ACL not in os.listxattr(tmp_path / "new")
    assert os.stat(tmp_path / "new").st_mode & 0o777 == 0o640


def test_file_system_without_attributes_has_none(tmp_path, opened, monkeypatch):
    def listxattr(fd):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", listxattr)
    old, new = opened(tmp_path / "old"), opened(tmp_path / "new")
    assert attributes.give(new, attributes.read(old)) == []


# Properties that a user may not give.


def test_owner_that_cannot_be_given_is_told_and_its_privileges_are_not_given(opened):
    with folder_of(NOBODY) as folder, unprivileged():
        new = opened(folder / "new")
        refused = attributes.give(new, Attributes(OTHER, NOBODY, 0o4660))
        assert refused == [f"the owner {OTHER}"]
        assert os.fstat(new).st_mode & 0o7777 == 0o660


@pytest.mark.parametrize(
    ("mode", "given"), [(0o640, 0o600), (0o2664, 0o644), (0o660, 0o600), (0o604, 0o604), (0o664, 0o644)]
)
def test_other_group_may_do_no_more_than_all_others(opened, mode, given):
    with folder_of(NOBODY) as folder, unprivileged():
        new = opened(folder / "new")
        assert attributes.give(new, Attributes(NOBODY, OTHER, mode, {ACL: FOR_ONE_MORE})) == [
            f"the group {OTHER}",
            "the ACL",
        ]
        assert os.fstat(new).st_mode & 0o7777 == given


def test_attribute_that_cannot_be_given_is_named(opened):
    with folder_of(NOBODY) as folder, unprivileged():
        new = opened(folder / "new")
        wanted = Attributes(NOBODY, NOBODY, 0o600, {"trusted.mark": b"1", "user.comment": b"kept"})
        assert attributes.give(new, wanted) == ["trusted.mark"]
        assert os.getxattr(new, "user.comment") == b"kept"
