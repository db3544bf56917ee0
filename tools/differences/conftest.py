# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A host of each generation, with the same tickets."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.servers import QemuNbd
from clients import host as hosts_
from clients.host import Generation, Host
from imageio_testing.pki import Pki

from .both import MiB

HERE = Path(__file__).parent

# The first test installs 2.5.1.
SLOW_START = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make check-all` what needs 2.5.1."""
    for item in items:
        if item.path.parent != HERE or item.path.name == "test_rows.py":
            continue
        for mark in (pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(SLOW_START)):
            item.add_marker(mark)


@pytest.fixture(scope="session")
def generations() -> list[Generation]:
    """2.5.1, and this checkout."""
    return [hosts_.generation(name) for name in ("2.5.1", "ours")]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """For images and sockets, whose paths are short."""
    with tempfile.TemporaryDirectory(prefix="differ-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def exports(folder: Path) -> Iterator[dict[str, tuple[str, int]]]:
    """URL, and size of the ticket: of an export of 1 MiB, an empty one, and one that can only be read."""
    for name, size in (("export", MiB), ("empty", 0), ("locked", MiB)):
        with open(folder / name, "wb") as f:
            f.truncate(size)
    with QemuNbd(folder, folder / "export") as export, QemuNbd(folder, folder / "empty") as empty:
        with QemuNbd(folder, folder / "locked", read_only=True) as locked:
            yield {"long": (export.url, 2 * MiB), "empty": (empty.url, 0), "locked": (locked.url, MiB)}


@pytest.fixture(scope="session")
def hosts(
    generations: list[Generation],
    folder: Path,
    exports: dict[str, tuple[str, int]],
    pki: Pki,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[Host]]:
    """A host of each generation.

    The tickets are `disk`, a file of 1 MiB, `short`, its first sector, `nothing`, an empty file, and `exports`.
    """
    quick = {"control": {"remove_timeout": 1}}
    theirs, ours = (Host(each, tmp_path_factory.mktemp("host"), pki, config=quick) for each in generations)
    with theirs, ours:
        for host in (theirs, ours):
            disk = folder / f"disk-{host.generation.name}"
            with open(disk, "wb") as f:
                f.truncate(MiB)
                f.write(b"x" * 4096)
            (folder / "nothing").touch()
            tickets = {
                **exports,
                "nothing": (f"file://{folder}/nothing", 0),
                "disk": (f"file://{disk}", MiB),
                "short": (f"file://{disk}", 4096),
            }
            for name, (url, size) in tickets.items():
                host.add_ticket(url, size, ["read", "write"], uuid=name, filename="a b")
        yield [theirs, ours]
