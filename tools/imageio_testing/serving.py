# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Coroutines and services of the daemon, run inside the test's process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.daemon import options
from ovirt_imageio.daemon.auth import Tickets
from ovirt_imageio.daemon.config import Config, parse_value
from ovirt_imageio.daemon.handlers.checksum import Checksum
from ovirt_imageio.daemon.handlers.extents import Extents
from ovirt_imageio.daemon.handlers.images import Images
from ovirt_imageio.daemon.handlers.info import Info
from ovirt_imageio.daemon.handlers.tickets import TicketsHandler
from ovirt_imageio.daemon.http.connection import Connection
from ovirt_imageio.daemon.http.listeners import Listener
from ovirt_imageio.daemon.http.loop import Loop
from ovirt_imageio.daemon.http.registry import Connections
from ovirt_imageio.daemon.http.router import Route, Router
from ovirt_imageio.daemon.tickets import Ticket

from . import settings
from .httppeer import HttpPeer, Response

PATIENCE = 10.0
"""Seconds after which a test is taken for stuck."""


class Runner:
    """Runs coroutines in a loop, to their end.

    Args:
        max_workers: Worker threads of the loop.
    """

    def __init__(self, max_workers: int = 8) -> None:
        self.loop = Loop(max_workers=max_workers, worker_nice=0, look=0)

    def __call__(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run the loop until the coroutine has ended; return or raise what it does."""
        outcome: list[Any] = []

        async def main() -> None:
            try:
                outcome.append((await coro, None))
            except BaseException as e:
                outcome.append((None, e))
            finally:
                self.loop.stop()

        async def give_up() -> None:
            await self.loop.sleep(PATIENCE)
            outcome.append((None, TimeoutError("the test is stuck")))
            self.loop.stop()

        watch = self.loop.spawn(give_up())
        task = self.loop.spawn(main())
        self.loop.run()
        watch.cancel()
        task.cancel()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """Close the loop."""
        self.loop.close()


def configured(cfg: Config) -> Config:
    """Return a configuration with what the environment sets, see settings.py, except where it gives a value itself."""
    changes: dict[str, Any] = {}
    for name, keys in settings.from_environment().items():
        section, known = getattr(cfg, name), {info.key: info for info in options.describe(name)}
        values = {key: parse_value(str(text), known[key]) for key, text in keys.items()}
        changes[name] = section.replace(**{**values, **section.given})
    return cfg._replace(**changes)


class Service:
    """Images and tickets on two Unix sockets, with storage that the test supplies.

    Args:
        folder: Where the sockets are made.
        open_backend: Opens the storage of a ticket; None opens its URL.
        cfg: The configuration.
        clock: Monotonic seconds; the loop's by default.

    Attributes:
        tickets: The store; touch it by `call` only.
        images, control: Addresses of the sockets.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        open_backend: Callable[[Ticket], Backend] | None = None,
        *,
        cfg: Config | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        cfg = configured(cfg or Config(control=options.Control(remove_timeout=5)))
        self._splice = cfg.daemon.splice
        self.loop = Loop(max_workers=16, worker_nice=0)
        self.tickets = Tickets(self.loop, cfg, open_backend=open_backend, clock=clock)
        self.images = os.path.join(folder, "images")
        self.control = os.path.join(folder, "control")
        self.connections = Connections(self.loop, 1000)
        routes = [
            *Images(self.tickets, cfg).routes(),
            *Extents(self.tickets).routes(),
            *Checksum(self.tickets).routes(),
            *Info().routes(),
        ]
        self._listeners = [
            self._listen(self.images, routes),
            self._listen(self.control, TicketsHandler(self.tickets).routes()),
        ]
        self._thread = threading.Thread(target=self.loop.run, name="loop")

    def _listen(self, path: str, routes: list[Route]) -> Listener:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen(128)

        def make(client: socket.socket, peer: str) -> Connection:
            return Connection(self.loop, client, service="test", peer=peer, splice=self._splice)

        return Listener(self.loop, sock, make, Router(routes, name="test", cors=True), self.connections)

    def __enter__(self) -> Service:
        for listener in self._listeners:
            listener.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(self.loop.spawn, self._end(done))
        ended = done.wait(PATIENCE)
        self.loop.stop()
        self._thread.join(PATIENCE)
        self.loop.close()
        assert ended or error, "the service did not end"

    async def _end(self, done: threading.Event) -> None:
        for listener in self._listeners:
            listener.stop()
        await self.tickets.close()
        self.connections.abort()
        await self.connections.drained(PATIENCE)
        done.set()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the loop's thread and return what it returns."""
        result: list[Any] = []
        done = threading.Event()

        def work() -> None:
            try:
                result.append((function(*args), None))
            except Exception as e:
                result.append((None, e))
            done.set()

        self.loop.call_soon_threadsafe(work)
        assert done.wait(PATIENCE), "the loop is stuck"
        value, error = result[0]
        if error is not None:
            raise error
        return value

    def run(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in the loop, to its end."""
        done = threading.Event()

        def begin() -> None:
            self.loop.spawn(make()).on_done(lambda _: done.set())

        self.call(begin)
        assert done.wait(PATIENCE), "the coroutine is stuck"

    def add_ticket(self, ticket_id: str = "t", **keys: Any) -> str:
        """Add a ticket by the control service; return the path of its image."""
        document = {"uuid": ticket_id, "ops": ["read", "write"], "timeout": 300, "url": "file:///none", **keys}
        response = self.manage("PUT", f"/tickets/{ticket_id}", json.dumps(document).encode())
        assert response.status == 200, response
        return f"/images/{ticket_id}"

    def show(self, ticket_id: str = "t") -> Any:
        """Return what the control service tells about a ticket."""
        return self.manage("GET", f"/tickets/{ticket_id}").json()

    def manage(self, method: str, path: str, body: bytes = b"") -> Response:
        """Send one request to the control service."""
        with HttpPeer.unix(self.control) as peer:
            return peer.request(method, path, body=body) if body else peer.request(method, path)

    @contextlib.contextmanager
    def client(self) -> Iterator[HttpPeer]:
        """Connect to the images."""
        with HttpPeer.unix(self.images) as peer:
            yield peer
