# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The server under test, images, tickets, and failures that read like a specification."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conformance.options import named_server
from conformance.plugin import titles
from conformance.server import WAYS, Client, Fault, Server
from conformance.storage import (
    DISK_SIZE,
    IMAGE_DATA,
    IMAGE_SIZE,
    STORAGES,
    Grants,
    Volume,
    pattern,
    qemu_nbd,
)
from imageio_testing.httppeer import ConnectionEnded, MalformedResponse

# Errors that the server can cause by breaking a rule; any other is a fault of the suite.
_FAULTS = (Fault, MalformedResponse, ConnectionEnded, ConnectionError, TimeoutError)

_WIRE_LINES = 60


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try each rule by every way, and with every storage where it matters."""
    for name, values in (("way", WAYS), ("storage", STORAGES)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Let a failure tell the rule, what went over the wire, and the fault."""
    report = yield
    report.user_properties.append(("rule", titles(item)))
    if call.excinfo is not None and report.failed:
        report.user_properties.append(("fault", _fault(call.excinfo.value)))
        if isinstance(call.excinfo.value, _FAULTS):
            report.longrepr = _story(item, call.excinfo.value)
    return report


def _fault(error: BaseException) -> str:
    return str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"


def _story(item: pytest.Item, error: BaseException) -> str:
    chapter, rule = titles(item)
    server = getattr(item, "funcargs", {}).get("server")
    wire = "\n".join(server.wire).split("\n") if server else []
    if len(wire) > _WIRE_LINES:
        wire = ["  ...", *wire[-_WIRE_LINES:]]
    faults = "\n".join(f"  {line}" for line in _fault(error).split("\n"))
    return "\n".join([f"{chapter}: {rule}", f"  ({item.nodeid})", "on the wire", *wire, "fault", faults])


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server that the options name, or a daemon of this checkout."""
    options = request.config.option
    with tempfile.TemporaryDirectory(prefix="conformance-", dir=getattr(options, "folder", None)) as name:
        folder = Path(name).absolute()
        folder.chmod(0o777)
        named = named_server(options, folder)
        if named is not None:
            yield named
        else:
            with own_daemon(folder, getattr(options, "set", [])) as server:
                yield server


@contextlib.contextmanager
def own_daemon(folder: Path, settings: Sequence[str] = ()) -> Iterator[Server]:
    """Start the daemon of this checkout, with settings like ``daemon.splice=no``."""
    daemon = pytest.importorskip("imageio_testing.daemon")
    pki = pytest.importorskip("imageio_testing.pki").make_pki(folder)
    from imageio_testing.settings import sections
    from ovirt_imageio.daemon.version import __version__

    config = sections([f"backend_http.ca_file={pki.ca_file}", *settings])
    (folder / "own").mkdir()
    with daemon.Daemon(folder / "own", pki=pki, config=config) as running:
        yield Server(
            remote=running.url,
            cafile=pki.ca_file,
            local=running.local_socket,
            control=running.control_socket,
            folder=folder,
            version=__version__,
        )


@pytest.fixture(scope="module")
def tcp_control(server: Server, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose control service listens on TCP: the one under test, or a daemon of this checkout."""
    if "://" in server.control:
        yield server
        return
    if named_server(request.config.option, server.folder) is not None:
        if request.config.option.tcp_control is None:
            pytest.skip("the control service listens on a Unix socket")
        yield dataclasses.replace(server, control=request.config.option.tcp_control)
        return
    from imageio_testing.daemon import Daemon

    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        with Daemon(folder, tls=False, config={"control": {"transport": "tcp", "port": 0}}) as running:
            found = re.search(r"control on '[^']*?:(\d+)'", running.state)
            assert found, running.state
            yield dataclasses.replace(server, control=f"http://localhost:{found[1]}")


@pytest.fixture(autouse=True)
def _clean_wire(server: Server) -> None:
    server.wire.clear()


@pytest.fixture
def grants(server: Server) -> Iterator[Grants]:
    """Tickets that go with the test."""
    grants = Grants(server)
    yield grants
    grants.remove_all()


@pytest.fixture
def connect(server: Server, way: str) -> Iterator[Callable[[], Client]]:
    """Opens connections to the images service."""
    if way not in server.ways():
        pytest.skip(f"the server has no {way} service")
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(server.connect(way))


@pytest.fixture
def client(connect: Callable[[], Client]) -> Client:
    """A connection to the images service."""
    return connect()


@pytest.fixture
def control(server: Server) -> Iterator[Client]:
    """A connection to the control service."""
    with server.connect("control") as client:
        yield client


@pytest.fixture(scope="session")
def images(server: Server) -> Iterator[dict[str, Volume]]:
    """Read-only images with data and holes, by storage."""
    with _volumes(server.folder / "image", IMAGE_SIZE) as volumes:
        for number, (offset, length) in enumerate(IMAGE_DATA):
            volumes["file"].fill(offset, pattern(length, number))
        yield volumes


@pytest.fixture(scope="session")
def disks(server: Server) -> Iterator[dict[str, Volume]]:
    """Images to write to, larger than 4 GiB and sparse, by storage."""
    with _volumes(server.folder / "disk", DISK_SIZE) as volumes:
        yield volumes


@contextlib.contextmanager
def _volumes(path: Path, size: int) -> Iterator[dict[str, Volume]]:
    with open(path, "wb") as f:
        f.truncate(size)
    path.chmod(0o666)
    with qemu_nbd(path) as url:
        yield {kind: Volume(kind, path, f"file://{path}" if kind == "file" else url, size) for kind in STORAGES}


@pytest.fixture
def image(images: dict[str, Volume], storage: str) -> Volume:
    """An image that is only read."""
    return images[storage]


@pytest.fixture
def disk(disks: dict[str, Volume], storage: str) -> Volume:
    """An image to write to; it begins as a hole."""
    disks[storage].clear()
    return disks[storage]


@pytest.fixture
def unwritable(grants: Grants, images: dict[str, Volume]) -> Iterator[str]:
    """Path of an image behind storage that can only be read, with a ticket to read and write."""
    path = images["file"].path
    with qemu_nbd(path, "--read-only") as url:
        yield f"/images/{grants.add(Volume('nbd', path, url, IMAGE_SIZE), ('read', 'write'))}"
        grants.remove_all()


@pytest.fixture
def reading(grants: Grants, image: Volume) -> str:
    """Path of the read-only image, with a ticket to read it."""
    return f"/images/{grants.add(image)}"


@pytest.fixture
def writing(grants: Grants, disk: Volume) -> str:
    """Path of the disk, with a ticket to write it."""
    return f"/images/{grants.add(disk, ('write',))}"


@pytest.fixture
def anything(grants: Grants, images: dict[str, Volume]) -> str:
    """Path of some image, with a ticket to read it, for rules in which storage plays no part."""
    return f"/images/{grants.add(images['file'])}"


@pytest.fixture
def scratch(grants: Grants, disks: dict[str, Volume]) -> str:
    """Path of some disk, with a ticket to write it, for rules in which storage plays no part."""
    disks["file"].clear()
    return f"/images/{grants.add(disks['file'], ('write',))}"
