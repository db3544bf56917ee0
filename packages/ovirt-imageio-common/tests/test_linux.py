# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import errno
import os
import socket
import tempfile
import threading

import pytest

from ovirt_imageio.common import linux


@pytest.fixture
def small_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10000)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture(params=["os", "ctypes"])
def splice(request, monkeypatch):
    """Both ways to the system call; Python 3.9 has only one."""
    if request.param == "ctypes":
        monkeypatch.setattr(linux, "_splice_of_os", None)
    elif not hasattr(os, "splice"):
        pytest.skip("os.splice is there from Python 3.10 on")
    return linux.splice


def test_splice_from_socket_to_file(splice, small_file):
    a, b = socket.socketpair()
    with a, b, linux.Pipe(65536) as pipe:
        b.sendall(b"hello")
        assert splice(a.fileno(), pipe.write_fd, 100) == 5
        assert splice(pipe.read_fd, small_file, 5, offset_out=9000) == 5
        assert os.pread(small_file, 7, 8999) == b"xhellox"


def test_splice_of_a_closed_stream_returns_nothing(splice):
    a, b = socket.socketpair()
    with a, linux.Pipe(65536) as pipe:
        b.close()
        assert splice(a.fileno(), pipe.write_fd, 100) == 0


def test_splice_raises_the_error_of_the_system(splice, small_file):
    with pytest.raises(OSError, match="splice|Invalid|Bad") as e:
        splice(small_file, small_file, 1)
    assert e.value.errno == errno.EINVAL


def test_splice_without_blocking(splice):
    a, b = socket.socketpair()
    with a, b, linux.Pipe(65536) as pipe:
        a.setblocking(False)
        with pytest.raises(BlockingIOError):
            splice(a.fileno(), pipe.write_fd, 1, flags=linux.SPLICE_F_NONBLOCK)


def test_pipe_tells_when_it_is_full():
    with linux.Pipe(65536) as pipe:
        assert pipe.has_room()
        os.write(pipe.write_fd, bytes(pipe.size))
        assert not pipe.has_room()


def test_pipe_pool_lends_a_used_pipe_again():
    pool = linux.PipePool(1)
    with pool.borrow() as first:
        fd = first.read_fd
    with pool.borrow() as second:
        assert second.read_fd == fd
    pool.close()


def test_pipe_pool_lends_no_more_than_its_limit():
    pool = linux.PipePool(1)
    with pool.borrow() as first, pool.borrow() as second:
        assert first is not None
        assert second is None
    pool.close()


def test_pipe_pool_closes_a_pipe_that_may_hold_bytes():
    pool = linux.PipePool(1)
    with pytest.raises(ZeroDivisionError), pool.borrow() as pipe:
        os.write(pipe.write_fd, b"left over")
        raise ZeroDivisionError
    assert pipe.read_fd == -1
    with pool.borrow() as fresh:
        assert fresh is not pipe
    pool.close()


def test_pipe_pool_lends_none_where_pipes_are_small(monkeypatch):
    def refuse(fd, request, *args):
        if request == linux.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "past pipe-user-pages-soft")
        return 8192

    monkeypatch.setattr(linux.fcntl, "fcntl", refuse)
    pool = linux.PipePool(1)
    with pool.borrow() as pipe:
        assert pipe is None
    with pool.borrow() as pipe:
        assert pipe is None


def test_fallocate_punches_a_hole(small_file):
    linux.fallocate(small_file, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, 0, 8192)
    assert os.pread(small_file, 8193, 0) == bytes(8192) + b"x"


def test_fallocate_raises_the_error_of_the_system(small_file):
    with pytest.raises(OSError, match="fallocate") as e:
        linux.fallocate(small_file, 0, 0, -1)
    assert e.value.errno == errno.EINVAL


def test_file_size_of_a_regular_file(small_file):
    assert linux.file_size(small_file) == 10000


def test_file_size_refuses_a_pipe():
    r, w = os.pipe()
    with pytest.raises(OSError, match="neither a regular file nor a block device"):
        linux.file_size(r)
    os.close(r)
    os.close(w)


