# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP proxy that misbehaves as told: resets connections, or falls silent.

with ChaosProxy(daemon.port, budget=lambda: rand.randrange(1 << 20)) as proxy:
    client.upload(path, f"https://localhost:{proxy.port}/images/{ticket}", ca_file)
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from types import TracebackType

_PIECE = 16 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) sends RST
_STOP_TIMEOUT = 10.0


class ChaosProxy:
    """Passes bytes on between clients and a server on this host.

    Args:
        target: TCP port of the server; it may be set anew at any time.
        budget: Called for each connection: bytes of both directions after which it is
            reset; None never resets.
        stall: Nothing is passed on any more once the budget is used up, and nothing closed.

    Attributes:
        port: TCP port to connect to.
        connections: Accepted so far.
        resets: Made so far.
        stalled: Set when a connection has fallen silent.
    """

    def __init__(self, target: int, *, budget: Callable[[], int | None] = lambda: None, stall: bool = False) -> None:
        self.target = target
        self._budget = budget
        self._stall = stall
        self.connections = 0
        self.resets = 0
        self.stalled = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._wake_reader, self._wake_writer = socket.socketpair()

    def __enter__(self) -> ChaosProxy:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wake_writer.close()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT)
        self._listener.close()
        self._wake_reader.close()

    def _start(self, run: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=run, args=args, name="chaos")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._wake_reader], [], [])
            if self._wake_reader in ready:
                return
            client, _ = self._listener.accept()
            self.connections += 1
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return  # it is down at the moment
            with server:
                try:
                    self._pass_on(client, server)
                except OSError:
                    pass  # one end went away by itself
                for sock in (client, server):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        left = self._budget()
        other = {client: server, server: client}
        while True:
            ready, _, _ = select.select([*other, self._wake_reader], [], [])
            if self._wake_reader in ready:
                return
            for sock in ready:
                data = sock.recv(_PIECE if left is None else min(_PIECE, left))
                if not data:
                    return
                other[sock].sendall(data)
                if left is not None:
                    left -= len(data)
                    if not left:
                        self._end()
                        return

    def _end(self) -> None:
        if self._stall:
            self.stalled.set()
            select.select([self._wake_reader], [], [])
        self.resets += 1
