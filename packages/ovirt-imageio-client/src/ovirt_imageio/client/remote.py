# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image that a daemon serves: reaching it, and random access."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Iterator, Literal, overload

from ovirt_imageio.client.patience import Patience, check_cancel, check_timeout
from ovirt_imageio.common import defaults, imagesapi
from ovirt_imageio.common.backends.base import Reader, Writer
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.checksum import ChecksumResult
from ovirt_imageio.common.errors import OutOfRange
from ovirt_imageio.common.extents import DirtyExtent, Extent, ZeroExtent

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend


class OutOfBounds(OutOfRange, RuntimeError):
    """A range is not inside the image. Clients of 2.x expect a RuntimeError."""


class ImageioClient:
    """Reads and writes an image through an imageio server.

    One thread uses a client at a time. Several clients of the same image work side by
    side, at most `max_readers` or `max_writers` of them.

    Args:
        transfer_url: `https://HOST:PORT/images/TICKET-ID`.
        cafile: Certificates to verify the server with; None means the system's. Nothing
            in the environment overrides it.
        secure: Verify the server's certificate and host name.
        proxy_url: The same image at a server in proxy role, used if no connection to
            transfer_url can be made.
        buffer_size: Most bytes that `read_from` and `write_to` move at a time.
        timeout: Seconds that the server may be silent. None means a minute, ten for what storage
            has to work for, and any time for a checksum.
        cancel: Ends what waits for the server, and the client, from any thread.

    Raises:
        ValueError: A URL is not one of an image, or the timeout makes no sense.
        ovirt_imageio.common.errors.OperationCancelled: cancel said so, now or in any method.
        OSError: cafile cannot be read.
        ovirt_imageio.common.errors.AuthorizationError: The ticket is missing or expired.
        ovirt_imageio.common.errors.ImageioError: No connection can be made, the
            certificate is not accepted, or the server does not answer as it should.
    """

    def __init__(
        self,
        transfer_url: str,
        cafile: str | None = None,
        secure: bool = True,
        proxy_url: str | None = None,
        buffer_size: int = defaults.BUFFER_SIZE,
        *,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        check_timeout(timeout)
        check_cancel(cancel)
        # requests takes longer to import than everything else together.
        from ovirt_imageio.common.backends.http import HttpBackend

        self._backend = HttpBackend(
            transfer_url,
            cafile=cafile,
            secure=secure,
            proxy_url=proxy_url,
            buffer_size=buffer_size,
            cancel=cancel,
            **Patience(timeout).times(),
        )

    @property
    def max_readers(self) -> int:
        """Clients that may read the image side by side."""
        return self._backend.capabilities.max_readers

    @property
    def max_writers(self) -> int:
        """Clients that may write the image side by side."""
        return self._backend.capabilities.max_writers

    def size(self) -> int:
        """Return the size of the image in bytes.

        Raises:
            ImageioError: The server refused, or the connection failed.
        """
        return self._backend.size

    @overload
    def extents(self, context: Literal["zero"] = "zero") -> Iterator[ZeroExtent]: ...

    @overload
    def extents(self, context: Literal["dirty"]) -> Iterator[DirtyExtent]: ...

    @overload
    def extents(self, context: str) -> Iterator[Extent]: ...

    def extents(self, context: str = imagesapi.CONTEXT_ZERO) -> Iterator[Extent]:
        """Return what of the image is data, in order, without gaps.

        Args:
            context: `zero` for `ZeroExtent` (start, length, zero, hole); `dirty` for
                `DirtyExtent` (start, length, dirty, zero), during incremental backup.
                Both have the property `data`: not zero.

        Raises:
            ovirt_imageio.common.errors.UnsupportedOperation: No dirty extents here.
            ImageioError: As size.
        """
        return self._backend.extents(context)

    def read(self, offset: int, buffer: Buffer) -> int:
        """Read from offset until buffer is full.

        Returns:
            Bytes read, always the length of buffer.

        Raises:
            OutOfBounds: The range is not inside the image.
            ImageioError: As size.
        """
        length = self._check(offset, memoryview(buffer).nbytes)
        self._backend.read_into(offset, buffer)
        return length

    def write(self, offset: int, buffer: Buffer) -> None:
        """Write all of buffer at offset. It is on stable storage after `flush`.

        A file on the server that is smaller than its ticket allows grows.

        Raises:
            OutOfBounds: The range is not inside the image.
            ovirt_imageio.common.errors.UnsupportedOperation: The ticket allows no writing.
            ImageioError: As size.
        """
        self._check_write(offset, memoryview(buffer).nbytes)
        self._backend.write(offset, buffer)

    def zero(self, offset: int, length: int) -> None:
        """Make length bytes at offset read as zeroes.

        Raises:
            As write.
        """
        self._check_write(offset, length)
        self._backend.zero(offset, length)

    def flush(self) -> None:
        """Bring everything that was written to stable storage.

        Raises:
            ovirt_imageio.common.backends.http.WritesLost: The server was restarted, or the ticket added anew. Bytes
                written since the last flush may be lost. A server of 2.x does not tell, so there the
                connection was lost. No flush of this client succeeds any more: write them again with another.
            ImageioError: The server failed: data may be lost, and no flush of this client succeeds any more.
        """
        self._backend.flush()

    def read_from(self, reader: Reader | BinaryIO, offset: int, length: int) -> None:
        """Upload length bytes of a reader to offset.

        Args:
            reader: Has `readinto(buffer)`, such as a binary file.
            offset: In the image.
            length: Bytes.

        Raises:
            ovirt_imageio.common.errors.PeerGone: The reader ended before; also a RuntimeError.
            As write.
        """
        self._check_write(offset, length)
        readable: Any = reader  # typing.BinaryIO has `readinto`, and does not say so
        self._backend.read_from(readable, offset, length)

    def write_to(self, writer: Writer, offset: int, length: int) -> None:
        """Download length bytes from offset into a writer.

        Args:
            writer: Has `write(buffer)`, such as a binary file. The buffer is reused
                after the call.
            offset: In the image.
            length: Bytes.

        Raises:
            As read.
        """
        self._check(offset, length)
        self._backend.write_to(writer, offset, length)

    def checksum(
        self,
        algorithm: str | None = None,
        block_size: int | None = None,
        *,
        offset: int = 0,
        length: int | None = None,
        blocks: bool = False,
    ) -> ChecksumResult:
        """Let the server compute the block hash of the image or of a range.

        Args:
            algorithm: Name for hashlib; None leaves it to the server: blake2b.
            block_size: Bytes; None leaves it to the server: 4 MiB.
            offset: Start of the range, a multiple of block_size.
            length: Bytes; None means to the end of the image.
            blocks: The digests of all blocks are wanted as well.

        Raises:
            ovirt_imageio.common.errors.UnsupportedOperation: The server has no checksums,
                or, if a range or blocks are asked for, none of ranges.
            ImageioError: As size.
        """
        return self._backend.checksum(
            algorithm=algorithm, block_size=block_size, offset=offset, length=length, blocks=blocks
        )

    def close(self) -> None:
        """Close the connection. Bytes that were not flushed may be lost. Idempotent."""
        self._backend.close()

    def __enter__(self) -> ImageioClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> int:
        try:
            self._backend.check_range(offset, length)
        except OutOfRange as e:
            raise OutOfBounds(str(e)) from e
        return length

    def _check_write(self, offset: int, length: int) -> None:
        try:
            self._backend.check_write(offset, length)
        except OutOfRange as e:
            raise OutOfBounds(str(e)) from e


def connect(
    url: str, cafile: str | None, *, secure: bool, proxy_url: str | None, buffer_size: int, patience: Patience
) -> HttpBackend:
    """Open an image for a transfer, which asks its server again if that is a moment late.

    Args:
        url: Transfer URL, `https://HOST:PORT/images/TICKET`.
        cafile: CA certificates to verify the server with; None means the system's.
        secure: Verify the server.
        proxy_url: The same image at another server, used when url cannot be connected.
        buffer_size: Bytes moved at a time where they pass through memory.
        patience: How long to wait and how often to try, and what ends it and all clones.

    Raises:
        As ImageioClient, and its `size`.
    """
    # requests takes longer to import than everything else together.
    from ovirt_imageio.common.backends.http import HttpBackend

    def once() -> HttpBackend:
        remote = HttpBackend(
            url,
            cafile=cafile,
            secure=secure,
            proxy_url=proxy_url,
            buffer_size=buffer_size,
            cancel=patience.cancel,
            **patience.times(),
        )
        try:
            remote.size  # noqa: B018 - the server is asked once, and all clones know
        except BaseException:
            remote.close()
            raise
        return remote

    return patience.persist(once, "reach the image", retry=patience.first_contact)
