# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a transfer is on stable storage, kept in a file, so that the next run continues.

The file begins with a line that says which transfer it is, and grows by a line each time
a worker has flushed:

    {"journal": 1, "direction": "upload", "size": 6442450944, …}
    {"done": [[0, 8388608], [16777216, 8388608]]}
    {"done": [[8388608, 8388608]]}

A line counts when it is whole: the last one may be cut off by a crash. The file is
locked while it is used, and removed when the transfer is complete. It names no ticket:
the next run comes with a new one, and both ends are compared before it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import threading
from types import TracebackType
from typing import Any, Iterable
from urllib.parse import quote

from ovirt_imageio.common.errors import TransferError

VERSION = 1


class CannotResume(TransferError):
    """A transfer cannot continue where it stopped. The text has the reason."""


class Journal:
    """The journal of one transfer, open and locked.

    Args:
        path: Of the file; it is made if there is none.
        what: What the transfer is: keys and plain values. One of a transfer that differs
            is refused.

    Attributes:
        path: As given.
        done: Offset and length of each range that earlier runs did, merged, in order.

    Raises:
        CannotResume: The journal is of another transfer, in use, or no journal.
        OSError: The file cannot be written.
    """

    def __init__(self, path: str, what: dict[str, Any]) -> None:
        self.path = path
        self.done: list[tuple[int, int]] = []
        self._what = {"journal": VERSION, **what}
        self._plan: str | None = None
        self._writing = threading.Lock()
        self._torn = False
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._fd)
            raise

    def record(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Write down ranges that are on stable storage. Any thread may call it.

        Raises:
            OSError: The file cannot be written.
        """
        self._append({"done": merged(ranges)})

    def seal(self, plan: str) -> None:
        """Write down a digest of the whole plan, or hold it to the one that is there.

        Raises:
            CannotResume: It is another plan.
        """
        if self._plan is None:
            self._plan = plan
            self._append({"plan": plan})
        elif plan != self._plan:
            raise CannotResume(f"the source changed since {self.path} was begun: its extents are others now")

    @property
    def is_sealed(self) -> bool:
        """There is a digest of the plan."""
        return self._plan is not None

    def restart(self) -> None:
        """Forget what was done: the transfer begins anew."""
        self.done, self._plan = [], None
        os.ftruncate(self._fd, 0)
        self._append(self._what)

    def remove(self) -> None:
        """Remove the file: the transfer is complete, or what it made is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self) -> None:
        """Let others have the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotResume(
                f"{self.path} is in use: another transfer of this image is running; give it another journal"
            ) from None
        try:
            removed = os.stat(self.path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            removed = True
        if removed:
            raise CannotResume(f"{self.path} was removed by a transfer that ended just now: try again")

    def _load(self) -> None:
        with open(self.path, "rb") as f:
            lines = f.read().split(b"\n")
        cut_off = lines.pop()
        if not lines:
            if cut_off and not cut_off.startswith(b'{"journal"'):
                raise CannotResume(f"{self.path} is no journal of a transfer: remove it")
            self._begin()
            return
        if cut_off:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - len(cut_off))
        records = [self._parse(line) for line in lines]
        self._check(records[0])
        done: list[tuple[int, int]] = []
        for record in records[1:]:
            self._plan = record.get("plan", self._plan)
            done += [(int(offset), int(length)) for offset, length in record.get("done", ())]
        self.done = merged(done)

    def _begin(self) -> None:
        self.restart()
        # The entry must survive a crash as well, and so must that of the image beside it.
        sync_folder(self.path)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise CannotResume(f"{self.path} is no journal of a transfer: {line[:40]!r}; remove it to begin anew")
        return record

    def _check(self, header: dict[str, Any]) -> None:
        if header.get("journal") != VERSION:
            raise CannotResume(f"{self.path} is of version {header.get('journal')!r}: remove it to begin anew")
        for key, value in self._what.items():
            if header.get(key) != value:
                raise CannotResume(
                    f"{self.path} is of a transfer with {key} {header.get(key)!r}, not {value!r}: "
                    "remove it to begin anew"
                )

    def _append(self, record: dict[str, Any]) -> None:
        data = json.dumps(record).encode() + b"\n"
        with self._writing:
            if self._torn:
                raise OSError(errno.EIO, "an earlier record was cut off", self.path)
            self._torn = True
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            os.fdatasync(self._fd)
            self._torn = False


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort ranges and join those that touch or overlap."""
    result: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if result and offset <= sum(result[-1]):
            start, before = result[-1]
            result[-1] = start, max(before, offset + length - start)
        else:
            result.append((offset, length))
    return result


def place(filename: str, direction: str, *, member: str | None = None) -> str:
    """Choose where the journal of a transfer is kept.

    Beside the image; of a device, and of an image in a folder that is not ours to write
    to, below $XDG_STATE_HOME.

    Args:
        filename: The image on this machine.
        direction: `upload` or `download`.
        member: Name of the image inside a tar file.
    """
    path = os.path.realpath(filename)
    name = os.path.basename(path) + (f".{quote(member, safe='')}" if member else "")
    name = f"{name}.{direction}.journal"
    folder = os.path.dirname(path)
    if not _is_special(path) and os.access(folder, os.W_OK | os.X_OK):
        return os.path.join(folder, name)
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    folder = os.path.join(state, "ovirt-imageio")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return os.path.join(folder, f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}-{name}")


def sync_folder(path: str) -> None:
    """Bring the entry of a file to stable storage, see fsync(2)."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
