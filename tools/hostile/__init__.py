# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The cost of hostile clients for the daemon and for other clients: figures for a page of the documentation."""
