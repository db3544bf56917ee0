# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The version of this distribution: the one place that says it."""

__version__ = "3.0.0"
