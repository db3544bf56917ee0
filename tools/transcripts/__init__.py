# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a terminal shows of each command of `ovirt-img`, for the documentation.

    PYTHONPATH=tools python -m transcripts        write docs/reference/transcripts.md

The commands are run: on a terminal of 80 columns, against an engine to try things on. What
differs from run to run is replaced, so that a test can compare the page with a new one.
"""

from .page import PAGE, make

__all__ = ["PAGE", "make"]
