# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import os
import pwd
import tempfile
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.client.journal import CannotResume, Journal, place
from ovirt_imageio.client.records import Identity, merged

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


def test_nothing_counts_as_done_that_storage_may_have_lost(path):
    with Journal(path, WHAT) as journal:
        journal.begin("plan")
        journal.record([(0, 50)])
        journal.distrust()
        assert (journal.done, journal.is_distrusted) == ([], True)
    with Journal(path, WHAT) as journal:
        # The bytes written are there still, or some of them.
        assert (journal.done, journal.begun, journal.is_sealed, journal.is_distrusted) == ([], True, True, False)
        journal.record([(60, 1)])
    assert reopened(path) == [(60, 1)]


def test_journal_is_removed_where_it_cannot_say_so(path, monkeypatch):
    with Journal(path, WHAT) as journal:
        journal.record([(0, 50)])
        monkeypatch.setattr(os, "fdatasync", lambda fd: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            journal.record([(50, 50)])
        journal.distrust()
    assert not os.path.exists(path)


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


@pytest.mark.parametrize("lost", [slice(0, 5), slice(0, 20), slice(10, 40), slice(0, None)])
def test_header_whose_content_a_crash_has_lost_begins_anew(path, lost):
    """A file system may keep the size of what was written last, and parts of it."""
    Journal(path, WHAT).close()
    text = bytearray(HEADER)
    text[lost] = bytes(len(text[lost]))
    with open(path, "wb") as f:
        f.write(text)
    assert reopened(path) == []
    with open(path, "rb") as f:
        assert f.read() == HEADER


def test_journal_of_another_transfer_is_refused_and_named(path):
    Journal(path, WHAT).close()
    with pytest.raises(CannotResume, match=r"disk\.upload\.journal.*size 1000, not 2000"):
        Journal(path, {**WHAT, "size": 2000})


HEADER = b'{"journal": 2, "direction": "upload", "size": 1000}\n'

OTHERS = {
    "notes": b"important notes\n",
    "one line": b"no end of line",
    "version": b'{"journal": 7}\n',
    "older": HEADER.replace(b"2", b"1", 1) + b'{"done": [[0, 50]]}\n',
    "list": b"[]\n",
    "binary": b"\xff\n",
    "deep": b'{"journal": ' + b"[" * 100000 + b"\n",
    "deep value": b'{"journal": 2, "direction": ' + b"[" * 500 + b"]" * 500 + b"}\n",
    "truth": HEADER.replace(b"1000", b"true"),
}

DAMAGES = {
    "text": b"}{",
    "no record": b"5",
    "no list": b'{"done": 5}',
    "no ranges": b'{"done": [5, 6]}',
    "three numbers": b'{"done": [[1, 2, 3]]}',
    "words": b'{"done": [["0", "50"]]}',
    "truth": b'{"done": [[false, true]]}',
    "broken": b'{"done": [[0, 5.5]]}',
    "infinite": b'{"done": [[0, Infinity]]}',
    "negative": b'{"done": [[-5, 50]]}',
    "empty": b'{"done": [[5, 0]]}',
    "past the end": b'{"done": [[990, 11]]}',
    "huge": b'{"done": [[0, 1' + b"0" * 5000 + b"]]}",
    "deep": b'{"done": ' + b"[" * 100000,
    "plan": b'{"plan": ["digest"]}',
    "part": b'{"part": ["disk.part", "131", null]}',
    "part elsewhere": b'{"part": ["../disk.part", 131, null]}',
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_other_files_are_refused_and_left_alone(path, text):
    assert_refused(path, text)


@pytest.mark.parametrize("line", DAMAGES.values(), ids=DAMAGES)
def test_damaged_journal_is_refused_and_named(path, line):
    assert_refused(path, HEADER + line + b'\n{"done": [[0, 50]]}\n', "line 2")
    assert_refused(path, HEADER + b'{"done": [[0, 50]]}\n' + line + b'\n{"done": []}\n{"do', "line 3")


def assert_refused(path, text, where=""):
    with open(path, "wb") as f:
        f.write(text)
    with pytest.raises(CannotResume, match=f"by {path}: .*{where}.*; remove it to begin anew") as e:
        Journal(path, WHAT)
    assert len(str(e.value)) < len(path) + 300
    with open(path, "rb") as f:
        assert f.read() == text


@pytest.mark.parametrize("line", DAMAGES.values(), ids=DAMAGES)
def test_last_line_that_a_crash_has_spoilt_does_not_count_but_that_there_was_one(path, line):
    with open(path, "wb") as f:
        f.write(HEADER + line + b"\n")
    with Journal(path, WHAT) as journal:
        assert (journal.done, journal.begun) == ([], True)
    with Journal(path, WHAT) as journal:
        assert (journal.done, journal.begun) == ([], True)
        journal.record([(0, 50)])
    assert reopened(path) == [(0, 50)]


@given(st.data())
def test_whatever_a_journal_holds_it_is_read_or_refused(data):
    good = HEADER + b'{"begun": true, "plan": "digest"}\n' + b'{"done": [[0, 50], [100, 7]]}\n' * 3
    text = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 20))] = data.draw(
            st.binary(max_size=20) | st.sampled_from([b"\n", b"[", b"{", b"-", b"9" * 30, b'"done"', b"null", good])
        )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "journal")
        with open(path, "wb") as f:
            f.write(text)
        try:
            journal = Journal(path, WHAT)
        except CannotResume as e:
            refused = str(e)
            with open(path, "rb") as f:
                assert (path in refused, f.read()) == (True, bytes(text))
            return
        with journal:
            assert all(0 <= offset < offset + length <= 1000 for offset, length in journal.done)
            journal.record([(0, 1)])
        assert reopened(path)[0][0] == 0


