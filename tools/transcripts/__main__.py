# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the page of transcripts."""

from __future__ import annotations

import tempfile

from . import PAGE, make

with tempfile.TemporaryDirectory(prefix="imageio-") as folder:
    PAGE.write_text(make(folder), encoding="utf-8")
print(PAGE)
