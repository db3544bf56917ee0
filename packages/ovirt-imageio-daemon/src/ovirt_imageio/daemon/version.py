# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The version of this distribution.

It stands in the file VERSION alone, which setup.cfg reads too: old setuptools
would have to import the package, and so its dependencies, to find it in a module.
"""

from __future__ import annotations

from pathlib import Path

__version__ = Path(__file__).with_name("VERSION").read_text(encoding="ascii").strip()
