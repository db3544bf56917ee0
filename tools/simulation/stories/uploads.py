# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Uploads. Success means: the disk holds the source where the source has something, on stable storage."""

from __future__ import annotations

from .. import images, qcow2
from ..server import Image
from ..store import UNIT
from ..world import Run, World, beside
from .base import Story, size, whole

_SOURCE = "/disks/source"
_JOURNAL = beside(_SOURCE, ".upload.journal")


class Upload(Story):
    """An image of this machine goes to a disk behind the server."""

    call = "upload"
    moving = ("PUT", "PATCH", "body", "body")

    def __init__(self, world: World) -> None:
        super().__init__(world)
        dice = self.dice
        self._version = 0
        self._fmt = dice.pick(("raw", "qcow2"))
        self.size = size(dice) if self._fmt == "raw" else whole(size(dice))
        self.serve(dice.weighted((5, "new"), (2, "2.x"), (1, "plain"), (1, "old")))
        self._is_zero = dice.chance(0.5)
        whole_disk = self.size + dice.pick((0, 0, 0, UNIT, 10 * UNIT))
        self._disk = Image(bytes(whole_disk) if self._is_zero else images.make(dice, "old", whole_disk))
        self._chain = self._fmt == "raw" or dice.chance(0.3)
        self._change_source()
        self._remember()
        self.options = {
            "filename": _SOURCE,
            "url": self.new_ticket(self._disk),
            "cafile": None,
            "max_workers": dice.pick((1, 2, 4)),
            "verify": dice.chance(0.5),
            "resume": dice.chance(0.6),
            "backing_chain": self._chain,
        }
        # Said of a disk that an earlier run has written to it is a lie, but where that run is continued.
        self.options["disk_is_zero"] = self._is_zero and bool(self.options["resume"]) and dice.chance(0.8)

    def _change_source(self) -> None:
        self._version += 1
        if self._fmt == "raw":
            self._make_raw()
        else:
            self._make_qcow2()

    def _make_raw(self) -> None:
        self._data = images.make(self.dice, f"v{self._version}", self.size)
        self._held = bytes([1]) * -(-self.size // UNIT)
        node = self.world.disk.put(_SOURCE, self._data)
        if self.dice.chance(0.3):
            allocated = node.store.now.allocated
            allocated[:] = b"\1" * len(allocated)  # zeroes, too

    def _make_qcow2(self) -> None:
        """Write an image that holds some of the disk, and a raw one that is behind it."""
        disk, dice = self.world.disk, self.dice
        short = UNIT * dice.below(3) if self.size > 9 * UNIT else 0
        disk.put("/disks/base", images.make(dice, f"base{self._version}", self.size - short))
        node = disk.put(_SOURCE, b"")
        qcow2.write_header(disk, node, self.size, backing="base", backing_format="raw")
        layer = qcow2.chain(disk, _SOURCE, "qcow2")
        assert isinstance(layer, qcow2.Qcow2)
        self._held = runs_of_units(self, 0.6)
        top = images.make(dice, f"v{self._version}", self.size)
        fill(layer, top, self._held)
        node.store.flush(node.store.mark())
        self._data = layer.read(0, self.size)

    def before(self, number: int) -> None:
        """See Story."""
        dice = self.dice
        if number > 0 and dice.chance(self.restless):
            self._change_source()
            self.excuses.add("source changed")
            self.world.tell("the source changed")
        if number and dice.chance(0.6):
            self.options["url"] = self.new_ticket(self._disk)
        self.world.server.room = dice.about(5, 1000) if number >= 0 and dice.chance(0.05) else None
        if self.world.disk.find(_JOURNAL) is None:
            self._remember()

    def _remember(self) -> None:
        """Take note of what the disk holds; what no flush covers may be lost later."""
        store = self._disk.store
        self._first, self._stable = store.read(0, store.size), bytes(store.stable.data)

    def _expected(self, found: bytes) -> bytes:
        """Return what the disk holds after success.

        Args:
            found: Its real content, which counts where two contents are right.
        """
        result = bytearray(self._first)
        if self._chain:
            result[: self.size] = self._data
            return bytes(result)
        for number, held in enumerate(self._held):
            unit = slice(number * UNIT, (number + 1) * UNIT)
            if held:
                result[unit] = self._data[unit]
            elif found[unit] == self._stable[unit]:
                result[unit] = self._stable[unit]
        return bytes(result)

    def may_fail(self, run: Run) -> bool:
        """See Story; a power loss may take the line of the journal that says what is left alone."""
        lost = self.world.kernel.counts["power loss"] and "lost in a crash" in str(run.error)
        return bool(lost) or super().may_fail(run)

    def heed(self, run: Run) -> None:
        """See Story."""
        super().heed(run)
        self.options["disk_is_zero"] = False  # by now that would be a lie
        self._remember()

    def after_success(self, run: Run) -> None:
        """See Story."""
        if self.damaged and not run.options["verify"]:
            return
        store = self._disk.store
        for what, found in (("disk", store.read(0, store.size)), ("disk after a crash", bytes(store.stable.data))):
            self.must_equal(f"{run}, {what}", self._expected(found), found)
        if self.world.disk.find(_JOURNAL) is not None:
            self.world.complain(f"{run}: the journal is still there")

    def at_rest(self) -> None:
        """See Story."""
        self.must_equal("past the image", self._first[self.size :], self._disk.store.read(self.size, 1 << 30))


def runs_of_units(story: Story, share: float) -> bytes:
    """Choose units of an image: one byte each, 1 for those that are chosen."""
    dice = story.dice
    units = -(-story.size // UNIT)
    chosen = bytearray()
    while len(chosen) < units:
        chosen += bytes([dice.chance(share)]) * dice.about(1, 100)
    return bytes(chosen[:units])


def fill(layer: qcow2.Qcow2, data: bytes, held: bytes) -> None:
    """Let an image hold some units of data; those that are zeroes hide what is behind them."""
    for number, is_held in enumerate(held):
        unit = data[number * UNIT : (number + 1) * UNIT]
        if is_held and unit.strip(b"\0"):
            layer.write(number * UNIT, unit)
        elif is_held:
            layer.zero(number * UNIT, len(unit))
    layer.write_table(lambda writer: True)
