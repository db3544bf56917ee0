# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`make engine`: what it prints is typed, and disks move."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imageio_testing.enginesdk import needs_engine_sdk
from imageio_testing.qemu import needs, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.qemu import img

TOP = Path(__file__).resolve().parents[4]

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    needs_qemu,
    needs_engine_sdk,
    needs("make", "bash"),
]


def engine_command():
    """The command that `make engine` runs in the end, with the Python of this test."""
    recipe = subprocess.run(["make", "-n", "-C", TOP, "engine"], stdout=subprocess.PIPE, text=True, check=True).stdout
    line = next(line for line in recipe.splitlines() if "-m fakeengine" in line)
    words = shlex.split(line)
    assert words[:2] == ["PYTHONPATH=tools", ".venv/bin/python"]
    return [sys.executable, *words[2:]]


def type_in(lines, folder):
    """Type lines into a shell, which ends at the first that fails."""
    done = subprocess.run(
        ["bash", "-e"],
        input="\n".join(lines),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_what_make_engine_prints_can_be_typed(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(TOP / "tools")}
    with subprocess.Popen(
        engine_command(), cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as engine:
        try:
            printed = list(iter(engine.stdout.readline, "Control-C ends it all.\n"))
            lines = [line.strip() for line in printed if line.startswith("  ")]
            (write,) = (line for line in lines if line.startswith("qemu-io"))
            exports = [line for line in lines if line.startswith("export")]
            commands = [line for line in lines if line not in (write, *exports)]
            disk = shlex.split(write)[-1]
            type_in([*exports, *commands], tmp_path)
            assert img.compare(str(tmp_path / "fedora.qcow2"), disk, fmt_a="qcow2", fmt_b="qcow2")
            assert img.compare(str(tmp_path / "copy.qcow2"), disk, fmt_a="qcow2", fmt_b="qcow2")
            again = next(line for line in commands if " incremental " in line)
            before = set(tmp_path.iterdir())
            type_in([*exports, write, again], tmp_path)
            (backup,) = set(tmp_path.iterdir()) - before
            dirty = [e for e in client.extents(backup) if not e.zero]
            assert (100 << 20) in [e.start for e in dirty]
            engine.send_signal(signal.SIGINT)
            assert engine.stdout.read().endswith("Everything has ended, nothing is left.\n")
            assert engine.wait(60) == 0
        finally:
            engine.kill()
    assert not os.path.exists(disk)
