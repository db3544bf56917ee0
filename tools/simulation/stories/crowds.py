# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Two downloads to one name at the same time, of two disks."""

from __future__ import annotations

from typing import Optional

from .. import images
from ..server import Image
from ..world import Run, World, kind
from .downloads import Download

_REFUSALS = ("ImageInUse", "CannotResume")


class Crowd(Download):
    """Another run wants the same name. It is refused before it touches anything."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._images: dict[str, Image] = {}
        self._same = self.dice.chance(0.3)

    def stormy(self) -> bool:
        """See Story: two runs at once, in two processes or in one."""
        world, dice = self.world, self.dice
        calm = dice.chance(0.5)
        if calm:
            self.still()
        else:
            self.raise_storm()
        ending = "" if calm else dice.weighted((3, ""), (3, "kill"), (2, "power"))
        other = Image(images.make(dice, "other", self.size))
        self._images = {
            self.options["url"]: self.image,
            self.new_ticket(other, beside=True): other,
        }
        runs = []
        process = world.process()
        for number, url in enumerate(self._images):
            options = {**self.options, "url": url}
            if number:
                options["resume"] = dice.chance(0.5)
                process = process if self._same else world.process()
            events = self.events(ending) if not number or ending == "power" else []
            delay = dice.pick((0.0, 0.001, 0.02, 0.2)) * dice.fraction() if number else 0.0
            runs.append(self.start(options, events=events, delay=delay, process=process))
        world.finish()
        self.settle(ending, *runs)
        if calm and not self._qemu and not any(run.succeeded for run in runs):
            refused = all(kind(run.error) in _REFUSALS for run in runs if run.error is not None)
            if not (refused and self.excuses):
                world.complain(f"{runs[0]}; {runs[1]}: neither succeeded")
        for run in runs:
            if calm and run.error is not None and kind(run.error) not in _REFUSALS:
                world.complain(f"{run}, though only another run wanted the same name")
        self._images.clear()
        # The journal alone knows which image was begun, and by which run.
        self.excuses.add("another image")
        return False

    def expected(self, run: Optional[Run] = None) -> bytes:
        """See Download: that of the run, or of the one that has succeeded meanwhile."""
        candidates = [image.store.read(0, self.size) for image in self._images.values()]
        if run is not None and run.options["url"] in self._images:
            return self._images[run.options["url"]].store.read(0, self.size)
        found = self.found()
        return found if found in candidates and found is not None else super().expected(run)

    def tidy(self, run: Run) -> None:
        """See Download: what the other run has is no litter."""
        if not self._images:
            super().tidy(run)
