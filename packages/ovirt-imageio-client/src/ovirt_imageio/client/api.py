# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The functions of the library that move whole images, up and down.

Each opens both ends and lets `transfer` do the rest.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Iterator

from ovirt_imageio.client import backing, plan
from ovirt_imageio.client.checking import check_layers
from ovirt_imageio.client.hashing import Follower
from ovirt_imageio.client.journal import Journal, place
from ovirt_imageio.client.layers import Path, look
from ovirt_imageio.client.local import Source
from ovirt_imageio.client.pairs import DownloadPair, UploadPair
from ovirt_imageio.client.patience import patience
from ovirt_imageio.client.plan import Step
from ovirt_imageio.client.progress import Counter, Progress, showing
from ovirt_imageio.client.remote import connect
from ovirt_imageio.client.result import TransferResult
from ovirt_imageio.client.staging import Staging
from ovirt_imageio.client.target import CLUSTER, FORMATS, Target
from ovirt_imageio.client.transfer import UNTOLD_LENGTH, Below, Transfer
from ovirt_imageio.client.verify import Scope
from ovirt_imageio.common import defaults
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import TransferError, UnsupportedOperation

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend

log = logging.getLogger(__name__)

BUFFER_SIZE = defaults.BUFFER_SIZE
"""Default of `buffer_size`, in bytes."""

MAX_WORKERS = defaults.MAX_WORKERS
"""Default of `max_workers`."""


def upload(
    filename: Path,
    url: str,
    cafile: str | None,
    buffer_size: int = BUFFER_SIZE,
    secure: bool = True,
    progress: Progress | None = None,
    proxy_url: str | None = None,
    max_workers: int = MAX_WORKERS,
    member: str | None = None,
    backing_chain: bool = True,
    disk_is_zero: bool = False,
    *,
    fmt: str | None = None,
    allow_external: bool = False,
    verify: bool = False,
    resume: bool = False,
    journal: Path | None = None,
    check: bool = True,
    timeout: float | None = None,
    retries: int | None = None,
    cancel: Cancel | None = None,
) -> TransferResult:
    """Upload an image to a disk; what is zero in the image is zeroed, not sent.

    A disk larger than the image keeps what it has past the image's end. Any thread may
    call it.

    Args:
        filename: Raw image or ISO, read as it is, or any image that qemu reads.
        url: Transfer URL, `https://HOST:PORT/images/TICKET`.
        cafile: CA certificates to verify the server with; None means the system's.
        buffer_size: Bytes moved at a time where they pass through memory.
        secure: Verify the server.
        progress: An object with `update(n)`, told `size` as well, or a function that is
            called with numbers of bytes. Several threads call it, one at a time.
        proxy_url: The same disk at another server, used when url cannot be connected.
        max_workers: Most connections; the server may allow fewer.
        member: Name of the image inside filename, a tar file (OVA).
        backing_chain: Upload what the backing chain holds as well. Else only the image's
            own data are uploaded, and the rest of the disk is left as it is.
        disk_is_zero: The disk reads as zeroes already: zeroes of the image are left out.
            Not heeded with `backing_chain=False`: a zero of the layer hides what the
            disk has below it.
        fmt: Format of the image, which is then not guessed from its content.
        allow_external: Allow an image that uses data files, devices, or protocols.
        verify: Compare both ends by block hashes at the end. Uploaded bytes are hashed
            on their way where they pass in order. With `backing_chain=False` the ranges that
            the image does not hold are not compared.
        resume: Keep a journal of what is on the disk's stable storage, and continue from
            the one that an earlier call left. That call may have had another ticket. The
            ranges that it did are compared at both ends first.
        journal: Where to keep it; None means beside the image.
        check: Refuse an image that is cut off or damaged, as far as `qemu-img check` can tell. Leaked
            clusters are only told in the log. Of a raw image nothing can be told.
        timeout: Seconds that the server may be silent before an attempt has failed. None means
            a minute, ten for what storage has to work for, and any time for a checksum.
        retries: How often in a row an attempt that failed for a passing reason is repeated, with
            growing pauses. None means 6 times, and 3 until the server has answered once.
        cancel: Ends the call from another thread, or from the handler of a signal: within a
            second, whatever it waits for. Nothing of the disk is touched afterwards.

    Returns:
        The work done: bytes by kind, seconds, retries, and the checksum if it was verified.

    Raises:
        UnsafeImage: The image refers to something that was not allowed.
        UnsupportedImage: It is packed, encrypted, or a part of another image.
        DamagedImage: It is cut off, or damaged.
        ImageInUse: A download is writing it, or another program lets none read it.
        SourceChanged: It was written to meanwhile; of a block device this is not noticed.
        TransferError: The image does not fit, or a failure did not pass.
        CannotResume: Image or disk changed since, or the journal is of something else.
        VerificationFailed: Both ends differ.
        OperationCancelled: cancel said so.
        ValueError: An argument makes no sense.
        OSError: The image cannot be read.
        ImageioError: The server refused; the text has its reason.
    """
    begun = time.monotonic()
    _check_numbers(buffer_size, max_workers)
    with ExitStack() as stack:
        terms = stack.enter_context(patience(timeout, retries, cancel))
        layers = look(filename, fmt=fmt, member=member, backing_chain=backing_chain, allow_external=allow_external)
        if check:
            with showing(progress, "checking the image"):
                check_layers(layers, cancel=terms.cancel)
        trusted = allow_external and backing_chain
        source = stack.enter_context(Source(layers, connections=max_workers, trusted=trusted, cancel=terms.cancel))
        way = connect(url, cafile, secure=secure, proxy_url=proxy_url, buffer_size=buffer_size, patience=terms)
        remote = stack.enter_context(way)
        _check_upload(remote, source.size, filename)
        record = None
        if resume:
            # A file grows meanwhile, up to the image's size.
            disk_size = max(remote.size, source.size)
            what = {"direction": "upload", "size": source.size, "disk size": disk_size, "format": layers[0].fmt}
            path = os.fspath(journal or place(os.fspath(filename), "upload", member=member))
            record = stack.enter_context(Journal(path, {**what, "backing chain": backing_chain}))
        transfer = Transfer(
            remote,
            source.open,
            source.size,
            progress=progress,
            workers=_bounded(max_workers, remote.capabilities.max_writers),
            journal=record,
            scope=_upload_scope(verify, backing_chain=backing_chain),
            below=None if backing_chain else Below("what the disk has below it"),
            patience=terms,
        )
        try:
            transfer.check_done()
            _send(transfer, source, remote, backing_chain=backing_chain, disk_is_zero=disk_is_zero)
            source.check_unchanged()
        except BaseException:
            left = "the disk is incomplete"
            if record is not None and not record.is_distrusted:
                left = f"{record.path} has what is done"
            _tell_left("upload", filename, transfer.counter, left, record)
            raise
        if record is not None:
            record.remove()
        return transfer.result(time.monotonic() - begun)


