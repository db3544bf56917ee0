# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw images that come from standard input, or go to standard output.

A stream has one order and is seen once. So one worker moves it, from its first byte to the last:

    standard input ──► window, the last 8 MiB stay ──► PUT of what is data, PATCH of what is zero
    GET of data, zeroes of holes ──► standard output

A step that fails for a passing reason is done again. An upload repeats it from the window, a
download from the byte that was not written yet. A stream cannot be read again, so it cannot be
resumed or verified. Its size must be known: a pipe whose writer has died ends like one that is
complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import stat
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, NoReturn

from ovirt_imageio.client import formats, packed, plan
from ovirt_imageio.client.executor import Executor, Pair
from ovirt_imageio.client.pairs import DownloadPair, UploadPair
from ovirt_imageio.client.patience import Patience, patience
from ovirt_imageio.client.plan import Action, Step
from ovirt_imageio.client.progress import Counter, Progress
from ovirt_imageio.client.remote import connect
from ovirt_imageio.client.result import TransferResult, make_result
from ovirt_imageio.client.unchanged import Unchanged
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend, Capabilities
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ImageioError, ServerGone, TransferError, UnsupportedOperation
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.units import MiB

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend

log = logging.getLogger(__name__)

STEP = 8 * MiB
"""Bytes that can be sent once more; the cost of a request is no longer measurable."""

_AS_IT_IS = 'pass fmt="raw" if the disk shall hold it as it is'

_LOOK = 0.2
"""Seconds of a wait for the other program, between two looks if it was cancelled."""


class StreamEnded(TransferError):
    """The input has another length than the image it was said to be."""


class ReaderGone(ImageioError):
    """The program that reads the output has left."""


def upload(
    fd: int,
    url: str,
    cafile: str | None,
    *,
    size: int | None = None,
    is_raw: bool = False,
    disk_is_zero: bool = False,
    secure: bool = True,
    proxy_url: str | None = None,
    progress: Progress | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    cancel: Cancel | None = None,
    name: str = "standard input",
) -> TransferResult:
    """Upload a raw image that is read once, in order.

    Args:
        fd: Descriptor to read from.
        url: Transfer URL.
        cafile: As for `api.upload`, and so are those that are not named here.
        size: Bytes of the image; None means those that a file has from here on, else those of
            the disk.
        is_raw: It is a raw image, whatever its first bytes look like.
        disk_is_zero: The disk reads as zeroes already.
        secure: Verify the server.
        proxy_url: The same disk at another server.
        progress: As for `api.upload`.
        timeout: As for `api.upload`.
        retries: As for `api.upload`.
        cancel: As for `api.upload`.
        name: Of the input, for messages.

    Raises:
        StreamEnded: It ended before, or goes on after that size.
        SourceChanged: It is a file that was written to meanwhile.
        UnsupportedOperation: It is no raw image, or the disk cannot be written.
        As api.upload.
    """
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        terms = stack.enter_context(patience(timeout, retries, cancel))
        way = connect(url, cafile, secure=secure, proxy_url=proxy_url, buffer_size=defaults.BUFFER_SIZE, patience=terms)
        remote = stack.enter_context(way)
        size = size if size is not None else rest_of_file(fd)
        source = Input(fd, _disk_size(remote, name) if size is None else size, name=name, cancel=terms.cancel)
        _check_upload(remote, source.size, name)
        if not is_raw:
            source.refuse_other_formats()
        counter = Counter(progress, source.size)
        steps = plan.split(Step(Action.COPY, 0, source.size), STEP) if source.size else iter(())
        with _telling(f"upload of {name}", counter, "the disk is incomplete"):
            _upload(source, remote, steps, counter, terms, disk_is_zero=disk_is_zero)
            source.check_end()
            if not is_raw:
                source.refuse_other_tail()
        return make_result(counter, remote, terms, seconds=time.monotonic() - begun)


