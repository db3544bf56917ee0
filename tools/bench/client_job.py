# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One job of a client library, run by the interpreter of either implementation.

Prints a JSON object with the seconds of time and processor that it took, those of
programs it started included, without the interpreter's start. Uses only what both
implementations offer; where that is not enough, each has a function of its own.
"""

import http.client
import importlib
import json
import os
import resource
import socket
import sys
import threading
import time

MIB = 1 << 20


def main():
    """Run the job that the arguments name."""
    job, *args = sys.argv[1:]
    load_modules()
    warm = JOBS[job](*args)
    before, start = spent(), time.monotonic()
    warm()
    wall = time.monotonic() - start
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()  # what it does in the background counts, too
    cpu = spent() - before
    print(json.dumps({"wall": wall, "cpu": cpu}))


def load_modules():
    """Import what transfers use: our client loads it when it is first used."""
    for name in ("client.api", "common.backends.http", "common.backends.nbd", "common.backends.file"):
        try:
            importlib.import_module("ovirt_imageio." + name)
        except ImportError:
            pass


def spent():
    """Seconds of processor of this process and of those it started and waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def upload(image, url, cafile):
    """Upload a raw or qcow2 file by the public call."""
    from ovirt_imageio import client

    return lambda: client.upload(image, url, cafile)


def download(image, url, cafile):
    """Download to a raw file by the public call."""
    from ovirt_imageio import client

    return lambda: client.download(url, image, cafile, fmt="raw")


def to_server(nbd_url, url, cafile):
    """Copy from a running NBD server to a disk."""
    return _pair_copy(nbd_url, url, cafile, up=True)


def from_server(nbd_url, url, cafile):
    """Copy a disk to a running NBD server."""
    return _pair_copy(nbd_url, url, cafile, up=False)


def _pair_copy(nbd_url, url, cafile, up):
    return (_ours if _is_ours() else _peers)(nbd_url, url, cafile, up)


def _is_ours():
    try:
        import ovirt_imageio.common  # noqa: F401
    except ImportError:
        return False
    return True


def _ours(nbd_url, url, cafile, up):
    from ovirt_imageio.client import plan
    from ovirt_imageio.client.executor import Executor
    from ovirt_imageio.client.pairs import DownloadPair, UploadPair
    from ovirt_imageio.client.progress import Counter
    from ovirt_imageio.common.backends.http import HttpBackend
    from ovirt_imageio.common.backends.nbd import NbdBackend

    workers = 4

    def pair():
        local = NbdBackend(nbd_url, mode="r" if up else "r+")
        return UploadPair(local, remote.clone()) if up else DownloadPair(remote.clone(), local)

    remote = HttpBackend(url, cafile=cafile)

    def run():
        with remote:
            steps = plan.upload_steps if up else plan.download_steps
            limit = plan.copy_limit(remote.size, workers)
            executor = Executor(pair, Counter(None, remote.size), workers=workers)
            if up:
                with NbdBackend(nbd_url) as listing:
                    executor.run(steps(listing.extents("zero"), copy_limit=limit))
            else:
                executor.run(steps(remote.extents("zero"), copy_limit=limit))

    return run


def _peers(nbd_url, url, cafile, up):
    from urllib.parse import urlparse

    from ovirt_imageio._internal.backends import http, nbd
    from ovirt_imageio.client import _io as io

    def run():
        remote = http.open(urlparse(url), "r+" if up else "r", cafile=cafile, secure=True)
        local = nbd.open(urlparse(nbd_url), "r" if up else "r+")
        with remote, local:
            source, target = (local, remote) if up else (remote, local)
            io.copy(source, target, max_workers=4, buffer_size=4 * MIB)

    return run


def read(url, cafile, size, length):
    """Read the beginning of an image in pieces through ImageioClient."""
    from ovirt_imageio import client

    return _through_client(client, url, cafile, int(size), int(length), "read")


def write(url, cafile, size, length):
    """Write the beginning of an image in pieces through ImageioClient."""
    from ovirt_imageio import client

    return _through_client(client, url, cafile, int(size), int(length), "write")


def _bytes(length):
    """Some bytes that do not repeat soon."""
    return bytearray((os.urandom(min(length, MIB)) * (length // MIB + 1))[:length])


def _through_client(client, url, cafile, size, length, what):
    buffer = _bytes(length)
    c = client.ImageioClient(url, cafile)
    call = getattr(c, what)
    call(0, buffer)

    def run():
        for offset in range(0, size, length):
            call(offset, buffer)
        c.close()

    return run


def plain_read(address, path, size, length):
    """Read an image in pieces by http.client over a Unix socket."""
    return _plain(address, path, int(size), int(length), put=False)


def plain_write(address, path, size, length):
    """Write an image in pieces by http.client over a Unix socket."""
    return _plain(address, path, int(size), int(length), put=True)


def _plain(address, path, size, length, put):
    buffer = _bytes(length)
    view = memoryview(buffer)
    c = http.client.HTTPConnection("localhost", blocksize=MIB)
    c.sock = socket.socket(socket.AF_UNIX)
    c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    c.sock.connect(address)

    def one(offset):
        span = "%d-%d" % (offset, offset + length - 1)
        if put:
            c.request("PUT", path + "?flush=n", body=view, headers={"Content-Range": "bytes %s/*" % span})
        else:
            c.request("GET", path, headers={"Range": "bytes=" + span})
        response = c.getresponse()
        if response.status not in (200, 206):
            raise RuntimeError("unexpected status %d" % response.status)
        done = 0
        while not put and done < length:
            done += response.readinto(view[done:])
        response.read()

    one(0)

    def run():
        for offset in range(0, size, length):
            one(offset)

    return run


JOBS = {
    "upload": upload,
    "download": download,
    "to-server": to_server,
    "from-server": from_server,
    "read": read,
    "write": write,
    "plain-read": plain_read,
    "plain-write": plain_write,
}

if __name__ == "__main__":
    main()
