# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Changes that a running daemon may take over from a new configuration, and those that need a restart. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import options
from .config import Config


class Change(NamedTuple):
    """A key with another value than before. `live`: it applies without a restart."""

    section: str
    key: str
    old: object
    new: object
    live: bool

    def __str__(self) -> str:
        """Write it for the log, as `daemon.max_workers: 64 → 32`."""
        return f"{self.section}.{self.key}: {self.old} → {self.new}"


def changes(old: Config, new: Config) -> list[Change]:
    """Compare two configurations, in the order of the reference. Logging is left out."""
    found = []
    for info in options.describe():
        before = getattr(getattr(old, info.section), info.key)
        after = getattr(getattr(new, info.section), info.key)
        if before != after:
            found.append(Change(info.section, info.key, before, after, info.rule.live))
    return found


def merged(old: Config, new: Config) -> Config:
    """Return the old configuration with what applies at once of the new one.

    Values that need a restart stay old, so that `changes` finds them again until then.
    """
    sections: dict[str, dict[str, Any]] = {}
    for change in changes(old, new):
        if change.live:
            sections.setdefault(change.section, {})[change.key] = change.new
    parts = {name: getattr(old, name).replace(**keys) for name, keys in sections.items()}
    return old._replace(logging=new.logging, sources=new.sources, **parts)
