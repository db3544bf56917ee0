# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""In what ovirt-imageio 2.5.1 departs from the rules, by test, and why this daemon does otherwise."""

from __future__ import annotations

DIFFERENCES: dict[str, str] = {}
