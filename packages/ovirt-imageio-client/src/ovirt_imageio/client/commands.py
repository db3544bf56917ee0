# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of `ovirt-img` that need no engine.

`info`, `extents` and `checksum` take a file, or the URL of a disk at a server.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any, Iterable

from ovirt_imageio import client
from ovirt_imageio.client import options, pipes, streaming
from ovirt_imageio.client.options import UsageError
from ovirt_imageio.client.report import Report
from ovirt_imageio.client.target import FORMATS
from ovirt_imageio.common.checksum import DEFAULT_ALGORITHM, DEFAULT_BLOCK_SIZE
from ovirt_imageio.common.extents import Extent
from ovirt_imageio.common.standard import show
from ovirt_imageio.common.units import format_size

_URL = re.compile(r"https?://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Tell a disk at a server from a file."""
    return _URL.match(text) is not None


# The arguments of each command.


def add_upload(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `upload`."""
    add_file(parser, "image to upload: raw, ISO, or any format that qemu reads; - for standard input, raw")
    _add_url(parser)
    add_source(parser)
    pipes.add_size(parser)
    add_check(parser)
    parser.add_argument("--disk-is-zero", action="store_true", help="the disk reads as zeroes: write no zeroes")
    add_remote(parser)
    options.add_resume(parser)
    options.add_transfer(parser)
    options.add_progress(parser)


def add_download(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `download`."""
    _add_url(parser)
    add_file(parser, "image to make, or a block device; - for standard output, with -f raw")
    add_target(parser)
    parser.add_argument("--incremental", action="store_true", help="fetch only what changed since the checkpoint")
    parser.add_argument("--backing-file", metavar="FILE", help="backing file of the new image, relative to it")
    parser.add_argument("--backing-format", metavar="FORMAT", help="format of the backing file (else looked up)")
    parser.add_argument(
        "--shallow", action="store_true", help="URL shows one layer of a chain: --verify compares what that holds"
    )
    add_remote(parser)
    options.add_resume(parser)
    options.add_transfer(parser)
    options.add_progress(parser)


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `info`."""
    _add_image(parser)
    add_member(parser)
    add_remote(parser)
    options.add_timeout(parser)
    options.add_output(parser, "result as text or JSON")


def add_measure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `measure`."""
    add_file(parser, "image on this machine")
    parser.add_argument(
        "-f", "--format", metavar="FORMAT", default="qcow2", help="format to measure for (default qcow2)"
    )
    add_member(parser)
    options.add_output(parser, "result as text or JSON")


def add_extents(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `extents`."""
    _add_image(parser)
    parser.add_argument("--dirty", action="store_true", help="tell what changed since the checkpoint, of a URL")
    parser.add_argument("--bitmap", metavar="NAME", help="tell what changed by this dirty bitmap, of a file")
    add_member(parser)
    add_remote(parser)
    options.add_timeout(parser)
    options.add_output(parser, "result as text or JSON")


def add_checksum(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `checksum`."""
    _add_image(parser)
    parser.add_argument("--algorithm", metavar="NAME", help=f"how to hash (default {DEFAULT_ALGORITHM})")
    parser.add_argument(
        "--block-size",
        metavar="SIZE",
        type=options.block_size,
        help="bytes hashed on their own, of a URL 1m to 16m (default 4m)",
    )
    add_member(parser)
    add_remote(parser)
    options.add_timeout(parser)
    options.add_output(parser, "result as text or JSON")


def add_file(parser: argparse.ArgumentParser, text: str) -> None:
    """Add a file of this machine."""
    parser.add_argument("filename", metavar="FILE", help=text)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add what tells how to read an image that is uploaded."""
    add_member(parser)
    parser.add_argument(
        "--no-backing-chain",
        dest="backing_chain",
        action="store_false",
        help="upload only what the image itself holds, not its backing files",
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add what tells if an image is looked at for damage before it is uploaded."""
    parser.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="upload what can be read of an image that is cut off or damaged",
    )


def add_member(parser: argparse.ArgumentParser) -> None:
    """Add what tells where the image is in the file, and how to read it."""
    parser.add_argument("--member", metavar="NAME", help="the image inside FILE, a tar file such as an OVA")
    parser.add_argument("--source-format", metavar="FORMAT", help="format of the image (else found by its content)")
    parser.add_argument(
        "--allow-external", action="store_true", help="trust an image that names data files, devices or servers"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add what tells how to make an image."""
    parser.add_argument(
        "-f", "--format", choices=FORMATS, default="qcow2", help="format of the image, raw or qcow2 (default qcow2)"
    )


def add_remote(parser: argparse.ArgumentParser) -> None:
    """Add what tells how to reach a disk."""
    options.add_tls(parser)
    parser.add_argument("--proxy-url", metavar="URL", help="the same disk at another server, if URL cannot be reached")


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="transfer URL, https://HOST:PORT/images/TICKET")


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="FILE|URL", help="image on this machine, or transfer URL of a disk")


# The work of each command.


def upload(args: argparse.Namespace, report: Report) -> None:
    """Upload an image to the disk of a ticket."""
    _check_url(args.url)
    pipes.check_upload(args)
    with report.begin("uploading image") as progress:
        result = upload_from(
            args,
            args.url,
            args.cafile,
            proxy_url=args.proxy_url,
            secure=not args.insecure,
            disk_is_zero=args.disk_is_zero,
            check=args.check,
            progress=progress,
        )
        progress.phase = "upload completed"
    report.finish(result)


def download(args: argparse.Namespace, report: Report) -> None:
    """Download the disk of a ticket."""
    _check_url(args.url)
    _check_download(args)
    pipes.check_download(args)
    with report.begin("downloading image") as progress:
        result = download_to(
            args,
            args.url,
            args.cafile,
            proxy_url=args.proxy_url,
            secure=not args.insecure,
            progress=progress,
            incremental=args.incremental,
            backing_file=args.backing_file,
            backing_format=args.backing_format,
            shallow=args.shallow,
        )
        progress.phase = "download completed"
    report.finish(result)


def info(args: argparse.Namespace) -> None:
    """Describe an image or a disk."""
    if is_url(args.image):
        with _remote(args) as disk:
            result = {
                "virtual-size": disk.size(),
                "max-readers": disk.max_readers,
                "max-writers": disk.max_writers,
            }
    else:
        _check_local(args)
        result = client.info(args.image, **image_arguments(args))
    _show(args, result)


def measure(args: argparse.Namespace) -> None:
    """Tell how much room an image needs in another format."""
    if is_url(args.filename):
        raise UsageError("measure takes a file of this machine, not a URL")
    _check_no_stream(args.filename)
    _show(args, client.measure(args.filename, args.format, **image_arguments(args)))


def extents(args: argparse.Namespace) -> None:
    """List what of an image is data, zero, a hole or changed."""
    write = _extents_as_json if args.output == "json" else _extents_as_table
    if is_url(args.image):
        if args.bitmap:
            raise UsageError("--bitmap is for files: for a URL give --dirty")
        with _remote(args) as disk:
            write(disk.extents("dirty" if args.dirty else "zero"))
        return
    if args.dirty:
        raise UsageError("--dirty is for URLs: for a file give --bitmap NAME")
    _check_local(args)
    write(client.extents(args.image, bitmap=args.bitmap, **image_arguments(args)))


def checksum(args: argparse.Namespace) -> None:
    """Compute the block hash of an image, or let the server compute that of a disk."""
    if is_url(args.image):
        options.check_server_block(args.block_size)
        with _remote(args) as disk:
            answer = disk.checksum(algorithm=args.algorithm, block_size=args.block_size)
        result = {"algorithm": answer.algorithm, "block_size": answer.block_size, "checksum": answer.checksum}
    else:
        _check_local(args)
        result = client.checksum(
            args.image,
            block_size=args.block_size or DEFAULT_BLOCK_SIZE,
            algorithm=args.algorithm or DEFAULT_ALGORITHM,
            **image_arguments(args),
        )
    _show(args, result)


def upload_from(args: argparse.Namespace, url: str, cafile: str | None, **keys: Any) -> client.TransferResult:
    """Upload the image that the arguments name, which may be standard input."""
    if args.filename != pipes.STREAM:
        return client.upload(args.filename, url, cafile, **keys, **source_arguments(args), **transfer_arguments(args))
    del keys["check"]
    return streaming.upload(
        0, url, cafile, size=args.size, is_raw=args.source_format == "raw", **keys, **pipes.arguments(args)
    )


def download_to(args: argparse.Namespace, url: str, cafile: str | None, **keys: Any) -> client.TransferResult:
    """Download to the image that the arguments name, which may be standard output."""
    if args.filename != pipes.STREAM:
        return client.download(url, args.filename, cafile, fmt=args.format, **keys, **transfer_arguments(args))
    wanted = ("secure", "proxy_url", "progress")
    return streaming.download(url, 1, cafile, **{key: keys[key] for key in wanted}, **pipes.arguments(args))


def transfer_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `options.add_transfer` and `options.add_resume` took, as upload and download call it."""
    resume, journal = getattr(args, "resume", False), getattr(args, "journal", None)
    if journal and not resume:
        raise UsageError("--journal needs --resume")
    return {
        "max_workers": args.max_workers,
        "buffer_size": args.buffer_size,
        "verify": args.verify,
        "resume": resume,
        "journal": journal,
        "timeout": args.timeout,
        "retries": args.retries,
    }


def source_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_source` took, as upload calls it."""
    return {**image_arguments(args), "backing_chain": args.backing_chain}


def image_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_member` took, as the functions that read an image call it."""
    return {"member": args.member, "fmt": args.source_format, "allow_external": args.allow_external}


def _check_url(url: str) -> None:
    if not is_url(url):
        raise UsageError(f"{url!r} is no transfer URL: expected https://HOST:PORT/images/TICKET")


def _check_download(args: argparse.Namespace) -> None:
    for given, option in ((args.incremental, "--incremental"), (args.backing_file, "--backing-file")):
        if given and args.format != "qcow2":
            raise UsageError(f"{option} needs -f qcow2")
    if args.backing_format and not args.backing_file:
        raise UsageError("--backing-format needs --backing-file")


def _check_local(args: argparse.Namespace) -> None:
    _check_no_stream(args.image)
    if args.cafile or args.insecure or args.proxy_url or args.timeout:
        raise UsageError("--cafile, --insecure, --proxy-url and --timeout are for URLs, not for files")


def _check_no_stream(name: str) -> None:
    if name == pipes.STREAM:
        raise UsageError("- is for upload and download: name a file (./- if that is its name)")


def _remote(args: argparse.Namespace) -> client.ImageioClient:
    if args.member or args.source_format or args.allow_external:
        raise UsageError("--member, --source-format and --allow-external are for files, not for URLs")
    return client.ImageioClient(
        args.image, args.cafile, secure=not args.insecure, proxy_url=args.proxy_url, timeout=args.timeout
    )


# Output.


def _show(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print a result: JSON as the library has it, or a line for each value."""
    if args.output == "json":
        show(json.dumps(result, indent=2) + "\n")
        return
    for key, value in _flat(result):
        show(f"{key}: {value}\n")


def _flat(result: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Names and values for people; what belongs to a format stands among the others."""
    for key, value in result.items():
        name = key.replace("-", " ").replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value)
        elif not isinstance(value, (list, type(None))):
            yield name, _in_words(name, value)


def _in_words(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (name.endswith("size") or name in _BYTES):
        return f"{value} ({format_size(value)})" if value >= 1000 else str(value)
    return str(value)


_BYTES = ("required", "fully allocated", "bitmaps")


def _extents_as_json(extents: Iterable[Extent]) -> None:
    """Print a JSON list, an extent a line, as they come: there may be millions."""
    before = "["
    for extent in extents:
        show(f"{before}\n  {json.dumps(extent.to_dict())}")
        before = ","
    show("[]\n" if before == "[" else "\n]\n")


def _extents_as_table(extents: Iterable[Extent]) -> None:
    show(f"{'start':>16} {'length':>16}  what\n")
    for extent in extents:
        show(f"{extent.start:>16} {extent.length:>16}  {_kind(extent)}\n")


def _kind(extent: Extent) -> str:
    flags = extent.to_dict()
    words = []
    if "dirty" in flags:
        words.append("dirty" if flags["dirty"] else "clean")
    words.append("zero" if flags["zero"] else "data")
    if flags.get("hole"):
        words.append("hole")
    return ", ".join(words)
