# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration and start."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

import pytest

from clients.host import Host
from imageio_testing.pki import make_pki

from .page import holds

BASE = """
[daemon]
run_dir = {folder}
drop_privileges = false
systemd_enable = false
[tls]
enable = false
[remote]
host = 127.0.0.1
port = 0
[local]
enable = false
[control]
socket = {folder}/control
[handlers]
keys = stderr
[logger_root]
handlers = stderr
"""


def show(generation, folder, more=""):
    """Print the configuration, as a process that ended."""
    (folder / "conf.d").mkdir(exist_ok=True)
    (folder / "conf.d" / "50-a.conf").write_text(BASE.format(folder=folder))
    (folder / "conf.d" / "60-b.conf").write_text(more)
    return subprocess.run(
        [generation.command("ovirt-imageio"), "-c", str(folder), "--show-config"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@holds("`formatters`")
def test_configuration_of_2x_is_shown_with_the_same_values(generations, tmp_path):
    theirs, ours = (json.loads(show(generation, tmp_path).stdout) for generation in generations)
    differ = {
        (section, key)
        for section, keys in theirs.items()
        for key, value in keys.items()
        if ours[section].get(key, "missing") != value
    }
    assert differ == {("formatters", "keys")}


OUT_OF_RANGE = "number out of range, as a negative time or 100 connections"


@holds("wrong value", OUT_OF_RANGE)
@pytest.mark.parametrize(
    ("section", "key", "value", "statuses"),
    [
        ("remote", "port", "x", (1, 1)),
        ("daemon", "max_connections", "100", (0, 1)),
        ("daemon", "inactivity_timeout", "-1", (0, 1)),
    ],
)
def test_wrong_values(generations, tmp_path, section, key, value, statuses):
    theirs, ours = (show(generation, tmp_path, f"[{section}]\n{key} = {value}\n") for generation in generations)
    assert (theirs.returncode, ours.returncode) == statuses
    assert ("Traceback" in theirs.stderr) is bool(theirs.returncode)
    (line,) = ours.stderr.splitlines()
    assert f"60-b.conf: [{section}] {key} = {value}: expected " in line


@holds("port 65535")
def test_port_65535(generations, tmp_path):
    """2.5.1 refuses it at the start; nothing listens there."""
    show(generations[0], tmp_path, "[remote]\nport = 65535\n")
    theirs, ours = (
        subprocess.run([each.command("ovirt-imageio"), "-c", str(tmp_path), *args], capture_output=True, timeout=60)
        for each, args in zip(generations, ([], ["--check-config"]))
    )
    assert (theirs.returncode, ours.returncode) == (1, 0)
    assert b"Invalid configuration: remote.port = 65535" in theirs.stderr


@contextlib.contextmanager
def running(generations, pki, tmp_path, **config):
    """A host of each, with some sections of the configuration."""
    with contextlib.ExitStack() as stack:
        hosts = []
        for generation in generations:
            folder = tmp_path / f"host-{generation.name}"
            folder.mkdir()
            hosts.append(stack.enter_context(Host(generation, folder, pki, config=config)))
        yield hosts


def reaches(family, address):
    with socket.socket(family) as s:
        try:
            s.connect(address)
        except OSError:
            return False
    return True


@holds("`[remote] host` empty")
def test_empty_host(generations, pki, tmp_path):
    with running(generations, pki, tmp_path, remote={"host": "", "port": 0}) as hosts:
        if not reaches(socket.AF_INET6, ("::1", hosts[1].port)):
            pytest.skip("no IPv6")
        assert [reaches(socket.AF_INET, ("127.0.0.1", host.port)) for host in hosts] == [True, True]
        assert [reaches(socket.AF_INET6, ("::1", host.port)) for host in hosts] == [False, True]


@holds("`[local] socket = \\u0000NAME`")
def test_abstract_socket(generations, pki, tmp_path, monkeypatch):
    """2.5.1 takes it as a path, relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    name = f"differ-{os.getpid()}"
    with running(generations, pki, tmp_path, local={"socket": f"\\u0000{name}"}):
        assert (tmp_path / f"\\u0000{name}").is_socket()
        assert reaches(socket.AF_UNIX, f"\0{name}")


@holds("`[control] socket = \\u0000NAME`")
def test_abstract_control_socket(generations, tmp_path, monkeypatch):
    theirs, ours = generations
    monkeypatch.chdir(tmp_path)
    for generation in generations:
        show(generation, tmp_path, "[control]\nsocket = \\u0000NAME\n")
    with started(theirs, tmp_path):
        assert (tmp_path / "\\u0000NAME").is_socket()
    command = [ours.command("ovirt-imageio"), "-c", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "[control] socket = " in done.stderr


@holds("names of loggers, text of log lines", "unknown section or key")
def test_log(generations, pki, tmp_path):
    with running(generations, pki, tmp_path, unheard={"of": 1}) as hosts:
        assert ["[ovirt_imageio.daemon." in host.log for host in hosts] == [False, True]
        assert ["[server]" in host.log for host in hosts] == [True, False]
        assert ["unheard" in host.log for host in hosts] == [False, True]


@holds("systemd")
def test_readiness_is_told(generations, pki, tmp_path, monkeypatch):
    """The environment of 2.5.1 has no `python3-systemd`."""
    theirs, ours = generations
    show(theirs, tmp_path, "[daemon]\nsystemd_enable = true\n")
    command = [theirs.command("ovirt-imageio"), "-c", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "No module named 'systemd'" in done.stderr) == (1, True)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(f"{folder}/notify")
        s.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        with running([ours], pki, tmp_path, daemon={"systemd_enable": True}):
            assert b"READY=1" in s.recv(4096).split(b"\n")


@contextlib.contextmanager
def started(generation, folder):
    """A daemon by the configuration that `show` has left, which has said that it is ready."""
    command = [generation.command("ovirt-imageio"), "-c", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("Ready" in line for line in process.stderr)
            yield process
        finally:
            process.kill()


@holds("SIGHUP")
def test_hangup(generations, tmp_path):
    """2.5.1 has no handler for it."""
    for generation in generations:
        folder = tmp_path / generation.name
        folder.mkdir()
        show(generation, folder)
        with started(generation, folder) as process:
            process.send_signal(signal.SIGHUP)
            if generation.name == "2.5.1":
                assert process.wait(60) == -signal.SIGHUP
            else:
                assert any("onfiguration" in line for line in process.stderr)
                assert process.poll() is None


def certificate(host):
    return ssl.get_server_certificate(("localhost", host.port))


@holds("TLS files that are renewed")
def test_renewed_certificate(generations, tmp_path, tmp_path_factory):
    """A renewed one is copied over the first; a handshake shows which is used."""
    renewed = []
    for generation in generations:
        first, second = (make_pki(tmp_path_factory.mktemp("pki")) for _ in range(2))
        with running([generation], first, tmp_path) as (host,):
            before = certificate(host)
            for name in ("key_file", "cert_file"):
                shutil.copy(getattr(second, name), getattr(first, name))
            if generation.name == "ours":
                deadline = time.monotonic() + 60
                while certificate(host) == before:
                    assert time.monotonic() < deadline, host.log
            renewed.append(certificate(host) != before)
    assert renewed == [False, True]
