# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of a transfer that is on stable storage, kept in a file, so that the next run continues.

The file grows by a line whenever something is on stable storage, see `records`. It also gets
a line before the first byte of the other end is written. A run that ended before it had
flushed anything has written as well, and its bytes may be there still.

The file is locked while it is used, and removed when the transfer is complete. It names no
ticket: the next run comes with a new one, and both ends are compared before it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
from types import TracebackType
from typing import Any, Iterable
from urllib.parse import quote

from ovirt_imageio.client import folders, records
from ovirt_imageio.client.records import Identity, merged
from ovirt_imageio.common import linux
from ovirt_imageio.common.errors import Naming, TransferError

_HEAD_SIZE = 12
"""Bytes that are looked at before the rest of a file is read: it may be a disk."""


class CannotResume(TransferError):
    """A transfer cannot continue where it stopped. The text has the reason."""


class Journal:
    """The journal of one transfer, open and locked.

    Args:
        path: Of the file; it is made if there is none.
        what: Description of the transfer: keys and plain values. The journal of a transfer
            that differs is refused.

    Attributes:
        path: As given.
        done: Offset and length of each range that earlier runs did, merged, in order.
        begun: An earlier run may have written to the other end, also where nothing is done.
        is_distrusted: Nothing that is written down as done may be relied on.
        part: The file that earlier runs have built a download in, if there is one.

    Raises:
        CannotResume: The journal is of another transfer, in use, damaged, or no journal.
            The file is left as it is.
        OSError: The file cannot be written.
    """

    def __init__(self, path: str, what: dict[str, Any]) -> None:
        self.path = path
        self.done: list[tuple[int, int]] = []
        self.begun = False
        self.part: Identity | None = None
        self._what = what
        self.is_distrusted = False
        self._plan: str | None = None
        self._writing = threading.Lock()
        self._torn = False
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            with Naming(path):
                self._lock()
                self._load()
        except BaseException:
            os.close(self._fd)
            raise

    def begin(self, plan: str | None = None) -> None:
        """Write down that bytes of the other end are written from now on.

        Args:
            plan: Digest of the whole plan, where that has to be the same in all runs.

        Raises:
            CannotResume: Earlier runs had another plan, or nothing is known of theirs.
            OSError: The file cannot be written.
        """
        if self.begun:
            if plan is not None and self._plan is None:
                raise CannotResume(
                    f"the end of {self.path} was lost in a crash, and with it which ranges were left alone: "
                    "what was written of others would stay"
                )
            if plan != self._plan:
                raise CannotResume(
                    f"the source changed since {self.path} was begun: its extents are others now, "
                    "and what was written of the old ones would stay"
                )
            return
        self._append({"begun": True} if plan is None else {"begun": True, "plan": plan})
        self.begun, self._plan = True, plan

    def record(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Write down ranges that are on stable storage. Any thread may call it.

        Raises:
            OSError: The file cannot be written.
        """
        self._append({"done": merged(ranges)})

    def keep(self, part: Identity) -> None:
        """Write down which file the image is built in.

        Raises:
            OSError: The file cannot be written.
        """
        self._append({"part": list(part)})
        self.part = part

    @property
    def owner(self) -> int:
        """The user that the journal belongs to."""
        return os.fstat(self._fd).st_uid

    def distrust(self) -> None:
        """Let no later run rely on what was done: storage failed, and may have lost any of it.

        Where that cannot be written down, the file is removed.
        """
        self.done = []
        self.is_distrusted = True
        try:
            self._append({"lost": True})
        except OSError:
            self.remove()

    @property
    def is_sealed(self) -> bool:
        """There is a digest of the plan."""
        return self._plan is not None

    def restart(self) -> None:
        """Forget what was done: the transfer begins anew."""
        self.done, self.begun, self._plan, self.part = [], False, None, None
        os.ftruncate(self._fd, 0)
        self._append(records.header(self._what))

    def remove(self) -> None:
        """Remove the file, unless its name is another's: the transfer is complete, or what it made is gone."""
        with contextlib.suppress(FileNotFoundError):
            if linux.is_named(self._fd, self.path):
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
                f"{self.path} is in use: another transfer of this image is running; pass journal=PATH for another one"
            ) from None
        if not linux.is_named(self._fd, self.path):
            raise CannotResume(f"{self.path} was removed by a transfer that ended just now: try again")

    def _load(self) -> None:
        try:
            found = records.parse(self._read(), self._what)
        except records.Damaged as e:
            raise CannotResume(f"cannot resume by {self.path}: {e}; remove it to begin anew") from e
        self.done, self.begun, self._plan, self.part = found.done, found.begun, found.plan, found.part
        if found.length:
            os.ftruncate(self._fd, found.length)
            if found.spoilt:
                self._append({"begun": True})
            else:
                # The run that wrote the last line may have been killed before it was stable.
                os.fdatasync(self._fd)
        else:
            self.restart()
        # The entry must survive a crash as well, and so must that of the image beside it.
        sync_folder(self.path)

    def _read(self) -> bytes:
        """Return the file, which may be anything: only if it begins as a journal does."""
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise records.Damaged("it is no file")
        with open(self._fd, "rb", closefd=False) as f:
            head = f.read(_HEAD_SIZE)
            if not records.looks_like_a_journal(head):
                raise records.Damaged("it is no journal of a transfer")
            if b"\0" in head:
                # The rest of a first line after a crash, or something large that begins with zeroes.
                return head + f.read(len(records.as_line(records.header(self._what))))
            return head + f.read()

    def _append(self, record: dict[str, Any]) -> None:
        data = records.as_line(record)
        with self._writing:
            if self._torn:
                raise OSError(errno.EIO, "an earlier record was cut off", self.path)
            self._torn = True
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            os.fdatasync(self._fd)
            self._torn = False


def place(filename: str, direction: str, *, member: str | None = None) -> str:
    """Choose where the journal of a transfer is kept.

    Beside the image; of a device, and of an image in a folder that is not ours to write
    to, below $XDG_STATE_HOME, which is made.

    Args:
        filename: The image on this machine.
        direction: `upload` or `download`.
        member: Name of the image inside a tar file.

    Raises:
        CannotResume: The user has no folder for it.
        OSError: The folder cannot be made.
    """
    path = os.path.realpath(filename)
    name = os.path.basename(path) + (f".{quote(member, safe='')}" if member else "")
    name = f"{name}.{direction}.journal"
    folder = os.path.dirname(path)
    if not _is_special(path) and os.access(folder, os.W_OK | os.X_OK):
        return os.path.join(folder, name)
    state = folders.state()
    if state is None:
        raise CannotResume(
            f"cannot keep a journal of {filename}: this user has no home folder; "
            "set HOME or XDG_STATE_HOME, or pass journal=PATH"
        )
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
