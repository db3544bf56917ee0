# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image behind a qemu-nbd of our own, whose failures are told with its name and qemu's words.

To a read that fails, qemu-nbd up to 7.2 at least gives no answer: it says why on its standard
error, and closes the connection. On the wire that is a lost connection, which another attempt
may bring back. So what it said decides:

    lost connection, and it said that its file failed ──► the image cannot be read: no other attempt
    lost connection, and it has ended ──────────────────► its last words, or how it ended
    lost connection, and nothing else ──────────────────► as it is: another attempt
"""

from __future__ import annotations

import contextlib
from typing import Iterator, Sequence

from ovirt_imageio.common.backends.base import Backend, Operation, Peer
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import ConnectionTimeout, OperationCancelled, RequestError, ServerGone
from ovirt_imageio.common.extents import Extent
from ovirt_imageio.common.qemu import nbd


class Explained(Backend):
    """A connection to a qemu-nbd of our own. One instance, one thread.

    Args:
        backend: The connection; closed with this.
        server: The qemu-nbd.
        path: Of the image.
    """

    def __init__(self, backend: NbdBackend, server: nbd.Server, path: str) -> None:
        self._backend = backend
        self._server = server
        self._path = path
        self.size = backend.size
        self.capabilities = backend.capabilities
        self.read_only_reason = backend.read_only_reason

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        with self._told():
            self._backend.read_into(offset, buf)

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        with self._told():
            self._backend.write(offset, buf)

    def zero(self, offset: int, length: int) -> None:
        """See Backend."""
        with self._told():
            self._backend.zero(offset, length)

    def flush(self) -> None:
        """See Backend."""
        with self._told():
            self._backend.flush()

    def extents(
        self, context: str = "zero", *, offset: int = 0, length: int | None = None, op: Operation | None = None
    ) -> Iterator[Extent]:
        """See Backend."""
        with self._told():
            yield from self._backend.extents(context, offset=offset, length=length, op=op)

    def send_to(self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()) -> None:
        """See Backend."""
        with self._told():
            self._backend.send_to(peer, offset, length, op)

    def receive_from(
        self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()
    ) -> None:
        """See Backend."""
        with self._told():
            self._backend.receive_from(peer, offset, length, op)

    def interrupt(self) -> None:
        """Wake a thread that waits for qemu-nbd. Any thread may call it."""
        self._backend.interrupt()

    def close(self) -> None:
        """See Backend."""
        self._backend.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OperationCancelled:
            raise
        except RequestError as e:
            raise RequestError(f"{self._path}: {e}", errno=e.errno) from e
        except (ServerGone, ConnectionTimeout) as e:
            said = self._server.failure()
            if said is None:
                raise
            raise nbd.QemuNbdError(f"{self._path}: qemu-nbd failed: {said}") from e
