# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Add, watch and remove tickets of the daemon on this host.

Example::

    from ovirt_imageio import admin

    cfg = admin.load_config(admin.DEFAULT_CONF_DIR)
    with admin.Client(cfg) as c:
        c.add_ticket({"uuid": "…", "size": …, "ops": ["read"], "timeout": 300, "url": "…"})

One client belongs to one thread; every call waits for the daemon's answer.
"""

from __future__ import annotations

from ovirt_imageio.daemon.version import __version__

from .client import DEFAULT_CONF_DIR, Client, ClientError, Error, ServerError, load_config

__all__ = ["DEFAULT_CONF_DIR", "Client", "ClientError", "Error", "ServerError", "__version__", "load_config"]
