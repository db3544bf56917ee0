# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import os

import pytest

from ovirt_imageio.client.journal import CannotResume, Journal, merged, place

WHAT = {"direction": "upload", "size": 1000}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "disk.upload.journal")


def reopened(path, what=WHAT):
    with Journal(path, what) as journal:
        return journal.done


def test_new_journal_has_nothing_done(path):
    assert reopened(path) == []
    assert reopened(path) == []


def test_what_was_recorded_is_done(path):
    with Journal(path, WHAT) as journal:
        journal.record([(100, 100), (0, 50)])
        journal.record([(50, 50), (400, 1)])
    assert reopened(path) == [(0, 200), (400, 1)]


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_record_that_was_cut_off_does_not_count(path, cut):
    with Journal(path, WHAT) as journal:
        journal.record([(0, 50)])
        journal.record([(50, 50)])
    os.truncate(path, os.path.getsize(path) - cut)
    with Journal(path, WHAT) as journal:
        assert journal.done == [(0, 50)]
        journal.record([(60, 1)])
    assert reopened(path) == [(0, 50), (60, 1)]


def test_header_that_was_cut_off_begins_anew(path):
    Journal(path, WHAT).close()
    os.truncate(path, os.path.getsize(path) - 3)
    assert reopened(path) == []


def test_journal_of_another_transfer_is_refused_and_named(path):
    Journal(path, WHAT).close()
    with pytest.raises(CannotResume, match=r"disk\.upload\.journal.*size 1000, not 2000"):
        Journal(path, {**WHAT, "size": 2000})


@pytest.mark.parametrize("text", [b"important notes\n", b"no end of line", b'{"journal": 7}\n', b"[]\n", b"\xff\n"])
def test_other_files_are_refused_and_left_alone(path, text):
    with open(path, "wb") as f:
        f.write(text)
    with pytest.raises(CannotResume, match="remove it"):
        Journal(path, WHAT)
    with open(path, "rb") as f:
        assert f.read() == text


def test_journal_in_use_is_refused(path):
    with Journal(path, WHAT), pytest.raises(CannotResume, match="in use"):
        Journal(path, WHAT)


def test_journal_removed_is_gone(path):
    with Journal(path, WHAT) as journal:
        journal.remove()
        journal.remove()
    assert not os.path.exists(path)


def test_restart_forgets(path):
    with Journal(path, WHAT) as journal:
        journal.record([(0, 50)])
        journal.seal("plan")
    with Journal(path, WHAT) as journal:
        assert journal.is_sealed
        journal.restart()
        assert journal.done == []
        assert not journal.is_sealed
    assert reopened(path) == []


def test_other_plan_is_refused(path):
    with Journal(path, WHAT) as journal:
        journal.seal("plan")
    with Journal(path, WHAT) as journal:
        journal.seal("plan")
        with pytest.raises(CannotResume, match="extents are others"):
            journal.seal("other")


def test_full_disk_is_told_and_nothing_follows_a_torn_record(path, monkeypatch):
    with Journal(path, WHAT) as journal:
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
        with pytest.raises(OSError, match="No space") as e:
            journal.record([(0, 50)])
        assert e.value.errno == errno.ENOSPC
        monkeypatch.undo()
        with pytest.raises(OSError, match="cut off"):
            journal.record([(50, 50)])
    assert reopened(path) == []


def test_symbolic_link_is_not_followed(path, tmp_path):
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(OSError, match="symbolic"):
        Journal(path, WHAT)
    assert not (tmp_path / "elsewhere").exists()


def test_place_is_beside_the_image(tmp_path):
    (tmp_path / "link").symlink_to("disk")
    assert place(str(tmp_path / "link"), "download") == str(tmp_path / "disk.download.journal")
    name = place(str(tmp_path / "vm.ova"), "upload", member="a/b")
    assert name == str(tmp_path / "vm.ova.a%2Fb.upload.journal")


def test_place_of_a_device_is_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    name = place("/dev/null", "download")
    assert os.path.dirname(name) == str(tmp_path / "ovirt-imageio")
    assert name.endswith("-null.download.journal")
    assert name != place("/dev/zero", "download")


def test_place_of_an_image_in_a_folder_of_others_is_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert place("/srv/boot.iso", "upload").startswith(str(tmp_path))


def test_ranges_are_merged():
    assert merged([(5, 5), (0, 5), (20, 1), (6, 2), (15, 5)]) == [(0, 10), (15, 6)]
    assert merged([]) == []
