# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Side-by-side measurements: this project, the last 2.x release, and nbdcopy.

Every row runs all implementations in turn, several rounds, so that a machine
whose speed drifts slows all of them alike. The ratio inside one row is the
result. Every row that moves data compares the data it moved.
"""
