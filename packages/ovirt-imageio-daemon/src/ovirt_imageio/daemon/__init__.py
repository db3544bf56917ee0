# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve virtual disks over HTTP to whoever holds a ticket."""
