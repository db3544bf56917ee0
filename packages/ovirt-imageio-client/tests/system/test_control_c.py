# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Control-C while `ovirt-img` moves bytes: it ends, cleans up, and says what is left.

Each connection to the storage of the disk falls silent after some bytes, so that no transfer
gets to its end.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from imageio_testing.chaos import ChaosProxy
from imageio_testing.daemon import Daemon
from imageio_testing.qemu import MiB, nbdkit, needs_nbdkit, needs_qemu
from ovirt_imageio.common.qemu import img

pytestmark = [pytest.mark.system, needs_qemu, needs_nbdkit]

SIZE = 128 * MiB
BUDGET = 12 * MiB
"""Bytes of each connection; there are at most eight. Before it is used for bulk it reads 8 MiB."""

COMMAND = """
import sys
from ovirt_imageio.client import cli, executor
executor._STOP_TIMEOUT = 20
sys.exit(cli.main())
"""
"""However slow this machine is, a worker that is left behind was not woken."""

COPYING = f"from ovirt_imageio.common import linux\nlinux.pipes = linux.PipePool(0)\n{COMMAND}"
"""Without pipes nothing is spliced."""


class Case(NamedTuple):
    """How bytes move when they are interrupted."""

    direction: str
    way: str
    fmt: str
    resume: bool
    silent: bool
    """The only worker waits for the server, which waits for its storage."""

    def __str__(self):
        words = [self.direction, self.way, self.fmt, "resume" * self.resume, "silent" * self.silent]
        return "-".join(filter(None, words))


CASES = [
    Case(direction, *how)
    for direction in ("upload", "download")
    for how in (
        ("tls", "raw", False, False),
        ("tls", "qcow2", True, True),
        ("spliced", "raw", True, True),
        ("spliced", "qcow2", False, False),
        ("spliced", "qcow2", False, True),
        ("copied", "qcow2", True, True),
    )
]


@pytest.fixture(scope="module")
def daemons(tmp_path_factory):
    remote = Daemon(tmp_path_factory.mktemp("tls"), config={"local": {"enable": False}})
    local = Daemon(tmp_path_factory.mktemp("unix"))
    with remote, local:
        yield {"tls": remote, "spliced": local, "copied": local}


@pytest.fixture(scope="module")
def images():
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="control-c-") as folder:
        raw = Path(folder, "raw")
        raw.write_bytes(random.Random(9).randbytes(SIZE))
        img.convert(str(raw), str(raw.with_name("qcow2")), fmt="raw", target_fmt="qcow2")
        yield Path(folder)


@pytest.fixture
def storage(case):
    """A proxy to a disk that cannot be read or written as a whole."""
    with nbdkit("memory" if case.direction == "upload" else "pattern", str(SIZE), tcp=True) as url:
        port = int(url.rpartition(":")[2])
        with ChaosProxy(port, budget=lambda: BUDGET, stall=True) as proxy:
            yield proxy


def users_of(folder):
    """Processes with a file of a folder in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in line:
            found.append(line)
    return found


def activity(pid):
    """States of the threads of a process, and how often each has waited."""
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        found.append((task.name, status["State"].split()[0], status["voluntary_ctxt_switches"].strip()))
    return found


def wait_until_idle(pid):
    """Wait until all threads wait, and go on waiting for a moment."""
    seen = None
    while (now := activity(pid)) != seen or {state for _, state, _ in now} != {"S"}:
        seen = now
        select.select([], [], [], 0.05)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_control_c_while_bytes_move(case, daemons, storage, images):
    daemon = daemons[case.way]
    upload = case.direction == "upload"
    ops = ["write" if upload else "read"]
    ticket = daemon.add_ticket(f"nbd:127.0.0.1:{storage.port}", size=SIZE, ops=ops)
    url = f"{daemon.url}/images/{ticket}"
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="control-c-") as folder:
        image = Path(folder, "image")
        if upload:
            os.link(images / case.fmt, image)
        command = [sys.executable, "-c", COPYING if case.way == "copied" else COMMAND, case.direction]
        command += ["--cafile", daemon.ca_file, "-o", "json", *(["--resume"] if case.resume else [])]
        command += ["--max-workers", "1"] if case.silent else []
        command += [str(image), url] if upload else ["-f", case.fmt, url, str(image)]
        # As a terminal does it: all processes of the group are signalled.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                counts = (json.loads(line)["transferred"] for line in process.stdout)
                moved = next(filter(None, counts), 0)
                if case.silent:
                    assert storage.stalled.wait(60)
                    wait_until_idle(process.pid)
                os.killpg(process.pid, signal.SIGINT)
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 128 + signal.SIGINT, err
        left = set(os.listdir(folder)) - ({"image"} if upload else set())
        assert users_of(folder) == []

    assert 0 < moved < SIZE
    assert json.loads(out.splitlines()[-1])["description"] == f"{case.direction} failed"
    told, end = err.splitlines()
    assert end == "ovirt-img: interrupted by SIGINT"
    assert f"The {case.direction} of {image} ended after " in told
    assert f" of {SIZE} bytes: " in told
    journal = f"{image}.{case.direction}.journal"
    if case.resume:
        kept = [journal] if upload else [f"{image}.part", journal]
        assert left == {os.path.basename(path) for path in kept}
        assert all(path in told for path in kept)
        assert told.endswith("; run it again with --resume to continue")
    else:
        assert left == set()
        what = "the disk is incomplete" if upload else f"{image} is not made"
        assert told.endswith(f": {what}; nothing can be resumed")