def test_what_is_no_file_is_refused(path):
    os.mkfifo(path)
    with pytest.raises(CannotResume, match="it is no file"):
        Journal(path, WHAT)


def test_disk_that_was_named_by_mistake_is_not_read(path, monkeypatch):
    with open(path, "wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(CannotResume, match="no journal of a transfer"):
        Journal(path, WHAT)
    assert os.path.getsize(path) == 1 << 40


def test_journal_in_use_is_refused(path):
    with Journal(path, WHAT), pytest.raises(CannotResume, match="in use"):
        Journal(path, WHAT)


def test_journal_removed_is_gone(path):
    with Journal(path, WHAT) as journal:
        journal.remove()
        journal.remove()
    assert not os.path.exists(path)


@pytest.mark.parametrize("born", [None, 1760000000000000000])
def test_part_is_remembered_and_is_no_run_that_began(path, born):
    part = Identity("disk.part", 131, born)
    with Journal(path, WHAT) as journal:
        journal.keep(part)
        assert journal.part == part
    with Journal(path, WHAT) as journal:
        assert (journal.part, journal.begun, journal.done) == (part, False, [])
        assert journal.owner == os.geteuid()
        journal.restart()
        assert journal.part is None


def test_journal_that_was_replaced_meanwhile_is_not_removed(path):
    with Journal(path, WHAT) as journal:
        os.unlink(path)
        with Journal(path, WHAT) as other:
            other.record([(0, 50)])
            journal.remove()
    assert reopened(path) == [(0, 50)]


def test_restart_forgets(path):
    with Journal(path, WHAT) as journal:
        journal.begin("plan")
        journal.record([(0, 50)])
    with Journal(path, WHAT) as journal:
        assert journal.is_sealed
        journal.restart()
        assert (journal.done, journal.begun, journal.is_sealed) == ([], False, False)
    assert reopened(path) == []


def test_run_that_began_is_remembered_though_it_recorded_nothing(path):
    with Journal(path, WHAT) as journal:
        assert not journal.begun
    with Journal(path, WHAT) as journal:
        assert not journal.begun
        journal.begin()
    with Journal(path, WHAT) as journal:
        assert (journal.begun, journal.done) == (True, [])
        journal.begin()


def test_other_plan_is_refused(path):
    with Journal(path, WHAT) as journal:
        journal.begin("plan")
    with Journal(path, WHAT) as journal:
        journal.begin("plan")
        for other in ("other", None):
            with pytest.raises(CannotResume, match="extents are others"):
                journal.begin(other)


@pytest.mark.parametrize("lines", [b"", b'{"begun": true}\n', b'{"begun": true, "plan": "plan"}\n', b'{"begun": tr'])
def test_journal_of_a_run_that_was_killed_is_stable_before_it_counts(path, lines, monkeypatch):
    """The next run writes as it says; without it, the one after that would take what is written for zero."""
    with open(path, "wb") as f:
        f.write(HEADER + lines)
    stable = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: stable.append(os.pread(fd, 1000, 0)))
    monkeypatch.setattr(os, "fsync", lambda fd: stable.append(os.readlink(f"/proc/self/fd/{fd}")))
    with Journal(path, WHAT):
        with open(path, "rb") as f:
            assert stable == [f.read(), os.path.dirname(path)]


def test_run_that_wrote_by_an_unknown_plan_is_refused(path):
    with open(path, "wb") as f:
        f.write(HEADER + b'{"begun": true, "pl\n')
    with Journal(path, WHAT) as journal, pytest.raises(CannotResume, match="lost in a crash") as e:
        journal.begin("plan")
    assert "source changed" not in str(e.value)


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


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "~"}, {"XDG_STATE_HOME": "state", "HOME": "me"}])
def test_user_without_a_home_is_told_and_no_folder_is_made(tmp_path, monkeypatch, environ):
    # As in a container that runs under a number without a name.
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises(CannotResume, match="no home folder; set HOME or XDG_STATE_HOME, or pass journal=PATH"):
        place("/dev/null", "upload")
    assert os.listdir(tmp_path) == []


def test_home_of_a_user_without_the_variable_is_looked_up(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(tmp_path)))
    assert os.path.dirname(place("/dev/null", "upload")) == str(tmp_path / ".local/state/ovirt-imageio")


def test_ranges_are_merged():
    assert merged([(5, 5), (0, 5), (20, 1), (6, 2), (15, 5)]) == [(0, 10), (15, 6)]
    assert merged([]) == []


def test_journal_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def broken(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Journal, "_read", broken)
    with pytest.raises(OSError, match="Input/output error") as e:
        Journal(str(tmp_path / "journal"), {})
    assert e.value.filename == str(tmp_path / "journal")
