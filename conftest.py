# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of all packages share."""

pytest_plugins = ["imageio_testing.leaks", "imageio_testing.rows"]
