# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of `ovirt-img` that move the disks of an oVirt engine."""

from __future__ import annotations

import argparse
import errno
import os
from typing import Any

from ovirt_imageio import client
from ovirt_imageio.client import commands, options, pipes, streaming
from ovirt_imageio.client.checking import check_layers
from ovirt_imageio.client.engine import Engine, load_sdk
from ovirt_imageio.client.layers import look
from ovirt_imageio.client.local import Source
from ovirt_imageio.client.options import UsageError
from ovirt_imageio.client.report import Report
from ovirt_imageio.common.errors import TransferError
from ovirt_imageio.common.qemu import img

_ISO_OFFSET = 0x8000
_ISO_MAGIC = b"\x01CD001\x01"
"""Volume descriptor of a CD image: type, standard identifier and version, ECMA-119 §8.1."""


def add_upload(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `upload-disk`."""
    commands.add_file(parser, "image to upload: raw, ISO, or any format that qemu reads; - for standard input, raw")
    options.add_engine(parser)
    options.add_tls(parser)
    group = parser.add_argument_group("disk")
    group.add_argument("-s", "--storage-domain", metavar="NAME", required=True, help="storage domain of the disk")
    group.add_argument(
        "-f", "--format", choices=("raw", "qcow2"), help="format of the disk (default qcow2, for an ISO raw)"
    )
    group.add_argument("--preallocated", action="store_true", help="allocate all of the disk, as raw on a LUN needs")
    group.add_argument("--disk-id", metavar="UUID", type=options.disk_id, help="id of the disk (else the engine's)")
    group.add_argument("--name", metavar="NAME", help="name of the disk (default: of the file)")
    group.add_argument("-d", "--description", metavar="TEXT", help="description of the disk")
    commands.add_source(parser)
    pipes.add_size(parser)
    commands.add_check(parser)
    options.add_transfer(parser)
    options.add_progress(parser)


def add_download(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `download-disk`."""
    parser.add_argument("disk_id", metavar="DISK_ID", type=options.disk_id, help="id of the disk")
    commands.add_file(parser, "image to make; - for standard output, with -f raw")
    options.add_engine(parser)
    options.add_tls(parser)
    commands.add_target(parser)
    # Not for an upload: a transfer that fails takes its disk with it.
    options.add_resume(parser)
    # Without a meaning for a download; 2.x takes it.
    parser.add_argument("-d", "--description", help=argparse.SUPPRESS)
    options.add_transfer(parser)
    options.add_progress(parser)


def upload(args: argparse.Namespace, section: dict[str, str], report: Report) -> None:
    """Make a disk and upload an image to it."""
    _check_stream(args)
    args.check = args.check and args.filename != pipes.STREAM
    settings = _engine(args, section)
    plan = properties(args)
    plan["description"] = settings.description or f"Uploaded by ovirt-img from {_name(args)}"
    with report.begin("checking the image" if args.check else "creating disk") as progress:
        if args.check:
            # Before there is a disk.
            check_layers(look(args.filename, **commands.source_arguments(args)))
            progress.phase = "creating disk"
        with Engine(settings) as engine:
            disk_id = engine.create_disk(storage_domain=args.storage_domain, disk_id=args.disk_id, **plan)
            progress.phase = "creating transfer"
            with engine.transfer(disk_id, "upload", storage_domain=args.storage_domain) as transfer:
                progress.phase = "uploading image"
                result = commands.upload_from(
                    args,
                    transfer.url,
                    settings.cafile,
                    secure=settings.secure,
                    proxy_url=transfer.proxy_url,
                    progress=progress,
                    check=False,
                )
                progress.phase = "finalizing transfer"
        progress.phase = "upload completed"
    report.finish(result, disk_id=disk_id)


def download(args: argparse.Namespace, section: dict[str, str], report: Report) -> None:
    """Download a disk."""
    pipes.check_download(args)
    settings = _engine(args, section)
    if args.filename != pipes.STREAM:
        _check_folder(args.filename)
    with report.begin("creating transfer") as progress:
        with Engine(settings) as engine:
            storage_domain = engine.storage_domain_of(args.disk_id)
            with engine.transfer(args.disk_id, "download", storage_domain=storage_domain) as transfer:
                progress.phase = "downloading image"
                result = commands.download_to(
                    args,
                    transfer.url,
                    settings.cafile,
                    secure=settings.secure,
                    proxy_url=transfer.proxy_url,
                    progress=progress,
                )
                progress.phase = "finalizing transfer"
        progress.phase = "download completed"
    report.finish(result)


def _check_folder(filename: str) -> None:
    """Refuse a file in what is no folder, before the engine locks the disk."""
    folder = os.path.dirname(os.path.abspath(filename))
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)


def _engine(args: argparse.Namespace, section: dict[str, str]) -> options.Engine:
    """Check arguments, then look for the SDK, and only then ask for the password."""
    settings = options.engine(args, section)
    load_sdk()
    return options.with_password(settings)


def _check_stream(args: argparse.Namespace) -> None:
    """Refuse standard input without what a disk is made with."""
    pipes.check_upload(args)
    if args.filename != pipes.STREAM:
        return
    if args.size is None:
        args.size = streaming.rest_of_file(0)
    if args.size is None:
        raise UsageError("give --size: the disk is made before standard input has told how much it has")
    if not args.name:
        raise UsageError("give --name: standard input has none for the disk")


def _name(args: argparse.Namespace) -> str:
    return "standard input" if args.filename == pipes.STREAM else os.path.basename(args.filename)


def properties(args: argparse.Namespace) -> dict[str, Any]:
    """Decide what the disk of an image is to be.

    Args:
        args: Of `upload-disk`.

    Returns:
        Arguments of `Engine.create_disk`.

    Raises:
        TransferError: The image has no bytes.
        As `client.info` and `client.measure`.
    """
    if args.filename == pipes.STREAM:
        size, iso = args.size, False
    else:
        image = client.info(args.filename, **commands.image_arguments(args))
        size, iso = image["virtual-size"], image["format"] == "raw" and _is_iso(args)
    if not size:
        raise TransferError(f"{_name(args)} has 0 bytes: an engine makes no disk of none")
    fmt = args.format or ("raw" if iso else "qcow2")
    # The engine refuses CD images that are not preallocated.
    sparse = not (args.preallocated or iso)
    stem = os.path.splitext(os.path.basename(args.member or args.filename))[0]
    result: dict[str, Any] = {
        "name": args.name or stem,
        "content_type": "iso" if iso else "data",
        "format": "cow" if fmt == "qcow2" else "raw",
        "sparse": sparse,
        "provisioned_size": size,
    }
    if fmt == "qcow2" and sparse:
        # On a LUN the engine allocates that much before it knows the data.
        result["initial_size"] = _room(args)
    if fmt == "qcow2" and not sparse:
        # The only kind of preallocated qcow2 disk that the engine makes.
        result["backup"] = "incremental"
    return result


def _room(args: argparse.Namespace) -> int:
    """Bytes that an image takes as qcow2; all of a stream could be data."""
    if args.filename == pipes.STREAM:
        return int(img.measure_size(args.size, "qcow2")["fully-allocated"])
    return int(client.measure(args.filename, "qcow2", **commands.source_arguments(args))["required"])


def _is_iso(args: argparse.Namespace) -> bool:
    with Source(look(args.filename, fmt=args.source_format, member=args.member), connections=1) as source:
        head = bytearray(len(_ISO_MAGIC))
        if source.size < _ISO_OFFSET + len(head):
            return False
        with source.open() as image:
            image.read_into(_ISO_OFFSET, head)
        return bytes(head) == _ISO_MAGIC