def download(
    url: str,
    fd: int,
    cafile: str | None,
    *,
    secure: bool = True,
    proxy_url: str | None = None,
    progress: Progress | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    cancel: Cancel | None = None,
    name: str = "standard output",
) -> TransferResult:
    """Download a disk as a raw image that is written once, in order.

    Zeroes are written, but for the end of a file, which grows without them.

    Args:
        url: Transfer URL.
        fd: Descriptor to write to.
        cafile: As for `api.download`, and so are those that are not named here.
        secure: Verify the server.
        proxy_url: The same disk at another server.
        progress: As for `api.upload`.
        timeout: As for `api.upload`.
        retries: As for `api.upload`.
        cancel: As for `api.upload`.
        name: Of the output, for messages.

    Raises:
        ReaderGone: The other end of the pipe was closed.
        As api.download.
    """
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        terms = stack.enter_context(patience(timeout, retries, cancel))
        way = connect(url, cafile, secure=secure, proxy_url=proxy_url, buffer_size=defaults.BUFFER_SIZE, patience=terms)
        remote = stack.enter_context(way)
        extents: Any = terms.persist(lambda: remote.extents("zero"), "list the extents")
        target = Output(fd, remote.size, name=name, cancel=terms.cancel)
        counter = Counter(progress, remote.size)
        with _telling(f"download to {name}", counter, "the output is incomplete"):
            _run(lambda: DownloadPair(remote.clone(), target), _steps(extents), counter, terms)
        return make_result(counter, remote, terms, seconds=time.monotonic() - begun)


def _upload(
    source: Input, remote: HttpBackend, steps: Iterator[Step], counter: Counter, terms: Patience, *, disk_is_zero: bool
) -> None:
    """Do the steps of an upload.

    A server that does not tell if it was restarted is let flush after each step, which the window still has. Of
    another it is known: then what was sent is gone at both ends.
    """

    def open_pair() -> UploadPair:
        return UploadPair(source, remote.clone(), detect_zeroes=True, disk_is_zero=disk_is_zero)

    told = remote.tells_restarts
    try:
        _run(open_pair, steps, counter, terms, flush_length=None if told else STEP, can_redo=not told)
    except ServerGone as e:
        from ovirt_imageio.common.backends.http import WritesLost

        if isinstance(e, WritesLost):
            raise TransferError(f"{e}; {source.name} cannot be read again") from e
        raise


def _run(
    open_pair: Callable[[], Pair], steps: Iterator[Step], counter: Counter, terms: Patience, **manner: Any
) -> None:
    """Do the steps in their order, which one worker keeps."""
    Executor(open_pair, counter, workers=1, **manner, **terms.manner()).run(steps)


@contextlib.contextmanager
def _telling(what: str, counter: Counter, left: str) -> Iterator[None]:
    """Say what a failure leaves behind; a reader that has left knows it."""
    try:
        yield
    except ReaderGone:
        raise
    except BaseException:
        text = "The %s ended after %d of %d bytes: %s; nothing can be resumed"
        log.warning(text, what, counter.done, counter.size, left)
        raise


def _steps(extents: Iterator[ZeroExtent]) -> Iterator[Step]:
    return plan.download_steps(extents, target_is_zero=False, copy_limit=defaults.EXTENT_LIMIT)


def _check_upload(remote: HttpBackend, size: int, name: str) -> None:
    if remote.capabilities.read_only:
        raise UnsupportedOperation("the ticket does not allow writing to this disk")
    if not size and remote.size:
        raise TransferError(f"{name} has 0 bytes: nothing would reach the disk of {remote.size} bytes")
    if size > remote.max_size:
        raise TransferError(f"{name}: an image of {size} bytes does not fit: the disk has {remote.max_size} bytes")


