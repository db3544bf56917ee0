# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import os

import pytest

from ovirt_imageio.client.inuse import ImageInUse
from ovirt_imageio.client.part import Part, beside
from ovirt_imageio.client.records import Identity
from ovirt_imageio.common.errors import TransferError

ME = {os.geteuid()}


def make(folder, name="disk"):
    return contextlib.closing(Part.make(str(folder / name), 0o666))


def left(folder):
    """The identity of a part that a run has left."""
    with make(folder) as part:
        return part.identity


def find(folder, identity, owners=ME):
    part = Part.find(str(folder), identity, owners=owners)
    if part is not None:
        part.close()
    return part is not None


def test_part_is_new_whatever_has_its_name(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "disk.part").symlink_to("victim")
    (tmp_path / "disk.1.part").write_bytes(b"mine")
    (tmp_path / "disk.2.part").mkdir()
    (tmp_path / "disk.3.part").symlink_to("nowhere")
    with make(tmp_path) as part:
        assert part.path == str(tmp_path / "disk.4.part")
        assert part.is_empty
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "disk.1.part").read_bytes() == b"mine"


def test_names_that_are_all_taken_are_told(tmp_path):
    (tmp_path / "disk.part").touch()
    for number in range(1, 100):
        (tmp_path / f"disk.{number}.part").touch()
    with pytest.raises(TransferError, match=r"100 files are in the way, .*/disk.99.part is the last"):
        Part.make(str(tmp_path / "disk"), 0o666)


def test_part_is_found_again_by_what_it_was_known_by(tmp_path):
    identity = left(tmp_path)
    assert find(tmp_path, identity)
    assert Identity.parse(list(identity)) == identity


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.write_bytes(b"mine")),
        lambda path: (path.unlink(), path.symlink_to("elsewhere")),
        lambda path: (path.rename(path.with_name("elsewhere")), path.symlink_to("elsewhere")),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: os.link(path, path.with_name("of-the-user")),
    ],
    ids=["gone", "another", "dangling link", "link", "fifo", "folder", "hard link"],
)
def test_what_is_not_that_file_is_not_taken(tmp_path, change):
    identity = left(tmp_path)
    change(tmp_path / "disk.part")
    assert not find(tmp_path, identity)


def test_file_that_got_the_inode_later_is_not_taken(tmp_path):
    identity = left(tmp_path)
    if identity.born is None:
        pytest.skip("no times of birth here")
    assert not find(tmp_path, identity._replace(born=identity.born - 1))


def test_file_of_another_user_is_not_taken(tmp_path):
    identity = left(tmp_path)
    assert not find(tmp_path, identity, owners={os.geteuid() + 1})


def test_part_that_another_run_writes_is_refused(tmp_path):
    with make(tmp_path) as part, pytest.raises(ImageInUse, match=r"another download is writing .*/disk.part"):
        Part.find(str(tmp_path), part.identity, owners=ME)


def test_part_acts_on_its_own_name_only(tmp_path):
    with make(tmp_path) as part:
        part.check_name()
        os.rename(tmp_path / "disk.part", tmp_path / "elsewhere")
        (tmp_path / "disk.part").write_bytes(b"mine")
        with pytest.raises(TransferError, match=r"disk.part was removed or replaced"):
            part.check_name()
        part.remove()
    assert (tmp_path / "disk.part").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        ["a", 1],
        ["../a", 1, 2],
        ["", 1, 2],
        ["..", 1, 2],
        ["a\0", 1, 2],
        [1, 1, 2],
        ["a", "1", 2],
        ["a", True, 2],
        "abc",
    ],
)
def test_document_that_is_no_identity_is_none(document):
    assert Identity.parse(document) is None


def test_long_names_are_cut_and_told_apart(tmp_path):
    limit = os.pathconf(tmp_path, "PC_NAME_MAX")
    one, two = "x" * (limit - 1) + "1", "x" * (limit - 1) + "2"
    paths = [beside(str(tmp_path / name), before=".", after=".imageio") for name in (one, two)]
    assert len({*paths}) == 2
    for path in paths:
        open(path, "w").close()
    with make(tmp_path, one) as part:
        assert len(os.path.basename(part.path)) == limit


def test_cut_name_is_still_utf_8(tmp_path):
    for name in ("ü" * 127, "a" + "ü" * 127):
        with make(tmp_path, name) as part:
            part.path.encode()
