# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""`python -m ovirt_imageio.daemon` is the command ovirt-imageio."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
