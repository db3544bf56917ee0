# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows that move whole images: raw streams of the daemon, and the client libraries."""

from __future__ import annotations

import contextlib
import json
import mmap
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Iterator, Optional

from bench import load
from bench.machine import Usage, run_apart, usage
from bench.rows import ROWS, Goal, Row, Sample
from bench.servers import BenchError, Daemon, Implementation, QemuNbd, Server, nbdcopy
from bench.setup import GIB, KIB, MIB, Setup, compare_images, same_bytes

_MOST_PIECES = 16384  # of one run: small ones take long

_JOB = str(Path(__file__).with_name("client_job.py"))


@contextlib.contextmanager
def costs(sample: Sample, size: int, **servers: Server) -> Iterator[None]:
    """Add the CPU seconds per GiB that servers spend meanwhile."""
    before = {name: usage(s.pid).cpu for name, s in servers.items()}
    yield
    for name, s in servers.items():
        after = usage(s.pid)
        sample[f"{name} CPU s/GiB"] = (after.cpu - before[name]) / (size / GIB)
        if name == "daemon":
            note_room(sample, after)


def note_room(sample: Sample, after: Usage) -> None:
    """Add what a daemon holds in memory, threads and descriptors."""
    sample["daemon RSS MiB"] = after.rss / MIB
    sample["daemon threads"] = after.threads
    sample["daemon fds"] = after.fds


def run_job(implementation: Implementation, *args: str) -> dict[str, float]:
    """Run client_job.py with the interpreter of an implementation."""
    done = subprocess.run(
        implementation.command(_JOB, *args),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"client of {implementation.name}: {done.stderr.strip()[-800:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _library(
    setup: Setup,
    implementation: Implementation,
    *,
    job: str,
    local: bool,
    fmt: str = "raw",
    on_disk: bool = False,
) -> Sample:
    folder = setup.disk if on_disk else setup.memory
    image, image_fmt, served, served_fmt = _ends(setup, job, fmt, folder)
    if job == "download":
        image = setup.vacant(image.name)
    sample: Sample = {}
    cache = "none" if on_disk else "writeback"
    with contextlib.ExitStack() as stack:
        nbd = stack.enter_context(QemuNbd(setup.memory, served, fmt=served_fmt, cache=cache))
        daemon = stack.enter_context(Daemon(implementation, setup.memory, setup.keys, local=local))
        url = daemon.url(daemon.ticket(nbd.url, setup.size))
        with costs(sample, setup.size, daemon=daemon, qemu=nbd):
            done = run_job(implementation, job, str(image), url, setup.keys.ca_file)
    compare_images(image, image_fmt, served, served_fmt)
    return _of_job(setup, sample, done)


def _of_job(setup: Setup, sample: Sample, done: dict[str, float]) -> Sample:
    sample["client CPU s/GiB"] = done["cpu"] / (setup.size / GIB)
    return {"MiB/s": setup.size / MIB / done["wall"], **sample}


def _ends(setup: Setup, job: str, fmt: str, folder: Path) -> tuple[Path, str, Path, str]:
    """The client's file and the served one, with their formats, for one direction."""
    where = "disk-" if folder == setup.disk else ""
    if job == "upload":
        image = setup.qcow2() if fmt == "qcow2" else setup.dense()
        return image, fmt, setup.target(where + "served.raw", folder=folder), "raw"
    served = setup.qcow2() if fmt == "qcow2" else setup.dense(where + "dense.raw", folder=folder)
    return setup.target("downloaded.raw"), "raw", served, fmt


def _library_nbdcopy(setup: Setup, *, job: str, fmt: str = "raw", on_disk: bool = False) -> Sample:
    """The same job without a daemon: qemu-nbd on both ends, as nbdcopy needs them."""
    folder = setup.disk if on_disk else setup.memory
    image, image_fmt, served, served_fmt = _ends(setup, job, fmt, folder)
    cache = "none" if on_disk else "writeback"
    with QemuNbd(setup.memory, image, fmt=image_fmt) as a:
        with QemuNbd(setup.memory, served, fmt=served_fmt, cache=cache) as b:
            wall = nbdcopy(a, b) if job == "upload" else nbdcopy(b, a)
    return {"MiB/s": setup.size / MIB / wall}


