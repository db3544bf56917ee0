# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stand-ins that the client's code gets for the modules that reach outside of its memory.

Each has the names that the code uses, and says so when it is asked for another: nothing passes the
simulation unnoticed.
"""

from __future__ import annotations

from typing import Callable


def unknown(module: str) -> Callable[[str], object]:
    """Return the `__getattr__` of a stand-in: it names what is missing."""

    def missing(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"the simulation knows no {module}.{name}: add it to tools/simulation/standins")

    return missing


class StandIn:
    """A stand-in that is an object.

    Attributes:
        stands_for: The module.
    """

    stands_for = ""

    def __getattr__(self, name: str) -> object:
        return unknown(self.stands_for)(name)
