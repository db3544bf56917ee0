# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The rules of the protocol, checked at a server from outside, through its sockets only.

Each test is one rule. Its docstring states the rule, and what a failure prints is that
rule, what went over the wire, and in what the server departs from it. Nothing of a server's
code is imported, so any implementation of docs/reference/http-api.md and tickets.md can
be checked::

    python -m conformance --remote https://localhost:54322 --cafile ca.pem \
        --local @/org/ovirt/imageio --control /run/ovirt-imageio/sock --folder /var/tmp

Without options the daemon of this checkout is started and checked: that is what the
project's own tests do. ``--peer`` checks ovirt-imageio 2.5.1, installed from PyPI into an environment
of its own, and ``--table`` writes the comparison of both for the documentation.
"""
