# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder whose host may lose power at any moment.

A write changes the content of a file, and a rename its name. But both are in memory only until
an fsync of the file, or of the folder. A loss of power leaves

    names:      as the last fsync of the folder left them, or as they were at any time since
    contents:   as the last fsync of each file left them, or as they are now

The calls of this process are seen as they are made. After each call that matters, a function
may look at every state that the folder could be found in:

    with VolatileFolder(folder, lambda volatile, call: check(volatile.states())) as volatile:
        move()
    check(volatile.states())

qemu's writes are seen in the files, and its flushes by the answers that its clients get.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict
from unittest import mock

from ovirt_imageio.common import linux
from ovirt_imageio.common.backends.nbd import NbdBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

State = Dict[str, bytes]
"""Content of each file, by its name."""

Watch = Callable[["VolatileFolder", str], None]
"""Called with the folder and the name of a call."""

_CALLS = ("open", "replace", "rename", "link", "unlink", "ftruncate", "fchmod", "fchown", "fsync", "fdatasync")


def _see_nothing(volatile: VolatileFolder, call: str) -> None:
    """Watch without looking."""


class _File:
    """A file of the folder, open so that its inode is not given to another."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.stable = b""

    def content(self) -> bytes:
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)

    def sync(self) -> None:
        self.stable = self.content()


class VolatileFolder:
    """Watches a folder. The files that are there in the beginning are stable.

    Args:
        folder: Without folders and links in it.
        watch: Called after each call that may have changed the outcome of a loss of power. It runs in
            the thread that made the call, with this object and the name of the call.

    Attributes:
        calls: Names of those calls, so far.
    """

    def __init__(
        self, folder: Path, watch: Callable[[VolatileFolder, str], None] = lambda volatile, call: None
    ) -> None:
        self.calls: list[str] = []
        self._folder = folder
        self._watch = _see_nothing if watch is None else watch
        self._files: dict[int, _File] = {}
        self._names: list[dict[str, int]] = []
        self._lock = threading.RLock()
        self._looking = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> VolatileFolder:
        self._look()
        for file in self._files.values():
            file.sync()
        for name in _CALLS:
            self._see(os, name)
        self._see(linux, "rename_new")
        self._see(NbdBackend, "flush")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        for file in self._files.values():
            os.close(file.fd)

    def states(self) -> Iterator[State]:
        """Every state that the folder is found in if power is lost now; the present one comes last."""
        for names in self._names:
            inodes = sorted(set(names.values()))
            for contents in itertools.product(*(self._contents(inode) for inode in inodes)):
                content = dict(zip(inodes, contents))
                yield {name: content[inode] for name, inode in names.items()}

    def is_settled(self, name: str) -> bool:
        """Tell if whatever file has a name after a loss of power has all of its content."""
        return all(len(self._contents(names[name])) == 1 for names in self._names if name in names)

    def _contents(self, inode: int) -> list[bytes]:
        file = self._files[inode]
        now = file.content()
        return [now] if file.stable == now else [file.stable, now]

    def _see(self, owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def seen(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if self._looking:
                    return call(*args, **kwargs)
            result = call(*args, **kwargs)
            with self._lock:
                self._looking = True
                try:
                    self._note(name, args)
                finally:
                    self._looking = False
            return result

        self._stack.enter_context(mock.patch.object(owner, name, seen))

    def _note(self, name: str, args: tuple[Any, ...]) -> None:
        is_new = self._look()
        if name == "flush":
            self._sync_parts()
        elif name in ("fsync", "fdatasync"):
            self._sync(args[0])
        elif not is_new and name == "open":
            return
        self.calls.append(name)
        self._watch(self, name)

    def _look(self) -> bool:
        """Look at the names; tell if they have changed."""
        names = {}
        for entry in os.scandir(self._folder):
            names[entry.name] = entry.inode()
            if entry.inode() not in self._files:
                self._files[entry.inode()] = _File(self._folder / entry.name)
        if self._names and names == self._names[-1]:
            return False
        self._names.append(names)
        return True

    def _sync(self, fd: int) -> None:
        status = os.fstat(fd)
        if os.path.samestat(status, os.stat(self._folder)):
            del self._names[:-1]
        for file in self._files.values():
            if os.path.samestat(status, os.fstat(file.fd)):
                file.sync()

    def _sync_parts(self) -> None:
        """A flush of qemu was answered. The image that it writes is a part."""
        for name, inode in self._names[-1].items():
            if name.endswith(".part"):
                self._files[inode].sync()
