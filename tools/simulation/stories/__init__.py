# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stories of a world: which transfer it is, what befalls its runs, and what must hold."""

from __future__ import annotations

from ..world import World
from .backups import Backup, Snapshot
from .base import Story
from .crowds import Crowd
from .downloads import Download
from .uploads import Upload

__all__ = ["KINDS", "story"]

KINDS: tuple[tuple[float, type[Story]], ...] = (
    (10, Upload),
    (10, Download),
    (6, Backup),
    (3, Snapshot),
    (5, Crowd),
)
"""The stories, and how often each is told."""


def story(world: World) -> Story:
    """Return the story of a world."""
    return world.dice.weighted(*KINDS)(world)
