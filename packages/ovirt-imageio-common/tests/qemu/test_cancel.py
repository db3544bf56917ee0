# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A cancel ends qemu-img, qemu-nbd, and what waits for them, whatever these programs do.

Scripts stand in for them, that tell by a pipe when they run.
"""

from __future__ import annotations

import os
import threading

import pytest

from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.common.qemu import img, nbd

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes a program of a name, which writes to a FIFO when it runs, ignores SIGTERM, and goes on."""
    os.mkfifo(tmp_path / "runs")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name):
        path = tmp_path / name
        path.write_text(
            f"#!/bin/sh\ntrap '' TERM\necho $$ > {tmp_path}/runs\nexec sleep 1000 < /dev/null > /dev/null 2>&1\n"
        )
        path.chmod(0o755)
        return str(tmp_path / "runs")

    return make


def cancel_when_it_runs(runs, cancel):
    """Returns a thread that cancels, and what the process id of the program was."""
    seen = []

    def run():
        with open(runs) as f:
            seen.append(int(f.readline()))
        cancel.cancel()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, seen


@pytest.mark.parametrize(
    "call",
    [
        lambda cancel: img.create("x", "qcow2", size=1, cancel=cancel),
        lambda cancel: img.info("x", fmt="qcow2", cancel=cancel),
        lambda cancel: img.measure("x", "qcow2", fmt="qcow2", cancel=cancel),
        lambda cancel: img.check("x", fmt="qcow2", cancel=cancel),
    ],
    ids=["create", "info", "measure", "check"],
)
def test_cancel_ends_qemu_img(stand_in, call):
    cancel = Cancel()
    thread, seen = cancel_when_it_runs(stand_in("qemu-img"), cancel)
    with pytest.raises(OperationCancelled):
        call(cancel)
    thread.join()
    assert_gone(seen)


def test_cancelled_qemu_img_is_not_started(stand_in, tmp_path):
    stand_in("qemu-img")
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(OperationCancelled):
        img.info("x", fmt="raw", cancel=cancel)


def test_cancel_ends_the_wait_for_qemu_nbd_to_open_its_image(stand_in, tmp_path):
    cancel = Cancel()
    thread, seen = cancel_when_it_runs(stand_in("qemu-nbd"), cancel)
    server = nbd.Server(str(tmp_path / "x"), "raw", cancel=cancel)
    with pytest.raises(OperationCancelled):
        server.start()
    thread.join()
    assert_gone(seen)
    assert not cancel._wakes


def test_cancel_ends_the_wait_for_qemu_nbd_to_write_what_it_holds(stand_in, tmp_path, monkeypatch):
    """It was told to end, and ignores that."""
    runs = stand_in("qemu-nbd")
    cancel = Cancel()
    server = nbd.Server(str(tmp_path / "x"), "raw", socket_path=str(tmp_path / "sock"), cancel=cancel)
    server._launch()
    with open(runs) as f:
        seen = [int(f.readline())]
    wait = server._process.wait

    def cancel_and_wait(timeout):
        cancel.cancel()
        return wait(timeout)

    monkeypatch.setattr(server._process, "wait", cancel_and_wait)
    server.stop()
    assert_gone(seen)


def assert_gone(seen):
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
