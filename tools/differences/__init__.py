# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of docs/reference/differences.md, each tried on 2.5.1 and on this checkout."""
