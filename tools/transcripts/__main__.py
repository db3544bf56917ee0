# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the page of transcripts."""

from __future__ import annotations

import sys
import tempfile

from imageio_testing import enginesdk

from . import PAGE, make

if not enginesdk.is_here():
    sys.exit("transcripts: needs the oVirt engine SDK: PYTHONPATH=tools python -m imageio_testing.enginesdk")
with tempfile.TemporaryDirectory(prefix="imageio-") as folder:
    PAGE.write_text(make(folder), encoding="utf-8")
print(PAGE)
