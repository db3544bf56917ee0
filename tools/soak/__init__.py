# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kills the daemon and its storage at random moments, and looks if anything was lost."""
