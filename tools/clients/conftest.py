# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A host of each generation, for all replays."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from clients import host as hosts
from clients.host import Generation, Host
from imageio_testing.pki import Pki

from . import manager

# The first test that needs 2.5.1 installs it.
SLOW_START = 600

NO_PARAMETERS = SimpleNamespace(params={})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the replays: they start real servers. Those that 2.5.1 has a part in are left to `make check-all`."""
    for item in items:
        if item.path.parent != hosts.PROGRAMS.parent:
            continue
        item.add_marker(pytest.mark.system)
        item.add_marker(pytest.mark.timeout(SLOW_START))
        if "2.5.1" in getattr(item, "callspec", NO_PARAMETERS).params.values():
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", params=["ours", "2.5.1"])
def generation(request: pytest.FixtureRequest) -> Generation:
    """The release whose daemon a program meets."""
    return hosts.generation(request.param)


@pytest.fixture(scope="session")
def host(generation: Generation, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that vdsm has set up."""
    folder = tmp_path_factory.mktemp(f"host-{generation.name}")
    with Host(generation, folder, pki, dropins=manager.VDSM, config={"control": {"remove_timeout": 1}}) as host:
        yield host


@pytest.fixture(scope="session")
def engine_host(generation: Generation, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The engine's own host: its daemon is a proxy of those on the hosts."""
    folder = tmp_path_factory.mktemp(f"engine-{generation.name}")
    config = {"control": {"port": 0}, "backend_http": {"ca_file": pki.ca_file}}
    with Host(generation, folder, pki, dropins=manager.ENGINE, config=config) as host:
        yield host


@pytest.fixture(scope="session", params=["ours", "2.5.1"])
def library(request: pytest.FixtureRequest) -> Generation:
    """The release whose client library a program uses."""
    return hosts.generation(request.param)
