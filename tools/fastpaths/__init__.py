# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""No path is faster by being less safe: the suites that would notice, without each of the fast paths."""