def download(
    url: str,
    filename: Path,
    cafile: str | None,
    fmt: str = "qcow2",
    incremental: bool = False,
    buffer_size: int = BUFFER_SIZE,
    secure: bool = True,
    progress: Progress | None = None,
    proxy_url: str | None = None,
    max_workers: int = MAX_WORKERS,
    backing_file: str | None = None,
    backing_format: str | None = None,
    *,
    verify: bool = False,
    shallow: bool = False,
    resume: bool = False,
    journal: Path | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    cancel: Cancel | None = None,
) -> TransferResult:
    """Download a disk to a new image; zeroes are not fetched and take no room.

    The image is built as FILENAME.part and renamed when all of it is on stable storage. So
    a file named FILENAME is complete, and until then the old file stays. The new file gets
    the owner, group, mode, ACL and attributes of the old one; other names of that (hard links)
    keep the old image. After a failure the part is removed, unless it can be resumed. Devices,
    and files that cannot be replaced, are written in place. Any thread may call it.

    Args:
        url: Transfer URL, `https://HOST:PORT/images/TICKET`.
        filename: The image to make, or a block device to write to.
        cafile: CA certificates to verify the server with; None means the system's.
        fmt: `qcow2`, or `raw`, which needs no qemu.
        incremental: Fetch only what changed since the checkpoint; for `qcow2`.
        buffer_size: Bytes moved at a time where they pass through memory.
        secure: Verify the server.
        progress: As for `upload`.
        proxy_url: The same disk at another server, used when url cannot be connected.
        max_workers: Most connections; the server may allow fewer.
        backing_file: Backing file that the qcow2 image gets; it must exist, and not be or
            need the image that is replaced. Ranges that the server reports as holes show it.
        backing_format: Format of the backing file; None looks at its content. Without a
            backing file it means nothing.
        verify: Read the image, through its backing files, and compare all of it with the
            server's disk by block hashes before it gets its name. An incremental image
            without backing file cannot be read as a disk. Its changed ranges are compared,
            and it must hold all of them and nothing else.
        shallow: The server shows one layer, not what is below it, as in a shallow transfer
            of the engine. With a backing file, `verify` compares what the layer holds.
        resume: Keep what was downloaded and a journal of it, and continue from what an
            earlier call left. That call may have had another ticket. The ranges that it
            did are compared at both ends first.
        journal: Where to keep it; None means beside the image.
        timeout: As for `upload`.
        retries: As for `upload`.
        cancel: As for `upload`. Nothing of the image is touched afterwards.

    Returns:
        The work done: bytes by kind, seconds, retries, and the checksum if it was verified.

    Raises:
        ImageInUse: Another download to this name is running, or a qemu has the image open.
        TransferError: A failure did not pass.
        CannotResume: Image or disk changed since, or the journal is of something else.
        VerificationFailed: Both ends differ.
        OperationCancelled: cancel said so.
        ValueError: An argument makes no sense.
        OSError: The image cannot be written.
        ImageioError: The server refused; the text has its reason.
    """
    begun = time.monotonic()
    _check_numbers(buffer_size, max_workers)
    _check_download(fmt, incremental, backing_file)
    if backing_file is not None:
        backing.check(os.fspath(filename), backing_file, backing_format)
    with ExitStack() as stack:
        terms = stack.enter_context(patience(timeout, retries, cancel))
        staging = stack.enter_context(Staging(os.fspath(filename)))
        way = connect(url, cafile, secure=secure, proxy_url=proxy_url, buffer_size=buffer_size, patience=terms)
        remote = stack.enter_context(way)
        if backing_file is not None:
            backing.note_size(os.fspath(filename), backing_file, backing_format, size=remote.size, cancel=terms.cancel)
        # Before a file is made: this may be what the server refuses.
        extents = terms.persist(lambda: remote.extents("dirty" if incremental else "zero"), "list the extents")
        record = None
        if resume:
            what = {"direction": "download", "size": remote.size, "format": fmt, "incremental": incremental}
            what["backing file"] = backing_file
            if backing_file is not None:
                # The image that was begun has it in its header.
                found = backing_format or backing.format_of(os.path.realpath(filename), backing_file)
                what["backing format"] = found
            path = os.fspath(journal or place(os.fspath(filename), "download"))
            record = stack.enter_context(Journal(path, what))
        below = _below(incremental, backing_file)
        counter = Counter(None, remote.size)
        try:
            staging.begin(journal=record, sealed=below is not None, raw=fmt == "raw")
            with Target(
                staging.path,
                fmt,
                remote.size,
                connections=max_workers,
                backing_file=backing_file,
                backing_format=backing_format,
                create=not staging.kept,
                cancel=terms.cancel,
                held=staging.fd,
            ) as target:
                transfer = Transfer(
                    remote,
                    target.open,
                    remote.size,
                    progress=progress,
                    workers=_bounded(max_workers, remote.capabilities.max_readers),
                    journal=record,
                    scope=_download_scope(verify, incremental, backing_file, shallow),
                    below=below,
                    patience=terms,
                )
                counter = transfer.counter
                if record is not None and not staging.kept:
                    staging.sync()
                transfer.check_done()
                _fetch(transfer, target, remote, extents, incremental, backing_file is not None)
            terms.cancel.check()
            staging.commit(terms.cancel)
        except BaseException as e:
            if isinstance(e, OSError) and e.errno == errno.ENOSPC and not e.filename:
                e.filename = staging.path
            left = f"{filename} is {staging.state}"
            if record is not None and staging.is_lost:
                record.distrust()
            if record is None or record.is_distrusted:
                staging.discard()
                if record is not None and not staging.in_place:
                    record.remove()  # of a part that is gone it tells nothing
                    record = None
            elif staging.is_left:
                left = f"{staging.path} and {record.path} are kept"
            _tell_left("download", filename, counter, left, record)
            raise
        if record is not None:
            record.remove()
        return transfer.result(time.monotonic() - begun)


