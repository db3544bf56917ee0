# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP/1.1 as pure values, for the client and the daemon."""
