# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Daemons that several files of tests need."""

from __future__ import annotations

import pytest

from imageio_testing.daemon import Daemon


@pytest.fixture(scope="module")
def origin(tmp_path_factory, pki):
    """The daemon on the host that has the disk."""
    with Daemon(tmp_path_factory.mktemp("origin"), pki=pki) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, pki):
    """A daemon in proxy role. Its own host is another one: it has to go to the origin by TLS."""
    config = {"backend_http": {"ca_file": pki.ca_file}}
    with Daemon(tmp_path_factory.mktemp("proxy"), pki=pki, config=config) as daemon:
        yield daemon
