# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How an image on this machine gets its name: whole, or not at all.

The image is built beside its final name, as NAME.part, and gets that name when all of
it is on stable storage. A file that has the name stays until then:

    claim NAME ─► make NAME.part ─► write ─► fsync ─► rename ─► fsync of the folder ─► success
        │                             └── a failure: the part goes, or is kept to be resumed
        └── another run has it, a qemu has the old image open: refused

A device is written in place, and so is a file whose name no other file can get. That is a
file in a folder where none can be made, and a file that is mounted by itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from types import TracebackType

from ovirt_imageio.client.claim import Claim
from ovirt_imageio.client.inuse import ImageInUse
from ovirt_imageio.client.journal import CannotResume, Journal, sync_folder
from ovirt_imageio.client.part import Part
from ovirt_imageio.client.standing import Standing
from ovirt_imageio.common import linux
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import TransferError

log = logging.getLogger(__name__)

_NEW = 0o666
_PRIVATE = 0o600
"""A part that will replace a file is not readable for more users than that."""


_NO_NEW_FILE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a folder where no file can be made."""

_PATIENCE = 5.0
"""Seconds that a complete image waits for a qemu-img that looks at the old one for a moment."""


class Staging:
    """The place where an image is built until it is complete. One run has it at a time.

    Args:
        filename: The final name, or a link to it.

    Attributes:
        filename: The final name.
        in_place: The final name is written to.
        kept: There is something to continue.
        is_done: The image has its final name.
        is_lost: Storage could not keep what was written: any of it may be gone.

    Raises:
        ImageInUse: Another download to this name is running, or a qemu has the image open.
            Nothing was touched.
        OSError: The folder is missing, or nothing may be written.
    """

    def __init__(self, filename: str) -> None:
        self.filename = _final_name(filename)
        self.in_place = self.kept = False
        self._old: Standing | None = None
        self._claim: Claim | None = None
        self._part: Part | None = None
        self.is_done = self.is_lost = self._stays = False
        try:
            self._enter()
        except BaseException:
            self.close()
            raise

    def _enter(self) -> None:
        # First of all: the run that has the name now may replace the file at any time.
        self._claim = self._make_claim()
        with contextlib.suppress(FileNotFoundError):
            self._old = Standing(self.filename)
        if self._old is None:
            return
        self.in_place = self._claim is None or self._old.is_fixed
        if not self.in_place:
            self._old.check_unwritten()
        elif not self._old.is_device:
            self._enter_in_place(self._old)

    def _make_claim(self) -> Claim | None:
        """Claim the name; None if no other file can be made beside what has it."""
        mode = _mode(self.filename)
        if mode is not None and not stat.S_ISREG(mode):
            return None
        try:
            return Claim(self.filename)
        except OSError as e:
            if mode is not None and e.errno in _NO_NEW_FILE:
                return None
            if e.errno in (errno.ENOENT, errno.ENOTDIR, *_NO_NEW_FILE):
                e.filename = self.filename  # not the name of our own file
            raise

    def _enter_in_place(self, old: Standing) -> None:
        if not old.lock():
            raise ImageInUse(f"another download to {self.filename} is running")
        if not old.is_empty:
            log.warning("%s cannot be replaced, only written to: until it is complete it is no image", self.filename)

    @property
    def path(self) -> str:
        """Where to write."""
        return self._part.path if self._part is not None else self.filename

    @property
    def fd(self) -> int | None:
        """The file to write to, open; None where there is none yet."""
        if self._part is not None:
            return self._part.fd
        return self._old.fd if self._old is not None else None

    def begin(self, *, journal: Journal | None = None, sealed: bool = False, raw: bool = False) -> None:
        """Make the file to write to, or take the one that a former attempt left.

        Args:
            journal: The part that a former attempt left is continued, if the journal knows of it;
                else the journal begins anew.
            sealed: Only if the journal knows the whole plan.
            raw: The image is raw: no qemu writes it, and none may open it meanwhile.

        Raises:
            ImageInUse: Another run writes to the part that the journal knows, or a qemu has
                opened the image.
            OSError: The file cannot be made.
        """
        self.kept = journal is not None and bool(journal.done) and (journal.is_sealed or not sealed)
        if self.in_place:
            if raw and self._old is not None:
                self._old.keep_out_qemu()
        else:
            self._part = self._take(journal)
        if not self.in_place and self._part is None:
            self.kept = False
            self._part = Part.make(self.filename, _NEW if self._old is None else _PRIVATE)
        try:
            self._write_down(journal)
        except BaseException:
            if not self.kept:
                self.discard()
            raise

    def _write_down(self, journal: Journal | None) -> None:
        """Let a later run know of the part: what no run knows of would stay for ever."""
        if journal is None:
            if self._claim is not None and self._part is not None:
                self._claim.note(self._part)
            return
        if not self.kept:
            journal.restart()
            if self._part is not None:
                journal.keep(self._part.identity)
        if not self.in_place:
            sync_folder(self.path)

    def _take(self, journal: Journal | None) -> Part | None:
        """The part that the journal knows of; what cannot be continued is removed."""
        if journal is None or journal.part is None or self._claim is None:
            return None
        if journal.owner != self._claim.owner:
            raise CannotResume(f"{journal.path} belongs to another user: give another journal")
        # A run that was killed at its end may have given the part its owner already.
        owners = {self._claim.owner, *([self._old.owner] if self._old is not None else [])}
        part = Part.find(os.path.dirname(self.filename), journal.part, owners=owners)
        if part is None or (self.kept and not part.is_empty):
            return part
        part.remove()
        part.close()
        return None

    def sync(self) -> None:
        """Bring what was made so far to stable storage, before a journal says what it holds.

        A failure is told once. The beginning of an image, such as qemu's header, is of no step
        that would be done again.

        Raises:
            OSError: Storage failed.
        """
        try:
            if self._part is not None:
                os.fsync(self._part.fd)
            elif self._old is not None:
                self._old.sync()
        except OSError:
            self.is_lost = True
            raise

    def commit(self, cancel: Cancel | None = None) -> None:
        """Give the file its final name, for good.

        Args:
            cancel: Ends the wait for a qemu that has the old image open.

        Raises:
            OperationCancelled: cancel said so; the new image is complete, and kept beside the old one.
            ImageInUse: A qemu has opened the old image since.
            TransferError: Another program has put a file where the image shall be.
            OSError: Storage failed.
        """
        if self._part is None:
            self.sync()
            return
        try:
            self._finish(self._part, cancel)
        except Exception:
            self._stays = not (self.is_done or self.is_lost)
            raise
        sync_folder(self.filename)

    def _finish(self, part: Part, cancel: Cancel | None) -> None:
        old = self._old
        if old is not None:
            old.keep_out_qemu(patience=_PATIENCE, cancel=cancel)
            old.give_attributes(part.fd)
        self.sync()
        part.check_name()
        if old is not None and old.still_has_its_name:
            self._tell_names(old)
            os.replace(part.path, self.filename)
        else:
            self._rename_new(part)
        self.is_done = True

    def _rename_new(self, part: Part) -> None:
        try:
            linux.rename_new(part.path, self.filename)
        except FileExistsError as e:
            raise TransferError(
                f"another program has made {self.filename} meanwhile: it is left alone, the new image is {part.path}"
            ) from e

    def _tell_names(self, old: Standing) -> None:
        others = old.names - 1
        if others:
            log.warning("%s had %d other names: they keep the old image", self.filename, others)

    @property
    def state(self) -> str:
        """The state that a failure leaves behind, in words."""
        if self.is_done:
            return "complete"
        if self._part is not None and self._stays:
            return f"not replaced; the complete image is {self._part.path}"
        return "left incomplete" if self.in_place else "not made"

    def discard(self) -> None:
        """Remove what was built. A file written in place stays as it is, and so does a complete one. Idempotent."""
        if self._part is not None and not self.is_done and not self._stays:
            self._part.remove()
            self._part.close()
            self._part = None

    @property
    def is_left(self) -> bool:
        """The image is there as far as it was built, and not complete."""
        return not self.is_done and (self.in_place or self._part is not None)

    def close(self) -> None:
        """Let others make the image. Idempotent."""
        if self._part is not None:
            self._part.close()
        if self._old is not None:
            self._old.let_go()
        if self._claim is not None:
            self._claim.release()

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _final_name(filename: str) -> str:
    """Follow links to the name that the image gets.

    Raises:
        IsADirectoryError: It ends like the name of a folder, which there need not be; as open(2).
        FileNotFoundError: It is empty. Or they lead to an open file that has none, as those in /proc/self/fd may.
    """
    if not os.path.basename(filename):
        number = errno.EISDIR if filename else errno.ENOENT
        raise OSError(number, os.strerror(number), filename)
    name = os.path.realpath(filename)
    if not os.path.lexists(name) and os.path.exists(filename):
        raise FileNotFoundError(errno.ENOENT, "it is an open file that no name leads to", filename)
    return name


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None
