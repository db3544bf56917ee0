# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Set-up that the tests of all packages share."""

import signal

import hypothesis

pytest_plugins = ["imageio_testing.fixtures", "imageio_testing.leaks", "imageio_testing.rows"]

# The same examples in every run: a failure of today is one of yesterday's change. How long one takes
# is no failure: others use the machine.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")


def pytest_configure() -> None:
    """Let SIGINT work in the programs that tests start, also where the tests run in the background.

    A shell without job control lets its background programs ignore SIGINT, and their children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
