# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""In place of `os`, `fcntl` and `open`: system calls that reach the simulated disk."""

from __future__ import annotations

import errno
import fcntl as real_fcntl
import io
import os as real
import posixpath
import stat
import struct
from typing import Any, Callable, Optional, Union

from ..disk import Disk, Node, failure
from ..kernel import Process, active
from ..store import UNIT, Change
from . import StandIn, unknown

Path = Union[str, bytes, int, "real.PathLike[str]"]

_ACCESS = real.O_RDONLY | real.O_WRONLY | real.O_RDWR


class OpenFile:
    """An open file description: what descriptors refer to.

    Attributes:
        node: The file that is open.
        flags: As it was opened.
        path: By what name.
        position: For read(2) and write(2).
    """

    def __init__(self, node: Node, flags: int, path: str) -> None:
        self.node = node
        self.flags = flags
        self.path = path
        self.position = 0
        node.opens += 1
        self.failures = node.failures
        self._closed = False

    def sync(self, covers: Callable[[Change], bool] = lambda change: True) -> None:
        """Bring what was written to stable storage.

        Raises:
            OSError: It could not be done, now or since the file was opened; it is told once, and what
                was not written counts as clean.
        """
        node, kernel = self.node, active()
        mark = node.store.mark()
        status = (node.mode, node.uid, node.gid, dict(node.xattrs))
        try:
            kernel.disk_faults.before("sync", self.path)
        except OSError:
            node.failures += 1
            node.store.forget()
        kernel.step(f"fsync' {self.path}", 5000)
        if self.failures < node.failures:
            self.failures = node.failures
            raise failure(errno.EIO)
        node.store.flush(mark, covers)
        node.stable_status = status

    @property
    def writable(self) -> bool:
        """It was opened for writing."""
        return self.flags & _ACCESS in (real.O_WRONLY, real.O_RDWR)

    def close(self) -> None:
        """Let go of the locks."""
        if self._closed:
            return
        self._closed = True
        self.node.opens -= 1
        disk().let_go(self.node)
        if self.node.exclusive is self:
            self.node.exclusive = None
        self.node.locks.pop(self, None)
        self.node.ranges = [entry for entry in self.node.ranges if entry[3] is not self]


def disk() -> Disk:
    """The disk of the machine."""
    return active().disk


def opened(fd: int) -> OpenFile:
    """Return what a descriptor refers to.

    Raises:
        OSError: EBADF.
    """
    file = active().process.files.get(fd)
    if not isinstance(file, OpenFile):
        raise failure(errno.EBADF)
    return file


def attach(process: Process, file: Any) -> int:
    """Give a process the lowest free descriptor for something."""
    fd = 3
    while fd in process.files:
        fd += 1
    process.files[fd] = file
    return fd


def absolute(path: Path) -> str:
    """Return a path from the top, without following links."""
    text = real.fsdecode(path) if not isinstance(path, int) else _of_descriptor(path)
    return posixpath.normpath(posixpath.join("/disks", text))


def _of_descriptor(fd: int) -> str:
    return opened(fd).path


def _node(path: Path, *, follow: bool = True) -> Node:
    """Return what exists at a path or behind a descriptor."""
    if isinstance(path, int):
        return opened(path).node
    text = absolute(path)
    if text.startswith("/proc/self/fd/"):
        return opened(int(text.rpartition("/")[2])).node
    node = disk().look_up(text, follow=follow)[2]
    if node is None:
        raise failure(errno.ENOENT, real.fsdecode(path))
    return node


def _may(node: Node, uid: int, write: bool) -> bool:
    """Tell if a user may read or write something; root is asked as well here, to see what is refused."""
    if not write:
        return True
    if node.is_folder:
        return node.writable_by_others or node.uid == uid
    return bool(node.mode & 0o222) and (node.uid == uid or uid == 0 or bool(node.mode & 0o022))