def test_seek_data_and_hole(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
        f.seek(1 << 19)
        f.write(b"x" * 4096)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert linux.seek_data(fd, 0) == 1 << 19
        assert linux.seek_hole(fd, 1 << 19) == (1 << 19) + 4096
        assert linux.seek_data(fd, 1 << 20) is None
    finally:
        os.close(fd)


def test_tmpfs_is_told_from_disks():
    fd = os.memfd_create("test")
    try:
        assert linux.is_tmpfs(fd)
        assert linux.is_local(fd)
    finally:
        os.close(fd)


def test_proc_is_not_a_local_disk():
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        assert not linux.is_local(fd)
    finally:
        os.close(fd)


def test_pipe_pool_lends_none_where_there_are_no_more_descriptors(monkeypatch):
    pool = linux.PipePool(1)
    with monkeypatch.context() as patch:
        patch.setattr(linux.os, "pipe2", fails(errno.EMFILE))
        with pool.borrow() as pipe:
            assert pipe is None
    with pool.borrow() as pipe:
        assert pipe is not None
    pool.close()


def fails(*codes):
    """A system call that fails with these errors, one after another."""
    left = list(codes)

    def call(*args, **options):
        del args  # no traceback keeps the caller's buffers
        raise OSError(left.pop(0), "as told")

    return call


def test_calls_that_a_signal_interrupts_are_made_again(monkeypatch, small_file):
    """ctypes does not do that for us, as the standard library would."""
    answers = [-1, 0]

    def call(*args):
        linux.ctypes.set_errno(errno.EINTR)
        return answers.pop(0)

    monkeypatch.setattr(linux, "_splice_of_os", None)
    monkeypatch.setattr(linux, "_splice", call)
    assert linux.splice(small_file, small_file, 1) == 0
    answers += [-1, 0]
    monkeypatch.setattr(linux, "_fallocate", call)
    linux.fallocate(small_file, 0, 0, 1)
    assert answers == []


def test_file_system_of_a_closed_descriptor():
    with pytest.raises(OSError, match="fstatfs") as e:
        linux.file_system(-1)
    assert e.value.errno == errno.EBADF


def test_preadv_nowait_reads_what_was_just_written():
    with tempfile.NamedTemporaryFile() as f:
        f.write(b"x" * 100)
        f.flush()
        buf = bytearray(100)
        try:
            count = linux.preadv_nowait(f.fileno(), [buf], 0)
        except OSError as e:
            if not linux.is_unsupported(e):
                raise
            pytest.skip("this file system knows no RWF_NOWAIT")
        assert count == 100
        assert buf == b"x" * 100


# The patches of open(2) end before the folder of the test is removed, which needs it: they are made last.


def test_direct_io_that_storage_does_not_know(small_file, monkeypatch):
    monkeypatch.setattr(linux.os, "open", fails(errno.EINVAL, errno.EACCES))
    assert linux.reopen_direct(small_file, os.O_RDONLY) is None
    with pytest.raises(OSError, match="as told") as e:
        linux.reopen_direct(small_file, os.O_RDONLY)
    assert e.value.errno == errno.EACCES


@pytest.mark.parametrize(("codes", "block"), [([], 512), ([errno.EINVAL], 4096), ([errno.EINVAL, errno.EINVAL], None)])
def test_block_of_direct_io_is_found_by_trying(small_file, monkeypatch, codes, block):
    codes = list(codes)
    # The answer to O_DIRECT is up to preadv: this file system need not know the flag.
    real = os.open
    monkeypatch.setattr(linux.os, "open", lambda path, flags: real(path, flags & ~os.O_DIRECT))
    monkeypatch.setattr(linux.os, "preadv", lambda *args: fails(codes.pop(0))() if codes else 512)
    found = linux.reopen_direct(small_file, os.O_RDONLY)
    if block is None:
        assert found is None
        return
    os.close(found[0])
    assert found[1] == block


def test_error_while_trying_blocks_closes_the_descriptor(small_file, monkeypatch):
    real = os.open
    monkeypatch.setattr(linux.os, "open", lambda path, flags: real(path, flags & ~os.O_DIRECT))
    monkeypatch.setattr(linux.os, "preadv", fails(errno.EIO))
    with pytest.raises(OSError, match="as told"):
        linux.reopen_direct(small_file, os.O_RDONLY)


def test_empty_file_takes_the_larger_block(tmp_path, monkeypatch):
    path = tmp_path / "empty"
    path.touch()
    real = os.open
    monkeypatch.setattr(linux.os, "open", lambda path, flags: real(path, flags & ~os.O_DIRECT))
    fd = real(path, os.O_RDONLY)
    direct, block = linux.reopen_direct(fd, os.O_RDONLY)
    os.close(direct)
    os.close(fd)
    assert block == 4096


def test_seek_passes_the_error_of_storage(monkeypatch, small_file):
    monkeypatch.setattr(linux.os, "lseek", fails(errno.EIO))
    with pytest.raises(OSError, match="as told"):
        linux.seek_data(small_file, 0)


def test_set_nice_is_for_the_calling_thread_alone():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found = []

    def work():
        linux.set_nice(before + 1)
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(before + 1, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


# Files by their names.


def test_time_of_birth_is_of_the_file_and_not_of_its_content(small_file):
    born = linux.born(small_file)
    if born is None:
        pytest.skip("no times of birth here")
    os.pwrite(small_file, b"y", 0)
    assert linux.born(small_file) == born
    assert abs(born - os.fstat(small_file).st_mtime_ns) < 60 * 10**9


@pytest.mark.parametrize("lacks", ["the system call", "the file system"])
def test_time_of_birth_that_is_not_known_is_none(monkeypatch, small_file, lacks):
    class Libc:
        if lacks == "the file system":
            statx = staticmethod(lambda *args: 0)

    monkeypatch.setattr(linux, "_libc", Libc)
    assert linux.born(small_file) is None


@pytest.mark.parametrize("known", [True, False])
def test_file_is_renamed_to_a_new_name_only(monkeypatch, tmp_path, known):
    if not known:

        class Libc:
            @staticmethod
            def renameat2(*args):
                linux.ctypes.set_errno(errno.EINVAL)
                return -1

        monkeypatch.setattr(linux, "_libc", Libc)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    for path in (old, new):
        with open(path, "w") as f:
            f.write(path)
    with pytest.raises(FileExistsError) as caught:
        linux.rename_new(old, new)
    assert caught.value.filename == new
    assert (tmp_path / "new").read_text() == new
    os.unlink(new)
    linux.rename_new(old, new)
    assert os.listdir(tmp_path) == ["new"]
    os.symlink("nowhere", old)
    with pytest.raises(FileExistsError):
        linux.rename_new(new, old)
    with pytest.raises(FileNotFoundError):
        linux.rename_new(str(tmp_path / "gone"), str(tmp_path / "other"))


def test_name_is_of_the_open_file_itself(tmp_path, small_file):
    path = str(tmp_path / "file")
    assert linux.is_named(small_file, path)
    os.rename(path, tmp_path / "elsewhere")
    assert not linux.is_named(small_file, path)
    os.symlink("elsewhere", path)
    assert not linux.is_named(small_file, path)


def test_mount_is_the_same_within_one(tmp_path, small_file):
    folder = os.open(tmp_path, os.O_PATH)
    proc = os.open("/proc/self/stat", os.O_RDONLY)
    try:
        assert linux.mount_of(folder) == linux.mount_of(small_file) is not None
        assert linux.mount_of(proc) != linux.mount_of(small_file)
    finally:
        os.close(folder)
        os.close(proc)


# Locks.


@pytest.fixture
def again(tmp_path, small_file):
    """The small file, opened once more."""
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd
    os.close(fd)


def test_lock_excludes_other_locks_of_the_byte_until_it_is_closed(tmp_path, small_file, again):
    assert linux.lock_bytes(small_file, 1 << 40)
    assert not linux.lock_bytes(again, 1 << 40)
    assert not linux.lock_bytes(again, 0, 1 << 41, shared=True)
    assert linux.are_locked(again, 0, 1 << 41)
    assert not linux.are_locked(small_file, 0, 1 << 41)
    assert linux.lock_bytes(again, 1)
    third = os.open(tmp_path / "file", os.O_RDWR)
    try:
        assert linux.lock_bytes(third, 7)
    finally:
        os.close(third)
    assert linux.lock_bytes(again, 7)


def test_shared_locks_exclude_those_that_are_not(small_file, again):
    assert linux.lock_bytes(small_file, 5, shared=True)
    assert linux.lock_bytes(again, 5, shared=True)
    assert not linux.lock_bytes(again, 5)
    assert linux.are_locked(again, 5)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_told(monkeypatch, small_file, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(linux.fcntl, "fcntl", fail)
    for call in (linux.lock_bytes, linux.are_locked):
        with pytest.raises(OSError) as caught:
            call(small_file, 0)
        assert linux.knows_no_locks(caught.value)
    assert not linux.knows_no_locks(OSError(errno.EIO, "Input/output error"))


def test_file_is_opened_again_whatever_has_its_name(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with open(path, "rb") as held:
        path.rename(tmp_path / "other")
        path.write_bytes(b"new")
        fd = linux.reopen(held.fileno(), os.O_RDONLY, str(path))
        try:
            assert os.pread(fd, 10, 0) == b"old"
        finally:
            os.close(fd)


def test_file_is_opened_again_by_its_name_without_proc(tmp_path, monkeypatch):
    def open_(path, flags, open_=os.open):
        return open_(str(path).replace("/proc/", "/no-proc/"), flags)

    monkeypatch.setattr(os, "open", open_)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as held:
        fd = linux.reopen(held.fileno(), os.O_RDONLY, str(path))
        os.close(fd)
        path.unlink()
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").rename(path)
        with pytest.raises(OSError, match=f"another file has its name by now: '{path}'"):
            linux.reopen(held.fileno(), os.O_RDONLY, str(path))


def test_file_that_may_not_be_opened_again_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with open(tmp_path / "file", "rb") as held, pytest.raises(NotADirectoryError, match=f"{tmp_path}/file"):
        linux.reopen(held.fileno(), os.O_RDONLY | os.O_DIRECTORY, str(tmp_path / "file"))