def _send(transfer: Transfer, source: Source, remote: HttpBackend, *, backing_chain: bool, disk_is_zero: bool) -> None:
    """Upload a source that is open."""
    # A zero of a single layer hides what the disk has below. An earlier run may have
    # written something where it did not get to the end. A file that is yet to grow is given its
    # size by the zeroes at the end of the image.
    disk_is_zero = disk_is_zero and backing_chain and not transfer.resumed and source.size <= remote.size

    def open_pair(follower: Follower | None) -> UploadPair:
        return UploadPair(
            source.open(),
            remote.clone(),
            detect_zeroes=source.hides_zeroes,
            disk_is_zero=disk_is_zero,
            follower=follower,
        )

    with source.open() as listing:
        extents: Any = listing.extents("zero")
        steps = plan.upload_steps(
            extents, disk_is_zero=disk_is_zero, backing_chain=backing_chain, copy_limit=transfer.copy_limit
        )
        transfer.run(open_pair, steps, flush_length=None if remote.tells_restarts else UNTOLD_LENGTH)


def _fetch(
    transfer: Transfer,
    target: Target,
    remote: HttpBackend,
    extents: Iterator[Any],
    incremental: bool,
    has_backing: bool,
) -> None:
    """Download into a target that is open."""
    is_zero = target.reads_zero and not transfer.resumed
    skip = target.is_file and is_zero
    limit = transfer.copy_limit
    steps: Iterator[Step]
    if incremental:
        steps = plan.incremental_steps(extents, cluster=None if has_backing else CLUSTER, copy_limit=limit)
    else:
        steps = plan.download_steps(extents, has_backing=has_backing, target_is_zero=is_zero, copy_limit=limit)
    # A download is verified by reading the image: the data are not hashed on their way there.
    transfer.run(lambda _: DownloadPair(remote.clone(), target.open(), skip_zeroes=skip), steps)


