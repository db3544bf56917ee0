# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Long work in the loop, cut into pieces between which others have a turn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import Loop

_PIECE = 500e-6  # seconds: what a few small requests take


class Pace:
    """Lets others have a turn when a piece of work has taken long enough.

    Args:
        loop: The loop.
    """

    __slots__ = ("_loop", "_until")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._until = time.monotonic() + _PIECE

    async def step(self) -> None:
        """To be awaited after each small step, of some microseconds."""
        if time.monotonic() >= self._until:
            await self._loop.turn()
            self._until = time.monotonic() + _PIECE