def _disk_size(remote: HttpBackend, name: str) -> int:
    """Bytes that a stream without a length of its own is to have."""
    if not remote.size and remote.max_size:
        raise TransferError(f"nothing tells how long {name} is, and the disk has 0 bytes until it grows: pass size=N")
    return remote.size


def rest_of_file(fd: int) -> int | None:
    """Bytes from here to the end of a file or a device; None for what tells no length, such as a pipe."""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            here = os.lseek(fd, 0, os.SEEK_CUR)
            end = os.lseek(fd, 0, os.SEEK_END)
            os.lseek(fd, here, os.SEEK_SET)
            return max(end - here, 0)
    except OSError:
        pass
    return None


class Input(Backend):
    """A stream that is read in order, of which the last bytes can be read again. One thread.

    Args:
        fd: Descriptor; it stays open.
        size: Bytes that it is to have.
        name: For messages.
        cancel: Ends a wait for the other program.

    Attributes:
        name: As given.

    offset        |  forgotten  |  can be read again  |  not read yet  |
    window                      |=====================|
                                _start                 _end
    """

    def __init__(self, fd: int, size: int, *, name: str, cancel: Cancel) -> None:
        self.size = size
        self.capabilities = Capabilities(read_only=True)
        self._fd = fd
        self.name = name
        self._cancel = cancel
        self._unchanged = Unchanged(fd, name)
        self._window = memoryview(bytearray(2 * STEP))
        self._start = self._end = 0

    def read_into(self, offset: int, buf: Buffer) -> None:
        """Fill buf from the window, and from the stream behind it."""
        with memoryview(buf) as raw, raw.cast("B") as view:
            self._read_to(offset + len(view))
            first = offset - self._start
            assert first >= 0, "what was forgotten is not read again"
            view[:] = self._window[first : first + len(view)]

    def refuse_other_formats(self) -> None:
        """Look at the first bytes, and at the last ones if it is a file.

        Raises:
            UnsupportedOperation: They are those of an image that is not raw, or packed.
        """
        tail = self._tail_of_file()
        head = bytearray(min(formats.PROBE_SIZE, self.size))
        self.read_into(0, head)
        self._refuse(formats.probe(bytes(head), tail))
        how = packed.recognise(bytes(head), self.name)
        if how is not None:
            raise UnsupportedOperation(f"{self.name} is {how.how}: unpack it on its way here; or {_AS_IT_IS}")

    def refuse_other_tail(self) -> None:
        """Look at the last bytes, which were read: some formats have their mark there.

        Raises:
            UnsupportedOperation: They are those of an image that is not raw.
        """
        length = min(formats.TAIL_SIZE, self.size)
        tail = bytearray(length)
        self.read_into(self.size - length, tail)
        self._refuse(formats.probe(b"", bytes(tail)))

    def check_end(self) -> None:
        """Make sure that nothing follows, and that a file was not written to.

        Raises:
            StreamEnded: Something does.
            SourceChanged: It was.
        """
        self._unchanged.check(self._fd)
        if self._receive(memoryview(bytearray(1))):
            raise StreamEnded(f"{self.name} has more than the {self.size} bytes of the image")

    def _tail_of_file(self) -> bytes:
        """The last bytes of a file that was not read yet; none of what passes once."""
        if self.size < formats.TAIL_SIZE or rest_of_file(self._fd) is None:
            return b""
        begin = os.lseek(self._fd, 0, os.SEEK_CUR)
        with _named(self.name):
            return os.pread(self._fd, formats.TAIL_SIZE, begin + self.size - formats.TAIL_SIZE)

    def _refuse(self, fmt: str) -> None:
        if fmt != "raw":
            raise UnsupportedOperation(
                f"{self.name} is a {fmt} image, and only raw ones can be read from it: "
                f"save it to a file; or {_AS_IT_IS}"
            )

    def write(self, offset: int, buf: Buffer) -> None:
        """Refuse."""
        raise UnsupportedOperation(f"{self.name} is only read")

    def zero(self, offset: int, length: int) -> None:
        """Refuse."""
        raise UnsupportedOperation(f"{self.name} is only read")

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def close(self) -> None:
        """Leave it open: it goes on with the next worker's connection."""

    def _read_to(self, offset: int) -> None:
        while self._end < offset:
            if self._end - self._start == len(self._window):
                self._window[:STEP] = self._window[STEP:]
                self._start += STEP
            free = self._window[self._end - self._start :]
            count = self._receive(free[: self.size - self._end])
            if not count:
                raise StreamEnded(
                    f"{self.name} ended after {self._end} of {self.size} bytes; pass size=N if that is all"
                )
            self._end += count

    def _receive(self, view: memoryview) -> int:
        with _named(self.name):
            while True:
                _wait_for(self._fd, select.POLLIN, self._cancel)
                with contextlib.suppress(BlockingIOError):
                    return os.readv(self._fd, [view])


