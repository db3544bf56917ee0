# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import os

import pytest

from imageio_testing.mounts import NOBODY, folder_of, unprivileged
from ovirt_imageio.client import inuse
from ovirt_imageio.client.claim import Claim
from ovirt_imageio.client.inuse import ImageInUse
from ovirt_imageio.client.part import Part


def claim(folder, name="disk"):
    return contextlib.closing(_Closing(str(folder / name)))


class _Closing(Claim):
    def close(self):
        self.release()


def kill_one(folder):
    """Leave what a run leaves that is killed: the kernel closes its files, and that is all."""
    claim = Claim(str(folder / "disk"))
    with contextlib.closing(Part.make(str(folder / "disk"), 0o666)) as part:
        claim.note(part)
        os.write(part.fd, b"half an image")
    os.close(claim._fd)


def test_one_run_has_a_name_at_a_time(tmp_path):
    with claim(tmp_path):
        assert os.listdir(tmp_path) == [".disk.imageio"]
        with pytest.raises(ImageInUse, match=f"another download to {tmp_path}/disk is running"):
            Claim(str(tmp_path / "disk"))
        with claim(tmp_path, "disk2"):
            pass
    assert os.listdir(tmp_path) == []
    with claim(tmp_path):
        pass


def test_what_a_killed_run_has_left_is_removed(tmp_path):
    kill_one(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".disk.imageio", "disk.part"]
    with claim(tmp_path):
        assert os.listdir(tmp_path) == [".disk.imageio"]
    assert os.listdir(tmp_path) == []


def test_claim_that_cannot_be_removed_hides_no_other_error(tmp_path, monkeypatch):
    """As in a folder where files can be made and not removed, see chattr(1)."""

    def unlink(path, *, dir_fd=None):
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(RuntimeError, match="the first"), claim(tmp_path):
        raise RuntimeError("the first")


@pytest.mark.parametrize("moved", ["replaced", "linked"])
def test_what_a_user_has_put_there_since_is_not_removed(tmp_path, moved):
    kill_one(tmp_path)
    if moved == "replaced":
        os.unlink(tmp_path / "disk.part")
        (tmp_path / "disk.part").write_bytes(b"mine")
    else:
        os.link(tmp_path / "disk.part", tmp_path / "saved")
    before = (tmp_path / "disk.part").read_bytes()
    with claim(tmp_path):
        assert (tmp_path / "disk.part").read_bytes() == before


def test_part_is_not_removed_where_files_cannot_be_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("ovirt_imageio.common.linux.born", lambda fd: None)
    with claim(tmp_path) as first:
        with contextlib.closing(Part.make(str(tmp_path / "disk"), 0o666)) as part:
            first.note(part)
            content = (tmp_path / ".disk.imageio").read_bytes()
    (tmp_path / ".disk.imageio").write_bytes(content)
    with claim(tmp_path):
        assert (tmp_path / "disk.part").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"ima',
        b'{"ima' + bytes(40),
        bytes(40),
        b'{"imageio": 1, "part": [',
        b'{"imageio": 1}',
        b'{"imageio": [1, {}]}\n',
    ],
)
def test_claim_that_a_crash_cut_off_is_taken(tmp_path, content):
    (tmp_path / ".disk.imageio").write_bytes(content)
    with claim(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_claim_is_written_whole_where_storage_takes_less_at_a_time(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:5], offset))
    kill_one(tmp_path)
    assert (tmp_path / ".disk.imageio").read_bytes().endswith(b"]}\n")
    with claim(tmp_path):
        assert os.listdir(tmp_path) == [".disk.imageio"]


def test_file_that_is_no_claim_is_left_alone(tmp_path):
    (tmp_path / ".disk.imageio").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="a file that no download has made") as caught:
        Claim(str(tmp_path / "disk"))
    assert caught.value.filename == str(tmp_path / ".disk.imageio")
    assert (tmp_path / ".disk.imageio").read_bytes() == b"mine"


def test_claim_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").touch()
    (tmp_path / ".disk.imageio").symlink_to("victim")
    with pytest.raises(OSError):
        Claim(str(tmp_path / "disk"))
    assert sorted(os.listdir(tmp_path)) == [".disk.imageio", "victim"]


def test_claim_that_another_run_has_made_meanwhile_is_not_removed(tmp_path):
    with claim(tmp_path):
        os.rename(tmp_path / ".disk.imageio", tmp_path / "elsewhere")
        (tmp_path / ".disk.imageio").touch()
    assert (tmp_path / ".disk.imageio").exists()


def test_claim_of_a_run_that_ends_just_now_is_not_taken(tmp_path, monkeypatch):
    """The file that was opened has no name any more: a lock of it excludes no other run."""
    first = Claim(str(tmp_path / "disk"))

    def lock(fd):
        first.release()
        return inuse.lock(fd)

    monkeypatch.setattr("ovirt_imageio.client.claim.lock", lock)
    with claim(tmp_path) as second:
        assert os.fstat(second._fd).st_nlink == 1
        with pytest.raises(ImageInUse):
            Claim(str(tmp_path / "disk"))


# Other users.


def test_run_of_another_user_is_respected():
    with folder_of(NOBODY, mode=0o777) as folder, claim(folder):
        with unprivileged(), pytest.raises(ImageInUse):
            Claim(str(folder / "disk"))
        assert (folder / ".disk.imageio").exists()


@pytest.mark.parametrize("root_is", ["first", "second"])
def test_killed_run_of_another_user_is_not_in_the_way_and_its_part_not_touched(root_is):
    with folder_of(NOBODY, mode=0o777) as folder:
        with contextlib.nullcontext() if root_is == "first" else unprivileged():
            kill_one(folder)
        with unprivileged() if root_is == "first" else contextlib.nullcontext(), claim(folder):
            assert sorted(os.listdir(folder)) == [".disk.imageio", "disk.part"]
        assert os.listdir(folder) == ["disk.part"]


@pytest.mark.parametrize("hidden", [False, True])
def test_killed_run_of_another_user_in_a_sticky_folder_is_named(hidden):
    with folder_of(0, mode=0o1777) as folder:
        kill_one(folder)
        if hidden:
            os.chmod(folder / ".disk.imageio", 0o600)
        with unprivileged(), pytest.raises(ImageInUse, match=f"{folder}/.disk.imageio is of a download by another"):
            Claim(str(folder / "disk"))
        assert sorted(os.listdir(folder)) == [".disk.imageio", "disk.part"]