def _between_servers(setup: Setup, implementation: Implementation, *, job: str) -> Sample:
    """A client between a running NBD server and a disk: what the libraries do inside."""
    source, target = setup.dense(), setup.target("served.raw")
    ends = (source, target) if job == "to-server" else (target, source)
    sample: Sample = {}
    with contextlib.ExitStack() as stack:
        local, nbd = (stack.enter_context(QemuNbd(setup.memory, image)) for image in ends)
        daemon = stack.enter_context(Daemon(implementation, setup.memory, setup.keys))
        url = daemon.url(daemon.ticket(nbd.url, setup.size))
        with costs(sample, setup.size, daemon=daemon, qemu=nbd):
            done = run_job(implementation, job, local.url, url, setup.keys.ca_file)
    same_bytes(source, target)
    return _of_job(setup, sample, done)


def _in_pieces(setup: Setup, implementation: Implementation, *, job: str, length: int) -> Sample:
    """ImageioClient.read and write, some bytes at a time, from a file of the server."""
    size = min(setup.size, _MOST_PIECES * length)
    sample: Sample = {}
    image = setup.dense() if job == "read" else setup.target("stream.raw")
    with Daemon(implementation, setup.memory, setup.keys) as daemon:
        url = daemon.url(daemon.ticket(f"file://{image}", setup.size))
        with costs(sample, size, daemon=daemon):
            done = run_job(implementation, job, url, setup.keys.ca_file, str(size), str(length))
    return _of_pieces(sample, done, size, length)


def _in_pieces_plain(setup: Setup, *, job: str, length: int) -> Sample:
    """The same requests by http.client, to our daemon."""
    size = min(setup.size, _MOST_PIECES * length)
    sample: Sample = {}
    image = setup.dense() if job == "read" else setup.target("stream.raw")
    with Daemon(setup.ours, setup.memory, setup.keys) as daemon:
        path = f"/images/{daemon.ticket(f'file://{image}', setup.size)}"
        with costs(sample, size, daemon=daemon):
            done = run_job(setup.ours, f"plain-{job}", daemon.local, path, str(size), str(length))
    return _of_pieces(sample, done, size, length)


def _of_pieces(sample: Sample, done: dict[str, float], size: int, length: int) -> Sample:
    if length >= MIB:
        return {"MiB/s": size / MIB / done["wall"], **sample, "client CPU s/GiB": done["cpu"] / (size / GIB)}
    count = size // length
    return {"requests/s": count / done["wall"], "client CPU µs/request": done["cpu"] / count * 1e6}


def _add_client_rows() -> None:
    for job, title, ratio in (
        ("from-server", "client from a disk to a running NBD server, local socket", 2.0),
        ("to-server", "client from a running NBD server to a disk, local socket", 2.2),
    ):
        name = f"library-{job}"
        goals = (Goal("MiB/s", ratio), Goal("MiB/s", 1.4, "nbdcopy"))
        measure = partial(_between_servers, job=job)
        ROWS[name] = Row(name, title, measure, goals, baseline=_stream_nbdcopy)
    large = (Goal("client CPU s/GiB", 1.1, "http.client"),)
    small = (Goal("client CPU µs/request", 0.7),)
    for job in ("read", "write"):
        for suffix, length, words, wanted in (("", 8 * MIB, "8 MiB", large), ("-4k", 4 * KIB, "4 KiB", small)):
            name = f"client-{job}{suffix}"
            ROWS[name] = Row(
                name,
                f"ImageioClient.{job}, {words} at a time, local socket",
                partial(_in_pieces, job=job, length=length),
                wanted,
                baseline=partial(_in_pieces_plain, job=job, length=length),
                baseline_name="http.client",
            )


def _add_library_rows() -> None:
    over_nbdcopy = Goal("MiB/s", 1.0, "nbdcopy")
    client_cpu = Goal("client CPU s/GiB", 0.3)
    bounds: dict[tuple[str, str], tuple[Goal, ...]] = {
        ("", "download"): (Goal("MiB/s", 2.4), Goal("daemon CPU s/GiB", 0.45), client_cpu, over_nbdcopy),
        ("", "upload"): (Goal("MiB/s", 3.0), Goal("daemon CPU s/GiB", 0.35), client_cpu, over_nbdcopy),
        ("-tls", "download"): (Goal("MiB/s", 1.4), Goal("daemon CPU s/GiB", 0.75)),
        ("-tls", "upload"): (Goal("MiB/s", 1.5), Goal("daemon CPU s/GiB", 0.6)),
    }
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "": ("raw file, local socket", {}),
        "-qcow2": ("qcow2, local socket", {"fmt": "qcow2"}),
        "-disk": ("raw file on disk, cache=none, local socket", {"on_disk": True}),
        "-tls": ("raw file, TLS", {}),
    }
    for suffix, (kind, options) in kinds.items():
        local = suffix != "-tls"
        for job in ("download", "upload"):
            name = f"library-{job}{suffix}"
            ROWS[name] = Row(
                name,
                f"client.{job}, {kind}",
                partial(_library, job=job, local=local, **options),
                bounds.get((suffix, job), (Goal("MiB/s", 2.2),)),
                baseline=partial(_library_nbdcopy, job=job, **options) if local else None,
            )


