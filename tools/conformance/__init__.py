# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

r"""The rules of the protocol, checked at a server from outside, through its sockets only.

Each test is one rule. Its docstring states the rule. A failure prints that rule, the bytes
that went over the wire, and the difference between the server and the rule. Nothing of a
server's code is used, so any implementation of docs/reference/http-api.md and tickets.md can
be checked. Check it on its host, from the folder tools of a checkout after ci/bootstrap.sh::

    ../.venv/bin/python -m conformance --control /run/ovirt-imageio/sock \
        --remote https://localhost:54322 --cafile ca.pem \
        --local @/org/ovirt/imageio --folder /srv/conformance

``--control`` is always needed, and ``--remote`` or ``--local`` or both. In a folder of its own
within ``--folder`` the suite makes images, and sockets of qemu-nbd that serve them, for anyone to
open: the server must reach it by the same path, so /tmp will not do for a server with a
/tmp of its own. Take a server that nobody else uses: one that breaks a rule may lose the
tickets of others.

With ``--remote`` the server is an origin of its own as well. Tickets name its own images by
that URL, and it must trust its certificate (backend_http.ca_file). Without it those rules are
skipped. Rules about features that the server does not announce, or that the host lacks, are
skipped as well. Each reason is told at the end.

Options of pytest are taken as well: ``-n 4``, ``-k test_put``. The exit status is 0 if every rule
that was tried is kept, 1 if not, 4 if the options cannot be meant.

Without options the daemon of this checkout is started and checked: that is what the
project's own tests do. ``--peer`` checks ovirt-imageio 2.5.1, installed from PyPI into an
environment of its own, and ``--table`` writes the comparison of both for the documentation.
"""