class Output(Backend):
    """A stream that is written in order. One thread.

    Args:
        fd: Descriptor; it stays open.
        size: Bytes that it gets.
        name: For messages.
        cancel: Ends a wait for the other program.
    """

    def __init__(self, fd: int, size: int, *, name: str, cancel: Cancel) -> None:
        self.size = size
        self.capabilities = Capabilities()
        self._fd = fd
        self._name = name
        self._cancel = cancel
        self._position = 0
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)

    def read_into(self, offset: int, buf: Buffer) -> None:
        """Refuse."""
        raise UnsupportedOperation(f"{self._name} is only written")

    def write(self, offset: int, buf: Buffer) -> None:
        """Write all of buf, which follows what was written before."""
        assert offset == self._position, "a stream has one order"
        with memoryview(buf) as raw, raw.cast("B") as view:
            done = 0
            with _named(self._name):
                while done < len(view):
                    _wait_for(self._fd, select.POLLOUT, self._cancel)
                    with contextlib.suppress(BlockingIOError):
                        done += os.write(self._fd, view[done : done + defaults.PIECE])
            self._position += len(view)

    def zero(self, offset: int, length: int) -> None:
        """Write zeroes, or let a file grow at its end."""
        assert offset == self._position, "a stream has one order"
        if self._is_file and self._grow(length):
            self._position += length
            return
        zeroes = memoryview(bytes(min(length, defaults.PIECE)))
        end = offset + length
        while self._position < end:
            self.write(self._position, zeroes[: end - self._position])

    def flush(self) -> None:
        """Bring a file to stable storage."""
        if self._is_file:
            with _named(self._name):
                os.fsync(self._fd)

    def close(self) -> None:
        """Leave it open: it goes on with the next worker's connection."""

    def _grow(self, length: int) -> bool:
        """Append a hole, if nothing of the file lies behind."""
        end = os.fstat(self._fd).st_size
        appends = bool(_flags(self._fd) & os.O_APPEND)
        if not appends and os.lseek(self._fd, 0, os.SEEK_CUR) != end:
            return False
        with _named(self._name):
            os.ftruncate(self._fd, end + length)
            os.lseek(self._fd, 0, os.SEEK_END)
        return True


def _flags(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def _wait_for(fd: int, event: int, cancel: Cancel) -> None:
    """Wait until the other program sends or takes something, or has left; poll(2)."""
    poll = select.poll()
    poll.register(fd, event)
    while True:
        cancel.check()
        if poll.poll(_LOOK * 1000):
            return


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        _raise(e, name)


def _raise(error: OSError, name: str) -> NoReturn:
    """Name the stream. No failure of it passes, not even that of a socket which is one."""
    if error.errno == errno.EPIPE:
        raise ReaderGone(f"{name}: {error.strerror}") from error
    if isinstance(error, (ConnectionError, TimeoutError)):
        raise TransferError(f"{name}: {error.strerror}") from error
    raise OSError(error.errno, error.strerror, name) from error
