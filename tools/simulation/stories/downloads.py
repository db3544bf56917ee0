# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Downloads. The name that the user gave holds the old content whole or the new content whole, always."""

from __future__ import annotations

import os
import stat
from typing import Optional

from .. import images
from ..disk import Node
from ..fates import Event
from ..server import Image
from ..standins.qemu import QemuNbdError, hold
from ..standins.system import OpenFile
from ..store import UNIT
from ..world import Run, World, kind
from .base import Story, size, whole

FOLDER = "/disks"
TARGET = "/disks/image"
_FOREIGN = b"what the user keeps in a file of this name"


class Download(Story):
    """A disk behind the server goes to an image of this machine.

    Attributes:
        target: Thing at the name: nothing, a file, a device, a file that cannot be replaced.
    """

    call = "download"
    moving = ("GET", "receive", "pwrite", "nbd write")

    def __init__(self, world: World) -> None:
        super().__init__(world)
        dice = self.dice
        self._version = 0
        self.fmt = self.choose_format()
        self.size = size(dice) if self.fmt == "raw" else whole(size(dice))
        self.serve(dice.weighted((5, "new"), (2, "2.x"), (1, "plain"), (1, "old")))
        self.change_image()
        raw_kinds = ((4, "new"), (5, "file"), (1, "device"), (1, "closed"))
        self.target = dice.weighted(*(raw_kinds if self.fmt == "raw" else raw_kinds[:2]))
        self._foreign: dict[str, Node] = {}
        self._olds: list[Optional[bytes]] = [None]
        self._qemu: Optional[OpenFile] = None
        self._make_target()
        self._before = self.world.listing(FOLDER)
        self.options = {
            "url": self.new_ticket(self.image),
            "filename": TARGET,
            "cafile": None,
            "fmt": self.fmt,
            "max_workers": dice.pick((1, 2, 4)),
            "verify": dice.chance(0.5),
            "resume": dice.chance(0.6),
        }

    def choose_format(self) -> str:
        """Return the format of the new image."""
        return self.dice.pick(("raw", "qcow2"))

    @property
    def in_place(self) -> bool:
        """The target is written where it is."""
        return self.target in ("device", "closed")

    def change_image(self) -> None:
        """Let the server's disk hold something else."""
        self._version += 1
        self.image = Image(images.make(self.dice, f"v{self._version}", self.size))

    def _make_target(self) -> None:
        disk, dice = self.world.disk, self.dice
        disk.folder(FOLDER)
        for name in ("image.part", "image.1.part"):
            if dice.chance(0.1) and self.target != "closed":
                self._foreign[name] = disk.put(f"{FOLDER}/{name}", _FOREIGN)
        if self.target == "new":
            return
        old = images.make(dice, "old", size(dice))
        mode = stat.S_IFREG | 0o640
        if self.target == "device":
            mode = stat.S_IFBLK | 0o660
            old = images.make(dice, "old", self.size + UNIT * dice.below(3))
        node = disk.put(TARGET, old, mode=mode)
        node.xattrs = {"user.label": b"the user's"}
        node.sync_status()
        self._olds = [old]
        if self.target == "closed":
            folder = disk.folder(FOLDER)
            folder.writable_by_others, folder.uid = False, 99
        elif dice.chance(0.1):
            disk.folder(FOLDER).change({"other-name": node})
            disk.folder(FOLDER).sync()

    def before(self, number: int) -> None:
        """See Story."""
        dice = self.dice
        if number > 0 and dice.chance(self.restless):
            self.change_image()
            self.options["url"] = self.new_ticket(self.image)
            self.excuses.add("image changed")
            self.world.tell("the image changed")
        if number and dice.chance(0.6):
            self.options["url"] = self.new_ticket(self.image)
        self._stop_qemu()
        if number >= 0 and dice.chance(0.08):
            self._start_qemu()
        self._before = self.world.listing(FOLDER)

    def events(self, ending: str) -> list[Event]:
        """See Story."""
        events = super().events(ending)
        if self.dice.chance(0.04):
            events.append(self.at(self._start_qemu))
        return events

    # A virtual machine that has the old image open.

    def _start_qemu(self) -> bool:
        node = self.world.disk.find(TARGET)
        if node is not None and self._qemu is None:
            file = OpenFile(node, os.O_RDWR, TARGET)
            try:
                hold(file, write=self.dice.chance(0.7))
            except QemuNbdError:
                file.close()
            else:
                self._qemu = file
                self.world.tell("a qemu opens the image")
        return False

    def _stop_qemu(self) -> None:
        if self._qemu is not None:
            self._qemu.close()
            self._qemu = None

    def may_fail(self, run: Run) -> bool:
        """See Story."""
        return (self._qemu is not None and kind(run.error) == "ImageInUse") or super().may_fail(run)

    def heed(self, run: Run) -> None:
        """See Story."""
        super().heed(run)
        folder = self.world.disk.folder(FOLDER)
        for name in [name for name in folder.names if name.endswith(".part") and name not in self._foreign]:
            folder.change({name: None})
        folder.sync()

    # Promises.

    def expected(self, run: Optional[Run] = None) -> bytes:
        """Return what a reader of the image sees after success."""
        return self.image.store.read(0, self.size)

    def found(self, *, stable: bool = False) -> Optional[bytes]:
        """Return what a reader of the target sees."""
        try:
            return self.read(TARGET, stable=stable)
        except ValueError as e:
            self.world.complain(f"the target cannot be read: {e}")
            return None

    def read(self, path: str, *, stable: bool = False) -> Optional[bytes]:
        """Return what a reader of an image sees; None if there is none.

        Raises:
            ValueError: It is no such image.
        """
        data = self.world.content(path, self.fmt, self.size, stable=stable)
        return data[: self.size] if data is not None and self.target == "device" else data

    def file(self, *, stable: bool = False) -> Optional[bytes]:
        """Return the bytes of the file that has the name."""
        node = self.world.file(TARGET, stable=stable)
        return None if node is None else node.store.read(0, node.store.size)

    def is_promised(self, run: Run) -> bool:
        """Tell if success promises the content."""
        return not self.damaged or bool(run.options["verify"])

    def after_success(self, run: Run) -> None:
        """See Story."""
        before, self._olds = self._olds, [self.file()]
        if self.is_promised(run):
            self.must_equal(f"{run}, target", self.expected(run), self.found())
            self.must_equal(f"{run}, target after a power loss", self.expected(run), self.found(stable=True))
        if self.target == "device" and before[0] is not None:
            self.must_equal(f"{run}, past the image", before[0][self.size :], (self.file() or b"")[self.size :])
        self._keeps_label(run)
        self._leaves_qemu(run)
        self.tidy(run)

    def after_failure(self, run: Run) -> None:
        """See Story."""
        self.keeps_name(run)
        self._leaves_qemu(run)
        if not run.options["resume"] and not isinstance(run.error, KeyboardInterrupt):
            self.tidy(run)

    def at_rest(self) -> None:
        """See Story."""
        self.keeps_name("at rest")
        # A name that was given and not synced may be lost again.
        self._olds = [self.file(), self.file(stable=True)]
        for name, node in self._foreign.items():
            if self.world.disk.find(f"{FOLDER}/{name}") is not node or node.store.read(0, 100) != _FOREIGN:
                self.world.complain(f"the user's file {name} is not what it was")

    def keeps_name(self, run: object) -> None:
        """Check that the name holds the old content whole or the new content whole."""
        if self.in_place:
            return
        for stable in (False, True):
            found = self.file(stable=stable)
            if found in self._olds:
                continue
            state = "after a power loss" if stable else "now"
            if found is None:
                self.world.complain(f"{run}: the target is gone {state}")
            elif not self.damaged:
                what = f"{run}, target {state}, which is not the old one"
                self.must_equal(what, self.expected(), self.found(stable=stable))

    def tidy(self, run: Run) -> None:
        """Check that a run leaves nothing in the folder that was not there before."""
        left = self.world.listing(FOLDER) - self._before - {"image"}
        if run.error is not None:
            # The next run takes the lock that another one could not read.
            left -= {".image.imageio"} if self.world.kernel.disk_faults.failed else set()
            left = {name for name in left if not self.is_complete(f"{FOLDER}/{name}")}
        if left:
            self.world.complain(f"{run} left {', '.join(sorted(left))}")

    def is_complete(self, path: str) -> bool:
        """Tell if a file is the whole image, which is kept if it cannot get its name.

        Bytes that were damaged on their way make it another one, if nothing was verified.
        """
        try:
            found, expected = self.read(path), self.expected()
        except ValueError:
            return False
        return found == expected or (self.damaged and found is not None and len(found) == len(expected))

    def _keeps_label(self, run: Run) -> None:
        node = self.world.disk.find(TARGET)
        if self.target not in ("file", "closed") or node is None:
            return
        if node.xattrs.get("user.label") != b"the user's" or stat.S_IMODE(node.mode) != 0o640:
            self.world.complain(f"{run}: the file lost its attributes: {node.mode:o} {node.xattrs}")

    def _leaves_qemu(self, run: Run) -> None:
        """Check that no virtual machine goes on with a file that has lost its name."""
        if self._qemu is not None and self.world.disk.find(TARGET) is not self._qemu.node:
            self.world.complain(f"{run}: the qemu that had the image open writes to a file without a name")
