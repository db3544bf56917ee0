# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a user's files are. Source: XDG Base Directory Specification, which ignores relative paths."""

from __future__ import annotations

import os
import pwd


def home() -> str | None:
    """Return the user's home folder; None if neither HOME nor the list of users has one.

    A service without HOME, and a container whose user has no name, are such.
    """
    folder = os.environ.get("HOME", "")
    if not os.path.isabs(folder):
        try:
            folder = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return folder if os.path.isabs(folder) else None


def config() -> str | None:
    """Return the folder of configuration files; None if the user has none."""
    return _folder("XDG_CONFIG_HOME", ".config")


def state() -> str | None:
    """Return the folder of files that outlive a program; None if the user has none."""
    return _folder("XDG_STATE_HOME", os.path.join(".local", "state"))


def _folder(variable: str, name: str) -> str | None:
    folder = os.environ.get(variable, "")
    if os.path.isabs(folder):
        return folder
    below = home()
    return None if below is None else os.path.join(below, name)
