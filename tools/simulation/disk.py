# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's disk: a file system that forgets what was not synced when power is lost.

The content of a file is stable after its fsync(2), the names in a folder after that of the folder.
Any part of the rest may be lost: units of files by the dice, changes of a folder from any of them
on. A rename is one change: the name holds the old file or the new one.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Callable, Iterator, Optional

from .dice import Dice
from .store import UNIT, Store


class Node:
    """A file, folder, symbolic link or block device.

    Attributes:
        number: Of the inode.
        mode: Kind and permissions.
        uid: Owner.
        gid: Group.
        xattrs: Extended attributes.
        store: Content of a file or a device.
        names: Entries of a folder.
        stable_names: Those of them that survive for certain.
        target: Of a symbolic link.
        locks: Of flock(2), the open file that holds it exclusively or those that share it.
        ranges: Of fcntl(2): byte, exclusive, holder.
        born: When it was made, in nanoseconds.
        links: How many names it has.
        opens: How often it is open.
        exclusive: The open file that has a device for itself.
        failures: How often content could not be brought to stable storage. Each open file is told once.
    """

    def __init__(self, number: int, mode: int, uid: int, gid: int) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.xattrs: dict[str, bytes] = {}
        self.store = Store()
        self.names: dict[str, Node] = {}
        self.stable_names: dict[str, Node] = {}
        self.changes: list[dict[str, Optional[Node]]] = []
        self.target = ""
        self.locks: dict[object, bool] = {}
        self.ranges: list[tuple[int, int, bool, object]] = []
        self.stable_status: tuple[int, int, int, dict[str, bytes]] = (mode, uid, gid, {})
        self.writable_by_others = True
        self.born = 0
        self.links = 0
        self.opens = 0
        self.exclusive: object = None
        self.failures = 0

    @property
    def is_folder(self) -> bool:
        """It is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_device(self) -> bool:
        """It is a block device."""
        return stat.S_ISBLK(self.mode)

    def change(self, names: dict[str, Optional[Node]]) -> None:
        """Change names of a folder, at once; None removes one."""
        self.changes.append(names)
        for name, node in names.items():
            before = self.names.get(name)
            if before is not None:
                before.links -= 1
            if node is not None:
                node.links += 1
        _renamed(self.names, names)

    def sync(self) -> None:
        """Make all of a folder stable."""
        self.stable_names = dict(self.names)
        self.changes.clear()

    def sync_status(self) -> None:
        """Make owner and permissions stable."""
        self.stable_status = (self.mode, self.uid, self.gid, dict(self.xattrs))

    def crash(self, dice: Dice, keep: float) -> None:
        """Lose what is not stable."""
        if self.is_folder:
            kept = len(self.changes) if keep >= 1 else dice.below(len(self.changes) + 1) if keep > 0 else 0
            for names in self.changes[:kept]:
                _renamed(self.stable_names, names)
            self.names = dict(self.stable_names)
            self.changes.clear()
        else:
            self.store.crash(dice, keep)
        if not dice.chance(keep):
            self.mode, self.uid, self.gid, self.xattrs = (*self.stable_status[:3], dict(self.stable_status[3]))
        self.sync_status()
        self.locks.clear()
        self.ranges.clear()
        self.links = self.opens = 0
        self.exclusive = None


def _renamed(folder: dict[str, Node], names: dict[str, Optional[Node]]) -> None:
    for name, node in names.items():
        if node is None:
            folder.pop(name, None)
        else:
            folder[name] = node


class Disk:
    """The file system.

    Args:
        clock: Returns microseconds.

    Attributes:
        root: Its top folder.
        room: Units that may still be allocated; None for enough.
    """

    def __init__(self, clock: Callable[[], int] = lambda: 0) -> None:
        self._number = 1
        self._free: list[int] = []
        self.clock = clock
        self.root = Node(1, stat.S_IFDIR | 0o755, 0, 0)
        self.room: Optional[int] = None

    def make(self, mode: int, uid: int = 0, gid: int = 0) -> Node:
        """Return a new node that has no name yet."""
        if self._free:
            number = self._free.pop()
        else:
            self._number += 1
            number = self._number
        node = Node(number, mode, uid, gid)
        # The kernel's clock goes on by 4 ms at a time.
        node.born = self.clock() // 4000 * 4_000_000
        return node

    def folder(self, path: str) -> Node:
        """Make a folder, and those above, all of it stable."""
        node = self.root
        for name in filter(None, path.split("/")):
            if name not in node.names:
                node.change({name: self.make(stat.S_IFDIR | 0o755)})
                node.sync()
            node = node.names[name]
        return node

    def put(self, path: str, data: bytes, *, mode: int = stat.S_IFREG | 0o644, uid: int = 0) -> Node:
        """Make a file with stable content."""
        folder, _, name = path.rpartition("/")
        node = self.make(mode, uid, uid)
        node.store.fill(data, holes=not stat.S_ISBLK(mode))
        where = self.folder(folder)
        where.change({name: node})
        where.sync()
        node.sync_status()
        return node

    def find(self, path: str) -> Optional[Node]:
        """Return what a path names, None if there is nothing."""
        try:
            return self.look_up(path)[2]
        except OSError:
            return None

    def find_link(self, path: str) -> Optional[Node]:
        """Return the symbolic link that a path names, None if it names none."""
        try:
            node = self.look_up(path, follow=False)[2]
        except OSError:
            return None
        return node if node is not None and stat.S_ISLNK(node.mode) else None

    def look_up(self, path: str, *, follow: bool = True, depth: int = 0) -> tuple[Node, str, Optional[Node]]:
        """Return the folder that a path leads to, the name there, and what it names.

        Raises:
            OSError: A folder on the way is missing, or is none.
        """
        if depth > 8:
            raise failure(errno.ELOOP, path)
        parts = [part for part in path.split("/") if part and part != "."]
        node = self.root
        for i, name in enumerate(parts):
            if not node.is_folder:
                raise failure(errno.ENOTDIR, path)
            found = node.names.get(name)
            last = i == len(parts) - 1
            if found is not None and stat.S_ISLNK(found.mode) and (follow or not last):
                above = "/" + "/".join(parts[:i])
                rest = "/".join([os.path.join(above, found.target), *parts[i + 1 :]])
                return self.look_up(os.path.normpath(rest), follow=follow, depth=depth + 1)
            if last:
                return node, name, found
            if found is None:
                raise failure(errno.ENOENT, path)
            node = found
        return node, "", node

    def nodes(self) -> Iterator[tuple[str, Node]]:
        """Return all nodes that have a name, with one of them; folders come before what they hold."""
        waiting = [("", self.root)]
        seen = set()
        while waiting:
            path, node = waiting.pop(0)
            if node.number in seen:
                continue
            seen.add(node.number)
            yield path or "/", node
            waiting += [(f"{path}/{name}", node.names[name]) for name in sorted(node.names)]

    def crash(self, dice: Dice, keep: float) -> None:
        """Lose power: what was not synced is gone but for what the dice keep."""
        waiting = [self.root]
        seen: set[int] = set()
        while waiting:
            node = waiting.pop(0)
            if node.number in seen:
                continue
            seen.add(node.number)
            node.crash(dice, keep)
            waiting += [node.names[name] for name in sorted(node.names)]
        for _, node in list(self.nodes()):
            for below in node.names.values():
                below.links += 1

    def let_go(self, node: Node) -> None:
        """Let the number of a file that has neither name nor user be that of another."""
        if not node.links and not node.opens and node.number not in self._free:
            self._free.append(node.number)
            if self.room is not None:
                self.room += sum(node.store.now.allocated)

    def take_room(self, node: Node, offset: int, length: int) -> int:
        """Return how many bytes of a write there is room for, and take the units."""
        if self.room is None or node.is_device:
            return length
        allocated = node.store.now.allocated
        position, end = offset, offset + length
        while position < end:
            unit = position // UNIT
            if unit >= len(allocated) or not allocated[unit]:
                if not self.room:
                    break
                self.room -= 1
            position = min(end, (unit + 1) * UNIT)
        return position - offset


def failure(code: int, path: Optional[str] = None) -> OSError:
    """Return the error of a system call."""
    return OSError(code, os.strerror(code), path) if path is not None else OSError(code, os.strerror(code))