def _upload_scope(verify: bool, *, backing_chain: bool) -> Scope | None:
    """Choose what of an upload is compared."""
    if not verify:
        return None
    return Scope.WHOLE if backing_chain else Scope.MOVED


def _download_scope(verify: bool, incremental: bool, backing_file: str | None, shallow: bool) -> Scope | None:
    """Choose what of a download is compared."""
    if not verify:
        return None
    if backing_file is None:
        return Scope.HELD if incremental else Scope.WHOLE
    return Scope.MOVED if shallow else Scope.WHOLE


def _below(incremental: bool, backing_file: str | None) -> Below | None:
    """Say what shows where nothing is downloaded."""
    if backing_file is None:
        return Below("a backing file that it gets later") if incremental else None
    name = f"the backing file {backing_file!r}"
    if incremental:
        return Below(name, ", which is not what the disk was at the checkpoint")
    shallow = "; if the server shows one layer alone, pass shallow=True"
    return Below(name, f", and the server's disk has a hole there{shallow}")


def _tell_left(what: str, filename: Path, counter: Counter, left: str, record: Journal | None) -> None:
    """Say what a failure leaves behind, and if it can be continued."""
    how = "run it again with resume=True to continue" if record is not None else "nothing can be resumed"
    log.warning(
        "The %s of %s ended after %d of %d bytes: %s; %s", what, filename, counter.done, counter.size, left, how
    )


def _check_numbers(buffer_size: int, max_workers: int) -> None:
    if max_workers < 1:
        raise ValueError(f"invalid max_workers {max_workers}: expected 1 or more")
    if buffer_size < 1:
        raise ValueError(f"invalid buffer_size {buffer_size}: expected 1 byte or more")


def _check_upload(remote: HttpBackend, size: int, filename: Path) -> None:
    if remote.capabilities.read_only:
        raise UnsupportedOperation("the ticket does not allow writing to this disk")
    if not size and remote.size:
        raise TransferError(f"{os.fspath(filename)} has 0 bytes: nothing would reach the disk of {remote.size} bytes")
    if size > remote.max_size:
        raise TransferError(f"the image of {size} bytes does not fit: the disk has {remote.max_size} bytes")


def _check_download(fmt: str, incremental: bool, backing_file: str | None) -> None:
    if fmt not in FORMATS:
        raise ValueError(f"invalid format {fmt!r} to download to: expected one of {', '.join(FORMATS)}")
    if fmt == "raw" and (incremental or backing_file):
        what = "an incremental download" if incremental else f"the backing file {backing_file!r}"
        raise ValueError(f"{what} needs the format 'qcow2', not 'raw'")


def _bounded(max_workers: int, limit: int) -> int:
    return max(1, min(max_workers, limit))