def _stream(
    setup: Setup,
    implementation: Implementation,
    *,
    job: str,
    streams: int,
    transport: str,
    file: bool = False,
) -> Sample:
    """Bulk requests of the load generator, to see the daemon alone."""
    sample: Sample = {}
    dense = setup.dense()  # made here, not in the process apart
    image = dense if job == "get" else setup.target("stream.raw")
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        if not file:
            servers["qemu"] = nbd = stack.enter_context(QemuNbd(setup.memory, image))
        url = f"file://{image}" if file else nbd.url
        servers["daemon"] = daemon = stack.enter_context(Daemon(implementation, setup.memory, setup.keys))
        ticket = daemon.ticket(url, setup.size)
        with costs(sample, setup.size, **servers):
            if job == "get":
                run = run_apart(lambda: load.bulk_get(daemon, ticket, setup.size, streams=streams, transport=transport))
            else:
                run = run_apart(lambda: _put_image(setup, daemon, ticket, streams, transport))
    sample["MiB/s"] = setup.size / MIB / run.wall
    if job == "put":
        same_bytes(dense, image)
    return sample


def _put_image(setup: Setup, daemon: Daemon, ticket: str, streams: int, transport: str) -> None:
    with open(setup.dense(), "rb") as f:
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            load.bulk_put(daemon, ticket, view, streams=streams, transport=transport)


def _stream_nbdcopy(setup: Setup) -> Sample:
    return _library_nbdcopy(setup, job="upload")


def _add_stream_rows() -> None:
    bounds = {
        ("get", "unix"): (Goal("MiB/s", 1.4), Goal("daemon CPU s/GiB", 0.45)),
        ("put", "unix"): (Goal("MiB/s", 1.8), Goal("daemon CPU s/GiB", 0.35)),
        ("get", "tls"): (Goal("daemon CPU s/GiB", 0.9),),
        ("put", "tls"): (Goal("MiB/s", 1.4), Goal("daemon CPU s/GiB", 0.7)),
    }
    for (job, transport), goals in bounds.items():
        for streams in (1, 4):
            name = f"{job}-{transport}-{streams}"
            title = f"bulk {job.upper()}, nbd, {transport}, {streams} stream{'s' * (streams > 1)}"
            ROWS[name] = Row(
                name,
                title,
                partial(_stream, job=job, streams=streams, transport=transport),
                goals,
                baseline=_stream_nbdcopy if transport == "unix" else None,
            )
    for job in ("get", "put"):
        name = f"{job}-file"
        ROWS[name] = Row(
            name,
            f"bulk {job.upper()}, file, unix, 1 stream",
            partial(_stream, job=job, streams=1, transport="unix", file=True),
            (Goal("MiB/s", 1.0),),
        )


def proxied(setup: Setup, implementation: Implementation, *, job: str, folder: Optional[Path] = None) -> Sample:
    """A daemon in proxy role: local socket in front, TLS behind."""
    sample: Sample = {}
    dense = setup.dense()  # made here, not in the process apart
    image = dense if job == "get" else setup.target("stream.raw")
    with contextlib.ExitStack() as stack:
        nbd = stack.enter_context(QemuNbd(setup.memory, image))
        origin = stack.enter_context(Daemon(implementation, setup.memory, setup.keys, local=False))
        url = origin.url(origin.ticket(nbd.url, setup.size))
        proxy = stack.enter_context(Daemon(implementation, setup.memory, setup.keys))
        ticket = proxy.ticket(url, setup.size)
        with costs(sample, setup.size, origin=origin, daemon=proxy):
            if job == "get":
                run = run_apart(lambda: load.bulk_get(proxy, ticket, setup.size, streams=1, transport="unix"))
            else:
                run = run_apart(lambda: _put_image(setup, proxy, ticket, 1, "unix"))
    sample["MiB/s"] = setup.size / MIB / run.wall
    if job == "put":
        same_bytes(dense, image)
    return sample


def _add_proxy_rows() -> None:
    for job in ("get", "put"):
        name = f"proxy-{job}"
        ROWS[name] = Row(
            name,
            f"bulk {job.upper()} through a proxy, TLS behind",
            partial(proxied, job=job),
            (Goal("MiB/s", 1.5),),
        )


_add_library_rows()
_add_client_rows()
_add_stream_rows()
_add_proxy_rows()
