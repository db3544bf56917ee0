# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The functions of the library that look at an image on this machine; no server is asked."""

from __future__ import annotations

import os
from typing import Any, Iterator, overload

from ovirt_imageio.client.hashing import local_checksum
from ovirt_imageio.client.layers import Path, find_member, look
from ovirt_imageio.client.local import Source, backing_node
from ovirt_imageio.client.patience import check_cancel
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.checksum import DEFAULT_ALGORITHM, DEFAULT_BLOCK_SIZE
from ovirt_imageio.common.extents import DirtyExtent, Extent, ZeroExtent
from ovirt_imageio.common.qemu import img


def info(
    filename: Path, member: str | None = None, *, fmt: str | None = None, allow_external: bool = False
) -> dict[str, Any]:
    """Describe an image as `qemu-img info --output json` does. Raw images need no qemu.

    Args:
        filename: Path of the image, or of a tar file.
        member: Name of the image inside the tar file.
        fmt: Format of the image, which is then not guessed from its content.
        allow_external: Allow an image that uses data files, devices, or protocols.

    Returns:
        `virtual-size` (bytes), `format`, `filename`, `actual-size` (bytes), and what
        qemu-img knows about the format; for a member `member-offset` and `member-size`
        (bytes) as well.

    Raises:
        UnsafeImage: The image keeps its data in another file, which was not allowed.
        UnsupportedImage: It is packed, encrypted, or a part of another image.
        QemuImgError: qemu-img is missing, or cannot read the image.
        OSError: The file cannot be read.
    """
    top = look(filename, fmt=fmt, member=member, backing_chain=False, allow_external=allow_external)[0]
    if top.driver == "raw":
        status = os.stat(top.path)
        size = top.size
        if size is None:
            with Source([top]) as source:
                size = source.size
        result: dict[str, Any] = {
            "virtual-size": size,
            "filename": top.path,
            "format": top.fmt,
            "actual-size": status.st_blocks * 512,
            "dirty-flag": False,
        }
    else:
        result = img.info(top.path, fmt=top.fmt, offset=top.offset, size=top.size, options=top.options)
        result["filename"] = top.path
    if member is not None:
        result["member-offset"], result["member-size"] = find_member(top.path, member)
    return result


def measure(
    filename: Path,
    dst_fmt: str,
    member: str | None = None,
    *,
    fmt: str | None = None,
    backing_chain: bool = True,
    allow_external: bool = False,
) -> dict[str, Any]:
    """Tell how much room an image needs in another format. Raw to raw needs no qemu.

    Args:
        filename: Path of the image, or of a tar file.
        dst_fmt: Format to measure for, such as `raw` or `qcow2`.
        member: Name of the image inside the tar file.
        fmt: Format of the image, which is then not guessed from its content.
        backing_chain: Measure what the backing chain holds as well, as `upload` sends it.
        allow_external: Allow an image that uses data files, devices, or protocols.

    Returns:
        `required` and `fully-allocated` in bytes, maybe `bitmaps`; for a member
        `member-offset` and `member-size` as well.

    Raises:
        UnsafeImage: The image refers to something that was not allowed.
        QemuImgError: qemu-img is missing, or cannot read the image.
        OSError: The file cannot be read.
    """
    layers = look(filename, fmt=fmt, member=member, backing_chain=backing_chain, allow_external=allow_external)
    top = layers[0]
    if (top.driver, dst_fmt) == ("raw", "raw"):
        with Source(layers) as source:
            result: dict[str, Any] = {"required": source.size, "fully-allocated": source.size}
    else:
        backing = backing_node(layers)
        result = img.measure(
            top.path,
            dst_fmt,
            fmt=top.driver,
            offset=top.offset,
            size=top.size,
            options=top.options,
            backing_chain=backing is not None or (allow_external and backing_chain),
            backing=backing,
        )
    if member is not None:
        result["member-offset"], result["member-size"] = find_member(top.path, member)
    return result


def checksum(
    filename: Path,
    member: str | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    algorithm: str = DEFAULT_ALGORITHM,
    detect_zeroes: bool = True,
    *,
    fmt: str | None = None,
    allow_external: bool = False,
    cancel: Cancel | None = None,
) -> dict[str, Any]:
    """Compute the block hash of an image, equal to what a server answers for its disk.

    Args:
        filename: Path of the image, or of a tar file.
        member: Name of the image inside the tar file.
        block_size: Bytes of a block, 1 or more. A server takes 1 MiB to 16 MiB, and
            multiples of 4096.
        algorithm: Name of an algorithm of fixed digest length, see hashlib.
        detect_zeroes: Kept for 2.x programs; zeroes are always looked for, which
            changes the time it takes and never the result.
        fmt: Format of the image, which is then not guessed from its content.
        allow_external: Allow an image that uses data files, devices, or protocols.
        cancel: Ends the call from another thread.

    Returns:
        `algorithm`, `block_size` (bytes) and `checksum` (hexadecimal).

    Raises:
        ValueError: The algorithm is not supported, or the block size below 1.
        UnsafeImage: The image refers to something that was not allowed.
        SourceChanged: The image was written to meanwhile.
        OperationCancelled: cancel said so.
        OSError: The image cannot be read.
    """
    check_cancel(cancel)
    layers = look(filename, fmt=fmt, member=member, allow_external=allow_external)
    with Source(layers, trusted=allow_external, cancel=cancel) as source:
        result = local_checksum(source.open, block_size=block_size, algorithm=algorithm, cancel=cancel)
        source.check_unchanged()
    return {"algorithm": result.algorithm, "block_size": result.block_size, "checksum": result.checksum}


@overload
def extents(
    filename: Path,
    member: str | None = None,
    bitmap: None = None,
    *,
    fmt: str | None = None,
    allow_external: bool = False,
) -> Iterator[ZeroExtent]: ...


@overload
def extents(
    filename: Path,
    member: str | None,
    bitmap: str,
    *,
    fmt: str | None = None,
    allow_external: bool = False,
) -> Iterator[DirtyExtent]: ...


@overload
def extents(
    filename: Path,
    member: str | None = None,
    *,
    bitmap: str,
    fmt: str | None = None,
    allow_external: bool = False,
) -> Iterator[DirtyExtent]: ...


@overload
def extents(
    filename: Path,
    member: str | None = None,
    bitmap: str | None = None,
    *,
    fmt: str | None = None,
    allow_external: bool = False,
) -> Iterator[Extent]: ...


def extents(
    filename: Path,
    member: str | None = None,
    bitmap: str | None = None,
    *,
    fmt: str | None = None,
    allow_external: bool = False,
) -> Iterator[Extent]:
    """Iterate over the extents of an image, like the server's `/extents`.

    Args:
        filename: Path of the image, or of a tar file.
        member: Name of the image inside the tar file.
        bitmap: Name of a dirty bitmap: changed ranges are told. Ranges that read as zeroes
            are told of the whole chain, as without it.
        fmt: Format of the image, which is then not guessed from its content.
        allow_external: Allow an image that uses data files, devices, or protocols.

    Yields:
        ZeroExtent, or DirtyExtent with bitmap; in order, covering the image.

    Raises:
        UnsafeImage: The image refers to something that was not allowed.
        OSError: The image cannot be read.
    """
    layers = look(filename, fmt=fmt, member=member, allow_external=allow_external)
    with Source(layers, connections=1, bitmap=bitmap, trusted=allow_external) as source, source.open() as backend:
        yield from backend.extents("dirty" if bitmap else "zero")
