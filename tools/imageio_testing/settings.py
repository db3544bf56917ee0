# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Settings of every daemon that tests start, from the environment; and the switches of the fast paths.

    IMAGEIO_TEST_SETTINGS="daemon.splice=no backend_nbd.large_read=no" pytest ...

A setting of the test itself wins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

VARIABLE = "IMAGEIO_TEST_SETTINGS"

SWITCHES = {
    "splice": "daemon.splice=no",
    "loop nbd": "daemon.loop_nbd=no",
    "inline": "daemon.inline_limit=0",
    "quick reads": "daemon.quick_reads=no",
    "keep memory": "daemon.keep_memory=no",
    "large read": "backend_nbd.large_read=no",
}
"""Each fast path, and the setting without it."""


def sections(settings: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return settings like ``daemon.splice=no`` by section and key."""
    found: dict[str, dict[str, object]] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = value
    return found


def from_environment() -> dict[str, dict[str, object]]:
    """Return what the environment sets, by section and key."""
    return sections(os.environ.get(VARIABLE, "").split())


def are_off(*names: str) -> bool:
    """Tell whether the environment switches one of these fast paths off."""
    return not {SWITCHES[name] for name in names}.isdisjoint(os.environ.get(VARIABLE, "").split())
