# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Downloads of a part: what changed since a checkpoint, or the top image of a chain."""

from __future__ import annotations

from typing import Optional

from .. import images, qcow2
from ..server import Image
from ..store import UNIT
from ..world import Run, World, kind
from .downloads import FOLDER, TARGET, Download
from .uploads import runs_of_units

_FULL = f"{FOLDER}/full"


class Backup(Download):
    """An incremental backup, on a full one or to be put on it later.

    Attributes:
        base: Image behind the new one: the full backup; a `wrong` one; `none` until later. Or it is
            the image that is replaced, `itself` or `below` something else.
    """

    def __init__(self, world: World) -> None:
        dice = world.dice
        self._granularity = dice.pick((UNIT // 4, UNIT // 2, UNIT, UNIT, 4 * UNIT, 16 * UNIT))
        self._checkpoint: Optional[bytes] = None
        super().__init__(world)
        self.base = dice.weighted((5, "full"), (1, "wrong"), (3, "none"), (1, "itself"), (1, "below"))
        if self.base in ("itself", "below") and self.target != "file":
            self.base = "full"
        self._make_base()
        self.options["incremental"] = True
        self._before = self.world.listing(FOLDER)

    def choose_format(self) -> str:
        """See Download."""
        return "qcow2"

    def change_image(self) -> None:
        """Let the machine write on since the checkpoint."""
        if self._checkpoint is None:
            self.serve("2.x" if self.dice.chance(0.3) else "new")
            self._checkpoint = images.make(self.dice, "full", self.size)
        self._version += 1
        now = self._checkpoint if self._version == 1 else self.image.store.read(0, self.size)
        grain = min(self._granularity, UNIT)
        self.image = Image(images.changed(self.dice, now, f"v{self._version}", grain=grain))
        self.image.granularity = self._granularity
        self.image.mark_dirty(self._checkpoint)

    def _make_base(self) -> None:
        disk, dice = self.world.disk, self.dice
        assert self._checkpoint is not None
        if self.base == "none":
            return
        content = self._checkpoint
        if self.base == "wrong":
            content = images.changed(dice, content, "wrong") if dice.chance(0.5) else b""
        fmt = dice.pick(("raw", "qcow2"))
        if self.base == "below":
            fmt = "qcow2"
        name = {"itself": "image"}.get(self.base, "full")
        if self.base in ("itself", "below"):
            # The old image is the full backup, or what that is on.
            node = disk.find(TARGET)
            assert node is not None
            node.store.fill(self._checkpoint)
            self._olds = [self._checkpoint]
        if self.base != "itself":
            node = disk.put(_FULL, content if fmt == "raw" else b"")
            if fmt == "qcow2":
                below = "image" if self.base == "below" else None
                qcow2.write_header(disk, node, self.size, backing=below, backing_format="raw" if below else None)
                layer = qcow2.Qcow2(disk, node)
                if self.base != "below":
                    layer.write(0, content)
                layer.write_table(lambda writer: True)
                node.store.flush(node.store.mark())
        self.options["backing_file"] = name
        if name == "image" or dice.chance(0.5):
            self.options["backing_format"] = "raw" if name == "image" else fmt

    def is_promised(self, run: Run) -> bool:
        """See Download."""
        return super().is_promised(run) and (self.base != "wrong" or bool(run.options["verify"]))

    def read(self, path: str, *, stable: bool = False) -> Optional[bytes]:
        """See Download; what was backed by nothing is put on the full backup first."""
        node = self.world.file(path, stable=stable)
        if self.base != "none" or node is None:
            return super().read(path, stable=stable)
        assert self._checkpoint is not None
        layer = qcow2.Qcow2(self.world.disk, node)
        layer.backing = _Behind(Image(self._checkpoint))
        return layer.read(0, self.size)

    def after_success(self, run: Run) -> None:
        """See Download."""
        if self.base in ("itself", "below"):
            self.world.complain(f"{run}: the image is its own backing file")
            return
        super().after_success(run)

    def keeps_name(self, run: object) -> None:
        """See Download."""
        if self.base != "wrong":
            super().keeps_name(run)

    def is_complete(self, path: str) -> bool:
        """See Download; on a wrong backing file a whole image shows something else."""
        return super().is_complete(path) or (self.base == "wrong" and path.endswith(".part"))

    def may_fail(self, run: Run) -> bool:
        """See Story."""
        if self.base in ("itself", "below") and kind(run.error) == "ValueError":
            return True
        if self.base == "wrong" and kind(run.error) in ("VerificationFailed", "CannotResume", "ValueError"):
            return True
        return super().may_fail(run)

    def heed(self, run: Run) -> None:
        """See Story."""
        super().heed(run)
        if self.base in ("itself", "below", "wrong"):
            # Another backing file, and another name.
            self.base = "none"
            self.options.pop("backing_file")
            self.options.pop("backing_format", None)


class _Behind(qcow2.Layer):
    """The full backup, behind an image that was made without it."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.size = image.size
        self.backing = None
        self.cluster = UNIT

    def read(self, offset: int, length: int) -> bytes:
        """See Layer."""
        return self._image.store.read(offset, length).ljust(length, b"\0")


class Snapshot(Download):
    """The top image of a chain, on a copy of what is below it."""

    _below: Optional[bytes] = None

    def __init__(self, world: World) -> None:
        super().__init__(world)
        fmt = self.dice.pick(("raw", "qcow2"))
        assert self._below is not None
        disk = world.disk
        node = disk.put(_FULL, self._below if fmt == "raw" else b"")
        if fmt == "qcow2":
            qcow2.write_header(disk, node, self.size)
            layer = qcow2.Qcow2(disk, node)
            layer.write(0, self._below)
            layer.write_table(lambda writer: True)
            node.store.flush(node.store.mark())
        self.options.update(backing_file="full", backing_format=fmt if self.dice.chance(0.5) else None, shallow=True)
        self._before = self.world.listing(FOLDER)

    def choose_format(self) -> str:
        """See Download."""
        return "qcow2"

    def change_image(self) -> None:
        """See Download."""
        dice = self.dice
        if self._below is None:
            self.serve("2.x" if dice.chance(0.3) else "new")
            self._below = images.make(dice, "below", self.size)
        self._version += 1
        self._held = runs_of_units(self, 0.5)
        top = bytearray(images.make(dice, f"v{self._version}", self.size))
        for number, held in enumerate(self._held):
            if not held:
                top[number * UNIT : (number + 1) * UNIT] = bytes(min(UNIT, self.size - number * UNIT))
        self.image = Image(bytes(top))
        self.image.holes = {number for number, held in enumerate(self._held) if not held}

    def expected(self, run: Optional[Run] = None) -> bytes:
        """See Download."""
        assert self._below is not None
        data = bytearray(self.image.store.read(0, self.size))
        for number in self.image.holes:
            at = number * UNIT
            data[at : at + UNIT] = self._below[at : at + UNIT]
        return bytes(data)
