# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import os
import threading

import pytest

from imageio_testing.mounts import NOBODY, folder_of, loop_device, mount, unprivileged
from imageio_testing.qemu import make_image, needs_qemu
from ovirt_imageio.client import standing
from ovirt_imageio.client.claim import Claim
from ovirt_imageio.client.inuse import ImageInUse
from ovirt_imageio.client.journal import CannotResume, Journal
from ovirt_imageio.client.staging import Staging
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import OperationCancelled, TransferError
from ovirt_imageio.common.qemu.nbd import Server
from ovirt_imageio.common.units import MiB

WHAT = {"direction": "download"}
"""The transfer that the journals of these tests are of."""


def build(path, *, content=b"new", **options):
    """Make an image."""
    with Staging(str(path)) as staging:
        staging.begin(**options)
        write(staging, content)
        staging.commit()
    return staging


def write(staging, content=b"new"):
    with open(staging.path, "r+b") as f:
        f.write(content)


# A name.


def test_image_gets_its_name_when_it_is_complete(tmp_path):
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        write(staging)
        assert sorted(os.listdir(tmp_path)) == [".disk.imageio", "disk.part"]
        staging.commit()
        assert (staging.is_done, staging.state) == (True, "complete")
    assert os.listdir(tmp_path) == ["disk"]
    assert (tmp_path / "disk").read_bytes() == b"new"


def test_nothing_is_made_before_it_begins(tmp_path):
    with Staging(str(tmp_path / "disk")):
        assert os.listdir(tmp_path) == [".disk.imageio"]
    assert os.listdir(tmp_path) == []


def test_what_stood_there_stays_until_the_end(tmp_path):
    (tmp_path / "disk").write_bytes(b"old")
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        write(staging)
        assert (tmp_path / "disk").read_bytes() == b"old"
        staging.discard()
        assert staging.state == "not made"
    assert os.listdir(tmp_path) == ["disk"]


