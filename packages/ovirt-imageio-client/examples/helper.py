# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The code that the examples share: options, the connection to the engine, and transfers.

The engine's address, user and password are in a section of `~/.config/ovirt-img.conf`, as
for the command `ovirt-img`:

    [east]
    engine_url = https://engine.east.example.com
    username = admin@internal
    password = secret
    cafile = /etc/pki/east-ca.pem
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import os
import time
from typing import Any, Callable, Iterator

import ovirtsdk4 as sdk
from ovirtsdk4 import types

TIMEOUT = 120


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the option that all examples have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-c", "--config", required=True, metavar="SECTION", help="section of ~/.config/ovirt-img.conf")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and add what the section of the file says."""
    args = parser.parse_args()
    config = configparser.ConfigParser(interpolation=None)
    config.read(os.path.expanduser("~/.config/ovirt-img.conf"))
    section = config[args.config]
    args.engine_url = section["engine_url"]
    args.username = section["username"]
    args.password = section["password"]
    args.cafile = section.get("cafile")
    args.secure = section.getboolean("secure", True)
    return args


@contextlib.contextmanager
def connect(args: argparse.Namespace) -> Iterator[Any]:
    """Log in to the engine, and out in the end."""
    connection = sdk.Connection(
        url=args.engine_url + "/ovirt-engine/api",
        username=args.username,
        password=args.password,
        ca_file=args.cafile,
        insecure=not args.secure,
    )
    try:
        yield connection.system_service()
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again, at most two minutes."""
    deadline = time.monotonic() + TIMEOUT
    pause = 0.1
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the engine was not ready in {TIMEOUT} seconds")
        time.sleep(pause)
        pause = min(2 * pause, 1)


def create_disk(system: Any, storage_domain: str, **properties: Any) -> Any:
    """Make a disk, and wait until a transfer can have it."""
    disks = system.disks_service()
    disk = disks.add(types.Disk(storage_domains=[types.StorageDomain(name=storage_domain)], **properties))
    service = disks.disk_service(disk.id)
    wait_until(lambda: service.get().status == types.DiskStatus.OK)
    return disk


@contextlib.contextmanager
def transfer(system: Any, direction: types.ImageTransferDirection, **what: Any) -> Iterator[Any]:
    """Permit to move the data of a disk; `transfer_url` and `proxy_url` say where.

    A transfer that failed is cancelled: the engine then removes a disk that was being
    uploaded. One that succeeded is finalized: then the disk may be used.
    """
    transfers = system.image_transfers_service()
    # With the format raw the data are what a guest sees, whatever the disk's format.
    started = transfers.add(types.ImageTransfer(direction=direction, format=types.DiskFormat.RAW, **what))
    service = transfers.image_transfer_service(started.id)
    try:
        wait_until(lambda: service.get().phase != types.ImageTransferPhase.INITIALIZING)
        ready = service.get()
        if ready.phase != types.ImageTransferPhase.TRANSFERRING:
            raise RuntimeError(f"transfer {started.id} did not start: {ready.phase}")
        yield ready
    except BaseException:
        service.cancel()
        raise
    service.finalize()
    wait_until(lambda: service.get().phase not in (ready.phase, types.ImageTransferPhase.FINALIZING_SUCCESS))
    phase = service.get().phase
    if phase != types.ImageTransferPhase.FINISHED_SUCCESS:
        raise RuntimeError(f"transfer {started.id} did not succeed: {phase}")


UPLOAD = types.ImageTransferDirection.UPLOAD
DOWNLOAD = types.ImageTransferDirection.DOWNLOAD