def _name_of(path: Path) -> str:
    return str(path) if isinstance(path, int) else real.fsdecode(path)


def _check_folder(folder: Node, path: str) -> None:
    if not _may(folder, active().process.uid, write=True):
        raise failure(errno.EACCES, path)


class _System:
    """See the module `os`."""

    name = real.name
    devnull = real.devnull
    sep = real.sep
    curdir = real.curdir
    PathLike = real.PathLike
    error = OSError
    stat_result = real.stat_result
    fspath = staticmethod(real.fspath)
    fsencode = staticmethod(real.fsencode)
    fsdecode = staticmethod(real.fsdecode)
    strerror = staticmethod(real.strerror)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("O_", "SEEK_", "R_OK", "W_OK", "X_OK", "F_OK", "XATTR_", "EX_")):
            return getattr(real, name)
        return unknown("os")(name)

    # Files

    def open(self, path: Path, flags: int, mode: int = 0o777, *, dir_fd: Optional[int] = None) -> int:
        """See open(2)."""
        kernel = active()
        given = absolute(path)
        kernel.step(f"open {given} {flags:o}")
        node, text = self._opened(given, flags, mode)
        file = OpenFile(node, flags, text)
        if node.is_device and flags & real.O_EXCL:
            if node.exclusive is not None:
                file.close()
                raise failure(errno.EBUSY, given)
            node.exclusive = file
        return attach(kernel.process, file)

    def _opened(self, path: str, flags: int, mode: int) -> tuple[Node, str]:
        process = active().process
        if path.startswith("/proc/self/fd/"):
            file = opened(int(path.rpartition("/")[2]))
            return file.node, file.path
        if path == real.devnull:
            return Node(0, stat.S_IFCHR | 0o666, 0, 0), path
        writes = flags & _ACCESS != real.O_RDONLY and not flags & real.O_PATH
        if flags & real.O_TMPFILE == real.O_TMPFILE:
            folder = _node(path)
            _check_folder(folder, path)
            return disk().make(stat.S_IFREG | (mode & ~0o022), process.uid), f"{path}/#unnamed"
        exclusive = flags & real.O_CREAT and flags & real.O_EXCL
        nofollow = bool(flags & real.O_NOFOLLOW or exclusive)
        folder, name, node = disk().look_up(path, follow=not nofollow)
        if node is None:
            if not flags & real.O_CREAT:
                raise failure(errno.ENOENT, path)
            _check_folder(folder, path)
            node = disk().make(stat.S_IFREG | (mode & ~0o022), process.uid)
            folder.change({name: node})
            return node, path
        if exclusive:
            raise failure(errno.EEXIST, path)
        if stat.S_ISLNK(node.mode) and not flags & real.O_PATH:
            raise failure(errno.ELOOP, path)
        if flags & real.O_DIRECTORY and not node.is_folder:
            raise failure(errno.ENOTDIR, path)
        if node.is_folder and writes:
            raise failure(errno.EISDIR, path)
        if writes and not _may(node, process.uid, write=True):
            raise failure(errno.EACCES, path)
        if flags & real.O_TRUNC and writes and not node.is_device:
            node.store.resize(0)
        return node, path

    def close(self, fd: int) -> None:
        """See close(2). It works in a process that was killed, too, for nothing comes of it."""
        process = active().process
        if fd not in process.files:
            if process.killed:
                return
            raise failure(errno.EBADF)
        file = process.files.pop(fd)
        if not any(other is file for other in process.files.values()):
            file.close()

    def dup(self, fd: int) -> int:
        """See dup(2)."""
        return attach(active().process, opened(fd))

    def dup2(self, fd: int, other: int, inheritable: bool = True) -> int:
        """See dup2(2)."""
        file = opened(fd)
        active().step(f"dup2 {file.path}")
        if other in active().process.files:
            self.close(other)
        active().process.files[other] = file
        return other

    def read(self, fd: int, count: int) -> bytes:
        """See read(2)."""
        file = opened(fd)
        data = self.pread(fd, count, file.position)
        file.position += len(data)
        return data

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """See pread(2)."""
        file = opened(fd)
        active().step(f"pread {file.path} {count} {offset}")
        active().disk_faults.before("read", file.path)
        return file.node.store.read(offset, count)

    def preadv(self, fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        """See preadv(2)."""
        data = self.pread(fd, sum(memoryview(buffer).nbytes for buffer in buffers), offset)
        done = 0
        for buffer in buffers:
            with memoryview(buffer) as view, view.cast("B") as raw:
                part = data[done : done + len(raw)]
                raw[: len(part)] = part
                done += len(part)
        return done

    def write(self, fd: int, data: Any) -> int:
        """See write(2)."""
        file = opened(fd)
        if file.flags & real.O_APPEND:
            active().step(f"write {file.path} {len(data)}")
            return self._write(file, file.node.store.size, data)
        active().step(f"write {file.path} {len(data)}")
        count = self._write(file, file.position, data)
        file.position += count
        return count

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        """See pwrite(2)."""
        file = opened(fd)
        active().step(f"pwrite {file.path} {memoryview(data).nbytes} {offset}")
        return self._write(file, offset, data)

    def pwritev(self, fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        """See pwritev(2)."""
        return self.pwrite(fd, b"".join(bytes(buffer) for buffer in buffers), offset)

    def _write(self, file: OpenFile, offset: int, data: Any) -> int:
        if not file.writable:
            raise failure(errno.EBADF)
        active().disk_faults.before("write", file.path)
        raw = bytes(data)
        if stat.S_ISCHR(file.node.mode):
            return len(raw)
        if file.node.is_device:
            raw = raw[: max(0, file.node.store.size - offset)]
        count = disk().take_room(file.node, offset, len(raw))
        if not file.flags & real.O_APPEND:
            count = active().disk_faults.short(count, file.path)
        if raw and not count:
            raise failure(errno.ENOSPC)
        file.node.store.write(offset, raw[:count])
        return count

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """See lseek(2)."""
        file = opened(fd)
        size = file.node.store.size
        if whence in (real.SEEK_DATA, real.SEEK_HOLE):
            return _seek(file.node, offset, whence == real.SEEK_DATA)
        base = {real.SEEK_SET: 0, real.SEEK_CUR: file.position, real.SEEK_END: size}[whence]
        file.position = base + offset
        return file.position

    def ftruncate(self, fd: int, size: int) -> None:
        """See ftruncate(2)."""
        file = opened(fd)
        active().step(f"ftruncate {file.path} {size}")
        active().disk_faults.before("write", file.path)
        if not file.writable:
            raise failure(errno.EINVAL)
        file.node.store.resize(size)

    def truncate(self, path: Path, size: int) -> None:
        """See truncate(2)."""
        active().step(f"truncate {_name_of(path)} {size}")
        _node(path).store.resize(size)

    def fsync(self, fd: int) -> None:
        """See fsync(2)."""
        file = opened(fd)
        node = file.node
        active().step(f"fsync {file.path}", 10)
        if node.is_folder:
            names, count = dict(node.names), len(node.changes)
            active().disk_faults.before("sync", file.path)
            active().step(f"fsync' {file.path}", 3000)
            node.stable_names = names
            del node.changes[:count]
            return
        file.sync()

    fdatasync = fsync

    def set_blocking(self, fd: int, blocking: bool) -> None:
        """Do nothing."""

    def set_inheritable(self, fd: int, inheritable: bool) -> None:
        """Do nothing."""

    def isatty(self, fd: int) -> bool:
        """Tell that it is none."""
        return False

    # Names

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> real.stat_result:
        """See stat(2)."""
        active().step(f"stat {_name_of(path)}")
        return _status(_node(path, follow=follow_symlinks))

    def lstat(self, path: Path) -> real.stat_result:
        """See lstat(2)."""
        return self.stat(path, follow_symlinks=False)

    def fstat(self, fd: int) -> real.stat_result:
        """See fstat(2)."""
        return _status(opened(fd).node)

    def unlink(self, path: Path, *, dir_fd: Optional[int] = None) -> None:
        """See unlink(2)."""
        text = absolute(path)
        active().step(f"unlink {text}")
        folder, name, node = disk().look_up(text, follow=False)
        if node is None:
            raise failure(errno.ENOENT, text)
        if node.is_folder:
            raise failure(errno.EISDIR, text)
        _check_folder(folder, text)
        folder.change({name: None})
        disk().let_go(node)

    remove = unlink

    def rename(self, source: Path, target: Path, *, replaces: bool = True) -> None:
        """See rename(2); without `replaces` renameat2(2)."""
        old, new = absolute(source), absolute(target)
        active().step(f"rename {old} {new}")
        folder, name, node = disk().look_up(old, follow=False)
        into, new_name, replaced = disk().look_up(new, follow=False)
        if node is None:
            raise failure(errno.ENOENT, old)
        _check_folder(folder, old)
        _check_folder(into, new)
        if replaced is not None and not replaces:
            raise failure(errno.EEXIST, new)
        if replaced is node:
            return
        if replaced is not None and replaced.is_folder:
            raise failure(errno.EISDIR, new)
        if folder is into:
            node.links += 1
            folder.change({name: None, new_name: node})
            node.links -= 1
        else:
            into.change({new_name: node})
            folder.change({name: None})
        if replaced is not None:
            disk().let_go(replaced)

    replace = rename

    def link(
        self,
        source: Path,
        target: Path,
        *,
        src_dir_fd: Optional[int] = None,
        dst_dir_fd: Optional[int] = None,
        follow_symlinks: bool = True,
    ) -> None:
        """See link(2)."""
        new = absolute(target)
        active().step(f"link {_name_of(source)} {new}")
        node = _node(source, follow=follow_symlinks)
        folder, name, taken = disk().look_up(new, follow=False)
        _check_folder(folder, new)
        if taken is not None:
            raise failure(errno.EEXIST, new)
        folder.change({name: node})

    def symlink(self, source: str, target: Path) -> None:
        """See symlink(2)."""
        new = absolute(target)
        active().step(f"symlink {source} {new}")
        folder, name, taken = disk().look_up(new, follow=False)
        if taken is not None:
            raise failure(errno.EEXIST, new)
        node = disk().make(stat.S_IFLNK | 0o777, active().process.uid)
        node.target = source
        folder.change({name: node})

    def readlink(self, path: Path) -> str:
        """See readlink(2)."""
        text = absolute(path)
        if text.startswith("/proc/self/fd/"):
            return opened(int(text.rpartition("/")[2])).path
        node = _node(path, follow=False)
        if not stat.S_ISLNK(node.mode):
            raise failure(errno.EINVAL, text)
        return node.target

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """See mkdir(2)."""
        text = absolute(path)
        active().step(f"mkdir {text}")
        folder, name, taken = disk().look_up(text, follow=False)
        if taken is not None:
            raise failure(errno.EEXIST, text)
        _check_folder(folder, text)
        folder.change({name: disk().make(stat.S_IFDIR | mode, active().process.uid)})

    def makedirs(self, path: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        """See os.makedirs."""
        text = absolute(path)
        above = posixpath.dirname(text)
        if disk().find(above) is None:
            self.makedirs(above, mode, exist_ok=True)
        try:
            self.mkdir(text, mode)
        except FileExistsError:
            if not exist_ok:
                raise

    def rmdir(self, path: Path) -> None:
        """See rmdir(2)."""
        text = absolute(path)
        active().step(f"rmdir {text}")
        folder, name, node = disk().look_up(text, follow=False)
        if node is None:
            raise failure(errno.ENOENT, text)
        if node.names:
            raise failure(errno.ENOTEMPTY, text)
        folder.change({name: None})

    def listdir(self, path: Path = ".") -> list[str]:
        """See os.listdir."""
        active().step(f"listdir {_name_of(path)}")
        return sorted(_node(path).names)

    def pathconf(self, path: Path, name: str) -> int:
        """See pathconf(3)."""
        return {"PC_NAME_MAX": 255, "PC_PATH_MAX": 4096}[name]

    def access(self, path: Path, mode: int) -> bool:
        """See access(2)."""
        active().step(f"access {_name_of(path)} {mode}")
        try:
            node = _node(path)
        except OSError:
            return False
        return _may(node, active().process.uid, bool(mode & real.W_OK))

    # Owners and permissions

    def chmod(self, path: Path, mode: int) -> None:
        """See chmod(2)."""
        node = _node(path)
        active().step(f"chmod {_name_of(path)} {mode:o}")
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)

    fchmod = chmod

    def chown(self, path: Path, uid: int, gid: int) -> None:
        """See chown(2)."""
        node = _node(path)
        active().step(f"chown {_name_of(path)} {uid} {gid}")
        if active().process.uid and uid not in (-1, node.uid):
            raise failure(errno.EPERM)
        node.uid = node.uid if uid < 0 else uid
        node.gid = node.gid if gid < 0 else gid

    fchown = chown

    def getxattr(self, path: Path, attribute: str, *, follow_symlinks: bool = True) -> bytes:
        """See getxattr(2)."""
        node = _node(path, follow=follow_symlinks)
        if attribute not in node.xattrs:
            raise failure(errno.ENODATA)
        return node.xattrs[attribute]

    def listxattr(self, path: Path, *, follow_symlinks: bool = True) -> list[str]:
        """See listxattr(2)."""
        return sorted(_node(path, follow=follow_symlinks).xattrs)

    def setxattr(
        self, path: Path, attribute: str, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """See setxattr(2)."""
        active().step(f"setxattr {_name_of(path)} {attribute}")
        _node(path, follow=follow_symlinks).xattrs[attribute] = bytes(value)

    def removexattr(self, path: Path, attribute: str, *, follow_symlinks: bool = True) -> None:
        """See removexattr(2)."""
        _node(path, follow=follow_symlinks).xattrs.pop(attribute, None)

    # The process

    def getpid(self) -> int:
        """Return a number of the process."""
        return active().process.number

    def getuid(self) -> int:
        """Return its user."""
        return active().process.uid

    geteuid = getgid = getegid = getuid

    def getgroups(self) -> list[int]:
        """Return its groups."""
        return [active().process.uid]

    def umask(self, mask: int) -> int:
        """Return what it is; it stays."""
        return 0o022

    def urandom(self, count: int) -> bytes:
        """Throw the dice."""
        return bytes(active().dice.below(256) for _ in range(count))

    @property
    def environ(self) -> dict[str, str]:
        """Its environment."""
        return active().process.environ

    def getenv(self, name: str, default: Optional[str] = None) -> Optional[str]:
        """Return a variable of it."""
        return active().process.environ.get(name, default)

    @property
    def path(self) -> _Paths:
        """See os.path."""
        return paths


class _Paths(StandIn):
    """See the module `os.path`."""

    join = staticmethod(posixpath.join)
    basename = staticmethod(posixpath.basename)
    dirname = staticmethod(posixpath.dirname)
    normpath = staticmethod(posixpath.normpath)
    isabs = staticmethod(posixpath.isabs)
    split = staticmethod(posixpath.split)
    splitext = staticmethod(posixpath.splitext)
    commonpath = staticmethod(posixpath.commonpath)
    relpath = staticmethod(posixpath.relpath)
    sep = posixpath.sep
    samestat = staticmethod(real.path.samestat)

    stands_for = "os.path"

    def abspath(self, path: Path) -> Any:
        """See os.path.abspath."""
        return absolute(path)

    def realpath(self, path: Path) -> Any:
        """See os.path.realpath."""
        text = absolute(path)
        active().step(f"realpath {text}")
        for _ in range(8):
            node = disk().find_link(text)
            if node is None:
                break
            text = posixpath.normpath(posixpath.join(posixpath.dirname(text), node.target))
        return text

    def exists(self, path: Path) -> bool:
        """See os.path.exists."""
        active().step(f"exists {_name_of(path)}")
        return disk().find(absolute(path)) is not None

    def lexists(self, path: Path) -> bool:
        """See os.path.lexists."""
        active().step(f"lexists {_name_of(path)}")
        try:
            return disk().look_up(absolute(path), follow=False)[2] is not None
        except OSError:
            return False

    def isfile(self, path: Path) -> bool:
        """See os.path.isfile."""
        node = disk().find(absolute(path))
        return node is not None and stat.S_ISREG(node.mode)

    def isdir(self, path: Path) -> bool:
        """See os.path.isdir."""
        node = disk().find(absolute(path))
        return node is not None and node.is_folder

    def islink(self, path: Path) -> bool:
        """See os.path.islink."""
        return disk().find_link(absolute(path)) is not None

    def getsize(self, path: Path) -> int:
        """See os.path.getsize."""
        return _node(path).store.size

    def expanduser(self, path: str) -> str:
        """See os.path.expanduser."""
        home = active().process.environ.get("HOME")
        return home + path[1:] if home and path.startswith("~") else path

    def samefile(self, a: Path, b: Path) -> bool:
        """See os.path.samefile."""
        return _node(a) is _node(b)


paths = _Paths()
os = _System()


def _status(node: Node) -> real.stat_result:
    links = node.links if not node.is_folder else 2
    blocks = sum(node.store.now.allocated) * UNIT // 512
    size = 0 if node.is_device else node.store.size
    head = (node.mode, node.number, 1, links, node.uid, node.gid, size, 0, 0, 0)
    device = 0x800 if node.is_device else 0
    return real.stat_result((*head, 0.0, 0.0, 0.0, 0, 0, 0, 4096, blocks, device))


def _seek(node: Node, offset: int, data: bool) -> int:
    size = node.store.size
    if offset >= size:
        raise failure(errno.ENXIO)
    allocated = node.store.now.allocated
    unit = offset // UNIT
    if bool(allocated[unit]) is data:
        return offset
    found = allocated.find(b"\1" if data else b"\0", unit)
    if found < 0:
        if data:
            raise failure(errno.ENXIO)
        return size
    return min(found * UNIT, size)


def punch(fd: int, offset: int, length: int) -> None:
    """Deallocate a range."""
    file = opened(fd)
    active().step(f"punch {file.path} {offset} {length}")
    active().disk_faults.before("write", file.path)
    file.node.store.punch(offset, length)


def zero(fd: int, offset: int, length: int) -> None:
    """Write zeroes."""
    file = opened(fd)
    active().step(f"zero {file.path} {offset} {length}")
    active().disk_faults.before("write", file.path)
    if disk().take_room(file.node, offset, length) < length:
        raise failure(errno.ENOSPC)
    file.node.store.write(offset, bytes(length))


class _Fcntl:
    """See the module `fcntl`."""

    F_OFD_GETLK = 36
    F_OFD_SETLK = 37
    F_OFD_SETLKW = 38

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("LOCK_", "F_")) and hasattr(real_fcntl, name):
            return getattr(real_fcntl, name)
        return unknown("fcntl")(name)

    def flock(self, fd: int, operation: int) -> None:
        """See flock(2)."""
        file = opened(fd)
        active().step(f"flock {file.path} {operation}")
        locks = file.node.locks
        if operation & real_fcntl.LOCK_UN:
            locks.pop(file, None)
            return
        exclusive = bool(operation & real_fcntl.LOCK_EX)
        if any(holder is not file and (exclusive or theirs) for holder, theirs in locks.items()):
            if operation & real_fcntl.LOCK_NB:
                raise failure(errno.EWOULDBLOCK)
            raise NotImplementedError("the simulation knows no flock that waits")
        locks[file] = exclusive

    def fcntl(self, fd: int, command: int, argument: Any = 0) -> Any:
        """See fcntl(2): open file description locks."""
        if command not in (self.F_OFD_GETLK, self.F_OFD_SETLK):
            raise NotImplementedError(f"the simulation knows no fcntl {command}")
        file = opened(fd)
        kind, whence, start, length, pid = struct.unpack_from("hhqqi", argument)
        assert whence == 0
        active().step(f"ofd {file.path} {command} {kind} {start} {length}")
        end = start + length if length else 1 << 62
        for first, last, exclusive, holder in file.node.ranges:
            conflicts = exclusive or kind == real_fcntl.F_WRLCK
            if kind != real_fcntl.F_UNLCK and holder is not file and first < end and start < last and conflicts:
                if command == self.F_OFD_SETLK:
                    raise failure(errno.EAGAIN)
                theirs = real_fcntl.F_WRLCK if exclusive else real_fcntl.F_RDLCK
                return struct.pack("hhqqi", theirs, 0, first, last - first, -1).ljust(len(argument), b"\0")
        if command == self.F_OFD_GETLK:
            return struct.pack("hhqqi", real_fcntl.F_UNLCK, 0, start, length, pid).ljust(len(argument), b"\0")
        lock(file, start, end, kind)
        return argument

    def lockf(self, fd: int, operation: int, length: int = 0, start: int = 0, whence: int = 0) -> None:
        """Refuse: locks of a process are lost by any close."""
        raise NotImplementedError("the simulation knows no fcntl.lockf")


def lock(file: OpenFile, start: int, end: int, kind: int) -> None:
    """Set or give up a lock of an open file on a range."""
    kept = []
    for first, last, exclusive, holder in file.node.ranges:
        if holder is not file or last <= start or end <= first:
            kept.append((first, last, exclusive, holder))
            continue
        if first < start:
            kept.append((first, start, exclusive, holder))
        if end < last:
            kept.append((end, last, exclusive, holder))
    if kind != real_fcntl.F_UNLCK:
        kept.append((start, end, kind == real_fcntl.F_WRLCK, file))
    file.node.ranges = kept


fcntl = _Fcntl()


class _Raw(io.RawIOBase):
    """A file under `open`."""

    def __init__(self, fd: int, mine: bool) -> None:
        self._fd = fd
        self._mine = mine

    def readable(self) -> bool:
        """Tell if it can be read."""
        return True

    def writable(self) -> bool:
        """Tell if it can be written."""
        return True

    def readinto(self, view: Any) -> int:
        """Read."""
        data = os.read(self._fd, len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        """Write."""
        return os.write(self._fd, bytes(data))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor."""
        if self._mine and not self.closed:
            self._mine = False
            os.close(self._fd)
        super().close()


def open_file(path: Path, mode: str = "r", buffering: int = -1, *, closefd: bool = True, **options: Any) -> Any:
    """See open()."""
    flags = {
        "r": real.O_RDONLY,
        "w": real.O_WRONLY | real.O_CREAT | real.O_TRUNC,
        "a": real.O_WRONLY | real.O_CREAT | real.O_APPEND,
        "x": real.O_WRONLY | real.O_CREAT | real.O_EXCL,
    }[mode[0]]
    raw = _Raw(path if isinstance(path, int) else os.open(path, flags | real.O_CLOEXEC, 0o666), closefd)
    binary: Any = io.BufferedReader(raw) if mode[0] == "r" else io.BufferedWriter(raw)
    return binary if "b" in mode else io.TextIOWrapper(binary, encoding=options.get("encoding", "utf-8"))
