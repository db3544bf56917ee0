# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Make what users install: sdists, wheels and RPMs of the three distributions."""
