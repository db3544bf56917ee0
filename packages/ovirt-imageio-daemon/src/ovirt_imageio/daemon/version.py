# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The version of this distribution.

It stands in the file VERSION alone, which setup.cfg reads too. To find it in a module, old
setuptools would have to import the package, and so its dependencies.
"""

from __future__ import annotations

import os

with open(os.path.join(os.path.dirname(__file__), "VERSION"), encoding="ascii") as _file:
    __version__ = _file.read().strip()
