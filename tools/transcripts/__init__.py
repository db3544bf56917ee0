# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The output of each command of `ovirt-img` on a terminal, for the documentation.

    PYTHONPATH=tools python -m transcripts        write docs/reference/transcripts.md

The commands are run: on a terminal of 80 columns, against an engine to try things on. Values
that differ from run to run are replaced, so that a test can compare the page with a new one.
"""

from .page import PAGE, make

__all__ = ["PAGE", "make"]
