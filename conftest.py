# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of all packages share."""

import hypothesis

pytest_plugins = ["imageio_testing.leaks", "imageio_testing.rows"]

# The same examples in every run: a failure of today is one of yesterday's change.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.load_profile("same")
