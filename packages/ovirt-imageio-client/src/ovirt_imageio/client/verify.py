# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparing both ends of a transfer by their block hashes.

Both ends are hashed at the same time. A disk may be larger than the image uploaded to
it; then the blocks that the image fills are compared by their digests, and the rest of
its last block byte by byte.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

from ovirt_imageio.common import defaults, imagesapi
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.checksum import DEFAULT_ALGORITHM, DEFAULT_BLOCK_SIZE, ChecksumResult, checksum
from ovirt_imageio.common.errors import TransferError, UnsupportedOperation

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend


class VerificationFailed(TransferError):
    """Both ends of a transfer hold different data. The text names where."""


def local_checksum(
    open_image: Callable[[], Backend],
    *,
    block_size: int = DEFAULT_BLOCK_SIZE,
    algorithm: str = DEFAULT_ALGORITHM,
    blocks: bool = False,
    threads: int = defaults.MAX_WORKERS,
) -> ChecksumResult:
    """Hash an image on this machine.

    Args:
        open_image: Opens it, once for each thread and once for its extents.
        block_size: Bytes of a block.
        algorithm: One of `checksum.algorithms()`.
        blocks: The digests of the blocks are wanted as well.
        threads: Threads that hash.

    Raises:
        ValueError: An argument makes no sense.
        What the image raises.
    """
    with contextlib.ExitStack() as stack:
        listing = stack.enter_context(open_image())
        sources = [stack.enter_context(open_image()) for _ in range(threads)]
        extents: Any = listing.extents("zero")
        return checksum(sources, extents=extents, block_size=block_size, algorithm=algorithm, blocks=blocks)


def require_checksum(remote: HttpBackend, size: int) -> None:
    """Make sure before a transfer that it can be verified after it.

    Raises:
        UnsupportedOperation: The server does not offer what is needed.
    """
    feature = imagesapi.FEATURE_CHECKSUM if size == remote.size else imagesapi.FEATURE_CHECKSUM_RANGE
    if feature not in remote.features:
        raise UnsupportedOperation(
            f"cannot verify: the server does not offer {feature!r}, only {sorted(remote.features)}"
        )


def verify(remote: HttpBackend, open_image: Callable[[], Backend], size: int) -> None:
    """Make sure that an image is what the server has, up to the image's size.

    Args:
        remote: The server's end.
        open_image: Opens the local end.
        size: Bytes of the local end.

    Raises:
        VerificationFailed: They differ.
        UnsupportedOperation: The server does not offer what is needed.
    """
    require_checksum(remote, size)
    by_block = imagesapi.FEATURE_CHECKSUM_RANGE in remote.features
    with ThreadPoolExecutor(1, "verify") as thread:
        theirs = thread.submit(
            remote.checksum, algorithm=DEFAULT_ALGORITHM, block_size=DEFAULT_BLOCK_SIZE, blocks=by_block
        )
        ours = local_checksum(open_image, blocks=by_block)
        answer = theirs.result()
    if ours.blocks is None or answer.blocks is None:
        if ours.checksum != answer.checksum:
            raise VerificationFailed(f"the image has the checksum {ours.checksum}, the server's {answer.checksum}")
        return
    _compare_blocks(ours.blocks, answer.blocks, size, same_size=size == remote.size)
    if size != remote.size:
        _compare_tail(remote, open_image, size)


def _compare_blocks(ours: tuple[str, ...], theirs: tuple[str, ...], size: int, *, same_size: bool) -> None:
    count = len(ours) if same_size else size // DEFAULT_BLOCK_SIZE
    if len(theirs) < count:
        raise VerificationFailed(f"the server hashed {len(theirs)} blocks, expected {count}")
    for number in range(count):
        if ours[number] != theirs[number]:
            start = number * DEFAULT_BLOCK_SIZE
            length = min(DEFAULT_BLOCK_SIZE, size - start)
            raise VerificationFailed(f"block {number} differs from the server's: {length} bytes at {start}")


def _compare_tail(remote: HttpBackend, open_image: Callable[[], Backend], size: int) -> None:
    start = size // DEFAULT_BLOCK_SIZE * DEFAULT_BLOCK_SIZE
    ours, theirs = bytearray(size - start), bytearray(size - start)
    with open_image() as image:
        image.read_into(start, ours)
    remote.read_into(start, theirs)
    if ours != theirs:
        raise VerificationFailed(f"the last block differs from the server's: {size - start} bytes at {start}")