@pytest.mark.parametrize("name", ["disk", "none", "folder"])
def test_name_of_a_folder_is_no_name_of_an_image(tmp_path, name):
    """As for open(2): a slash at its end is not forgotten, and the file without it stays."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "disk").write_bytes(b"old")
    with pytest.raises(IsADirectoryError) as e:
        Staging(f"{tmp_path}/{name}/")
    assert e.value.filename == f"{tmp_path}/{name}/"
    assert sorted(os.listdir(tmp_path)) == ["disk", "folder"]
    assert (tmp_path / "disk").read_bytes() == b"old"


def test_name_that_is_empty_is_no_name_of_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        Staging("")
    assert os.listdir(tmp_path) == []


def test_link_is_followed_to_the_file_it_names(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    build(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_link_to_nothing_names_the_new_file(tmp_path):
    (tmp_path / "link").symlink_to("real")
    build(tmp_path / "link")
    assert (tmp_path / "real").read_bytes() == b"new"


def test_other_names_keep_the_old_image_and_that_is_told(tmp_path, caplog):
    (tmp_path / "disk").write_bytes(b"old")
    os.link(tmp_path / "disk", tmp_path / "yesterday")
    os.link(tmp_path / "disk", tmp_path / "sunday")
    build(tmp_path / "disk")
    assert [(tmp_path / name).read_bytes() for name in ("disk", "yesterday", "sunday")] == [b"new", b"old", b"old"]
    assert f"{tmp_path}/disk had 2 other names: they keep the old image" in caplog.text


@pytest.mark.parametrize("large", [False, True])
def test_large_file_that_stood_there_is_freed_by_a_thread(tmp_path, monkeypatch, large):
    closed_by = []

    def close(fd, close=os.close):
        status = os.fstat(fd)
        closed_by.append((threading.current_thread().name, status.st_ino, status.st_nlink))
        close(fd)

    path = tmp_path / "disk"
    path.write_bytes(b"old")
    old = path.stat().st_ino
    monkeypatch.setattr(standing, "_LARGE", 1 if large else 1 << 60)
    monkeypatch.setattr(os, "close", close)
    build(path)
    for thread in threading.enumerate():
        if thread.name == "letting go":
            thread.join()
    name = "letting go" if large else threading.current_thread().name
    assert (name, old, 0) in closed_by


def test_large_file_is_freed_where_no_thread_can_start(tmp_path, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    (tmp_path / "disk").write_bytes(b"old")
    monkeypatch.setattr(standing, "_LARGE", 1)
    monkeypatch.setattr(threading.Thread, "start", start)
    build(tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == b"new"


# Properties of the new file beside its content.


@pytest.mark.parametrize("mode", [0o604, 0o444])
def test_mode_of_what_stood_there_is_kept_and_is_no_hindrance(tmp_path, mode):
    (tmp_path / "disk").write_bytes(b"old")
    os.chmod(tmp_path / "disk", mode | 0o200)
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        assert os.stat(staging.path).st_mode & 0o777 == 0o600
        os.chmod(tmp_path / "disk", mode)
        staging.commit()
    assert os.stat(tmp_path / "disk").st_mode & 0o777 == mode


def test_mode_of_a_new_file_is_what_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        build(tmp_path / "disk")
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "disk").st_mode & 0o777 == 0o640


def test_file_that_the_user_may_not_write_to_is_not_replaced():
    with folder_of(NOBODY) as folder:
        (folder / "disk").write_bytes(b"old")
        os.chmod(folder / "disk", 0o444)
        with unprivileged(), pytest.raises(PermissionError) as caught:
            Staging(str(folder / "disk"))
        assert caught.value.filename == str(folder / "disk")
        assert os.listdir(folder) == ["disk"]


def test_owner_that_is_lost_is_told(caplog):
    with folder_of(NOBODY) as folder:
        (folder / "disk").write_bytes(b"old")
        os.chmod(folder / "disk", 0o666)
        with unprivileged():
            build(folder / "disk")
        assert "does not get from the old one: the owner 0, the group 0" in caplog.text
        assert (folder / "disk").read_bytes() == b"new"
        assert os.stat(folder / "disk").st_uid == NOBODY


# In place.


def test_file_in_a_folder_where_none_can_be_made_is_written_in_place(caplog):
    with folder_of(0, mode=0o755) as folder:
        (folder / "disk").write_bytes(b"old")
        os.chmod(folder / "disk", 0o666)
        with unprivileged(), Staging(str(folder / "disk")) as staging:
            assert (staging.in_place, staging.path) == (True, str(folder / "disk"))
            with pytest.raises(ImageInUse, match=f"another download to {folder}/disk is running"):
                Staging(str(folder / "disk"))
            staging.begin(raw=True)
            staging.discard()
            assert staging.state == "left incomplete"
            write(staging)
            staging.commit()
        assert os.listdir(folder) == ["disk"]
        assert "cannot be replaced, only written to: until it is complete it is no image" in caplog.text


def test_empty_file_is_written_in_place_without_a_word(caplog):
    with folder_of(0, mode=0o755) as folder:
        (folder / "disk").touch()
        os.chmod(folder / "disk", 0o666)
        with unprivileged(), Staging(str(folder / "disk")) as staging:
            assert staging.in_place
    assert caplog.text == ""


def test_file_of_another_user_in_a_sticky_folder_is_written_in_place():
    """rename(2) would be refused at the very end."""
    with folder_of(0, mode=0o1777) as folder:
        (folder / "theirs").write_bytes(b"old")
        os.chmod(folder / "theirs", 0o666)
        with unprivileged():
            assert build(folder / "theirs").in_place
            assert not build(folder / "ours").in_place
            assert not build(folder / "ours").in_place


def test_claim_of_another_user_is_no_reason_to_write_in_place():
    with folder_of(0, mode=0o1777) as folder:
        (folder / "ours").write_bytes(b"old")
        os.chown(folder / "ours", NOBODY, NOBODY)
        (folder / ".ours.imageio").touch()
        with unprivileged(), pytest.raises(ImageInUse, match=r"\.ours\.imageio is of a download by another user"):
            Staging(str(folder / "ours"))


def test_file_that_is_mounted_by_itself_is_written_in_place(tmp_path):
    """As a container has it; rename(2) would say EBUSY at the very end."""
    (tmp_path / "outside").write_bytes(b"old")
    (tmp_path / "disk").touch()
    with mount(tmp_path / "outside", tmp_path / "disk", "--bind"):
        assert build(tmp_path / "disk").in_place
    assert (tmp_path / "outside").read_bytes() == b"new"


def test_device_has_one_run_at_a_time(tmp_path):
    with open(tmp_path / "file", "wb") as f:
        f.truncate(MiB)
    with loop_device(tmp_path / "file") as device:
        (tmp_path / "link").symlink_to(device)
        with Staging(device) as staging:
            assert (staging.in_place, staging.path) == (True, device)
            staging.begin(raw=True)
            with pytest.raises(ImageInUse, match=f"{device} is mounted, or in use by another"):
                Staging(str(tmp_path / "link"))
            staging.commit()


@pytest.mark.parametrize("name", ["/dev/null", "fifo", "folder"])
def test_what_is_neither_file_nor_device_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    path = os.path.join(tmp_path, name)
    with pytest.raises(OSError) as caught:
        Staging(path)
    assert caught.value.filename == path


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/disk"):
        Staging(str(tmp_path / "nowhere" / "disk"))


def test_folder_where_no_file_can_be_made_is_told_by_the_name_of_the_image():
    with folder_of(0, mode=0o755) as folder, unprivileged(), pytest.raises(PermissionError) as caught:
        Staging(str(folder / "disk"))
    assert caught.value.filename == str(folder / "disk")


# Other programs.


@needs_qemu
@pytest.mark.parametrize("read_only", [False, True])
def test_image_that_a_qemu_opens_meanwhile_is_not_replaced(tmp_path, monkeypatch, read_only):
    monkeypatch.setattr("ovirt_imageio.client.staging._PATIENCE", 0)
    make_image(tmp_path / "disk", "raw", MiB)
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        write(staging)
        with Server(str(tmp_path / "disk"), "raw", read_only=read_only):
            with pytest.raises(ImageInUse, match="open in another program"):
                staging.commit()
        assert staging.state == f"not replaced; the complete image is {tmp_path}/disk.part"
        staging.discard()
    assert (tmp_path / "disk").stat().st_size == MiB
    assert (tmp_path / "disk.part").read_bytes() == b"new"


@needs_qemu
def test_qemu_that_looks_at_the_old_image_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    make_image(tmp_path / "disk", "raw", MiB)
    with Staging(str(tmp_path / "disk")) as staging, contextlib.ExitStack() as stack:
        staging.begin()
        write(staging)
        stack.enter_context(Server(str(tmp_path / "disk"), "raw", read_only=True))
        monkeypatch.setattr(Cancel, "wait", lambda self, seconds: stack.close())
        staging.commit()
    assert (tmp_path / "disk").read_bytes() == b"new"


@needs_qemu
def test_cancel_ends_the_wait_for_a_qemu_that_has_the_old_image_open(tmp_path, monkeypatch):
    monkeypatch.setattr("ovirt_imageio.client.staging._PATIENCE", 3600)
    make_image(tmp_path / "disk", "raw", MiB)
    cancel = Cancel()
    with Staging(str(tmp_path / "disk")) as staging, Server(str(tmp_path / "disk"), "raw"):
        staging.begin()
        write(staging)
        cancel.cancel()
        with pytest.raises(OperationCancelled):
            staging.commit(cancel)
        assert staging.state == f"not replaced; the complete image is {tmp_path}/disk.part"
    assert (tmp_path / "disk").stat().st_size == MiB


@pytest.mark.parametrize("stood", [False, True])
def test_run_that_ends_while_another_begins_is_not_taken_for_another_program(tmp_path, monkeypatch, stood):
    """The file that has the name is looked at after the name is claimed."""
    path = tmp_path / "disk"
    if stood:
        path.write_bytes(b"old")

    def claim(filename):
        monkeypatch.undo()
        build(path, content=b"first")
        return Claim(filename)

    monkeypatch.setattr("ovirt_imageio.client.staging.Claim", claim)
    build(path, content=b"second")
    assert path.read_bytes() == b"second"


@needs_qemu
def test_qemu_is_kept_out_of_a_raw_image_that_is_written_in_place(tmp_path):
    with open(tmp_path / "file", "wb") as f:
        f.truncate(MiB)
    with loop_device(tmp_path / "file") as device:
        with Staging(device) as staging:
            with Server(device, "raw"), pytest.raises(ImageInUse, match=f"{device} is open in another program"):
                staging.begin(raw=True)
            staging.begin(raw=True)
            with pytest.raises(Exception, match="Failed to get"), Server(device, "raw"):
                pass
        with Server(device, "raw"), pytest.raises(ImageInUse, match=f"{device} is open in another program"):
            Staging(device)


def test_file_that_another_program_makes_meanwhile_is_left_alone(tmp_path):
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        write(staging)
        (tmp_path / "disk").write_bytes(b"mine")
        with pytest.raises(TransferError, match=f"another program has made {tmp_path}/disk meanwhile"):
            staging.commit()
        staging.discard()
    assert (tmp_path / "disk").read_bytes() == b"mine"
    assert (tmp_path / "disk.part").read_bytes() == b"new"


def test_file_that_another_program_puts_in_place_of_the_old_one_is_left_alone(tmp_path):
    (tmp_path / "disk").write_bytes(b"old")
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        write(staging)
        (tmp_path / "newer").write_bytes(b"mine")
        os.rename(tmp_path / "newer", tmp_path / "disk")
        with pytest.raises(TransferError, match=f"another program has made {tmp_path}/disk meanwhile"):
            staging.commit()
    assert (tmp_path / "disk").read_bytes() == b"mine"


def test_file_that_another_program_removes_meanwhile_is_made_again(tmp_path):
    (tmp_path / "disk").write_bytes(b"old")
    os.chmod(tmp_path / "disk", 0o604)
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        write(staging)
        os.unlink(tmp_path / "disk")
        staging.commit()
    assert (tmp_path / "disk").read_bytes() == b"new"
    assert os.stat(tmp_path / "disk").st_mode & 0o777 == 0o604


def test_part_that_another_program_replaces_is_not_taken_for_the_image(tmp_path):
    (tmp_path / "disk").write_bytes(b"old")
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        os.unlink(staging.path)
        (tmp_path / "disk.part").write_bytes(b"mine")
        with pytest.raises(TransferError, match=r"disk.part was removed or replaced"):
            staging.commit()
        staging.discard()
    assert (tmp_path / "disk").read_bytes() == b"old"
    assert (tmp_path / "disk.part").read_bytes() == b"mine"


# Order.


def test_content_is_stable_before_the_name_and_the_name_before_success(tmp_path, monkeypatch):
    (tmp_path / "disk").write_bytes(b"old")
    calls = []

    def note(name, call, what):
        def noting(*args):
            calls.append((name, what(args[0])))
            return call(*args)

        monkeypatch.setattr(os, name, noting)

    note("fsync", os.fsync, lambda fd: os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    note("replace", os.replace, os.path.basename)
    note("fchmod", os.fchmod, lambda fd: os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    with Staging(str(tmp_path / "disk")) as staging:
        staging.begin()
        staging.commit()
    assert calls == [
        ("fsync", ".disk.imageio"),
        ("fchmod", "disk.part"),
        ("fsync", "disk.part"),
        ("replace", "disk.part"),
        ("fsync", tmp_path.name),
    ]


@pytest.mark.parametrize("failing", ["disk.part", "folder"])
def test_storage_that_fails_at_the_end_is_no_success(tmp_path, monkeypatch, failing):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "disk").write_bytes(b"old")

    def fsync(fd, fsync=os.fsync):
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == failing:
            raise OSError(5, "Input/output error")
        fsync(fd)

    with Staging(str(folder / "disk")) as staging:
        staging.begin()
        write(staging)
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output error"):
            staging.commit()
        staging.discard()
    # The name has one or the other, whole, and what is told of it is so.
    done = failing == "folder"
    assert (folder / "disk").read_bytes() == (b"new" if done else b"old")
    assert staging.is_done is done


# Continuing.


def interrupted(tmp_path, *, done=((0, 3),)):
    with Journal(str(tmp_path / "journal"), WHAT) as journal, Staging(str(tmp_path / "disk")) as staging:
        staging.begin(journal=journal)
        write(staging)
        if done:
            journal.record(done)


def begun(tmp_path, **options):
    """The file that a further run begins with, and if it is kept."""
    with Journal(str(tmp_path / "journal"), WHAT) as journal, Staging(str(tmp_path / "disk")) as staging:
        staging.begin(journal=journal, **options)
        with open(staging.path, "rb") as f:
            return os.path.basename(staging.path), f.read(), staging.kept, journal.done


def test_part_that_the_journal_knows_is_continued(tmp_path):
    interrupted(tmp_path)
    assert begun(tmp_path) == ("disk.part", b"new", True, [(0, 3)])
    assert begun(tmp_path) == ("disk.part", b"new", True, [(0, 3)])


@pytest.mark.parametrize("options", [{"done": ()}, {}])
def test_part_that_cannot_be_continued_is_made_anew(tmp_path, options):
    interrupted(tmp_path, **options)
    assert begun(tmp_path, sealed=True) == ("disk.part", b"", False, [])
    assert sorted(os.listdir(tmp_path)) == ["disk.part", "journal"]


def test_part_that_the_user_has_put_there_is_not_continued(tmp_path):
    interrupted(tmp_path)
    os.unlink(tmp_path / "disk.part")
    (tmp_path / "disk.part").write_bytes(b"mine")
    assert begun(tmp_path) == ("disk.1.part", b"", False, [])
    assert (tmp_path / "disk.part").read_bytes() == b"mine"


def test_part_that_got_its_owner_before_the_end_is_continued(tmp_path):
    """A run may be killed between the last two steps."""
    if os.geteuid():
        pytest.skip("giving files away needs root")
    (tmp_path / "disk").write_bytes(b"old")
    os.chown(tmp_path / "disk", NOBODY, NOBODY)
    interrupted(tmp_path)
    os.chown(tmp_path / "disk.part", NOBODY, NOBODY)
    assert begun(tmp_path)[2]
    os.chown(tmp_path / "disk.part", NOBODY + 1, NOBODY)
    assert not begun(tmp_path)[2]


def test_journal_of_another_user_is_refused(tmp_path):
    if os.geteuid():
        pytest.skip("giving files away needs root")
    interrupted(tmp_path)
    os.chown(tmp_path / "journal", NOBODY, NOBODY)
    with pytest.raises(CannotResume, match="journal belongs to another user: give another journal"):
        begun(tmp_path)


def test_part_is_locked_by_the_run_that_continues_it(tmp_path):
    """Two runs may have two journals that know the same part."""
    interrupted(tmp_path)
    (tmp_path / "journal2").write_bytes((tmp_path / "journal").read_bytes())
    with Journal(str(tmp_path / "journal"), WHAT) as journal, Staging(str(tmp_path / "disk")) as staging:
        staging.begin(journal=journal)
        with Journal(str(tmp_path / "journal2"), WHAT) as second, Staging(str(tmp_path / "disk2")) as other:
            with pytest.raises(ImageInUse, match="another download is writing"):
                other.begin(journal=second)


def test_killed_run_without_a_journal_does_not_take_the_part_of_one_that_can_be_resumed(tmp_path):
    interrupted(tmp_path)
    build(tmp_path / "disk", content=b"other")
    assert begun(tmp_path) == ("disk.part", b"new", True, [(0, 3)])


@pytest.mark.parametrize("resumable", [False, True])
def test_part_that_cannot_be_written_down_is_removed(tmp_path, monkeypatch, resumable):
    """As no later run would know it, it would stay for ever."""

    def full(*_):
        raise OSError(28, "No space left on device")

    journal = Journal(str(tmp_path / "journal"), WHAT) if resumable else contextlib.nullcontext()
    with journal as record, Staging(str(tmp_path / "disk")) as staging:
        monkeypatch.setattr(*((Journal, "keep") if resumable else (os, "pwrite")), full)
        with pytest.raises(OSError, match="No space left"):
            staging.begin(journal=record)
        assert not staging.is_left
    assert os.listdir(tmp_path) == (["journal"] if resumable else [])


@pytest.mark.parametrize("kind", ["deleted", "pipe"])
def test_open_file_that_no_name_leads_to_is_refused(tmp_path, kind):
    if kind == "pipe":
        reader, fd = os.pipe()
        os.close(reader)
    else:
        fd = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
        os.unlink(tmp_path / "disk")
    try:
        path = f"/proc/self/fd/{fd}"
        with pytest.raises(FileNotFoundError, match=f"no name leads to: '{path}'"):
            Staging(path)
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == []


def test_open_file_is_replaced_by_its_name(tmp_path):
    with open(tmp_path / "disk", "wb") as f, Staging(f"/proc/self/fd/{f.fileno()}") as staging:
        assert staging.filename == str(tmp_path / "disk")
