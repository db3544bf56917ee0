# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Common behaviour of the three commands at a terminal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from imageio_testing.daemon import Daemon

COMMANDS = {
    "ovirt-imageio": "ovirt_imageio.daemon",
    "ovirt-imageioctl": "ovirt_imageio.admin.cli",
    "ovirt-img": "ovirt_imageio.client.cli",
}

OUTPUTS = {
    "closed": (">&-", 1, "Bad file descriptor"),
    "full": (">/dev/full", 1, "No space left on device"),
    "reader gone": ("| true", 128 + signal.SIGPIPE, ""),
}


def run(command, arguments, redirect=""):
    line = f"set -o pipefail; {sys.executable} -m {COMMANDS[command]} {arguments} {redirect}"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["/bin/bash", "-c", line], capture_output=True, text=True, check=False, env=env, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The configuration of a daemon that runs, and an image."""
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "image").write_bytes(bytes(4096))
    with Daemon(folder, tls=False) as daemon:
        daemon.add_ticket(f"file://{folder}/image", size=4096, ops=["read"])
        yield folder


@pytest.mark.parametrize("command", COMMANDS)
def test_version_is_told_on_standard_output(command):
    status, out, err = run(command, "--version")
    assert (status, err) == (0, "")
    assert out.split()[0] == command
    assert out.split()[1][0].isdecimal()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        *((command, "--version") for command in COMMANDS),
        *((command, "--help") for command in COMMANDS),
        ("ovirt-imageio", "-c {folder}/daemon --show-config"),
        ("ovirt-imageio", "-c {folder}/daemon --check-config"),
        ("ovirt-imageioctl", "-c {folder}/daemon list"),
        ("ovirt-imageioctl", "-c {folder}/daemon list --json"),
        ("ovirt-imageioctl", "-c {folder}/daemon status"),
        ("ovirt-img", "info {folder}/image"),
        ("ovirt-img", "extents {folder}/image"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(folder, command, arguments, output):
    redirect, status, words = OUTPUTS[output]
    line = f"{command}: standard output: {words}\n" if words else ""
    assert run(command, arguments.format(folder=folder), redirect) == (status, "", line)


def test_control_c_ends_a_wait_for_the_daemon_quietly(tmp_path):
    """The server at the address takes the connection, and is silent."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "50.conf").write_text(f"[control]\ntransport = unix\nsocket = {tmp_path}/sock\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/sock")
        listener.listen()
        listener.settimeout(60)
        command = [sys.executable, "-m", COMMANDS["ovirt-imageioctl"], "-c", str(tmp_path), "status"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGINT, "")
