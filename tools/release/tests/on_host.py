# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Runs in an installed host: starts the service as its unit does, transfers a disk, stops it.

    python3 on_host.py transfer DISK SIZE
    python3 on_host.py guide < COMMANDS
    python3 on_host.py container USER ARGUMENT ...

The second runs commands, a JSON list, by a shell, and from the command `start the
service` on by another one with the service running. The third runs a command as a
container would, moves data through it and stops it.

The services that the unit asks of systemd are provided here: folders, capabilities,
sd_notify(3) and the watchdog. Prints what was seen, as JSON.
"""

from __future__ import annotations

import configparser
import ctypes
import fcntl
import hashlib
import json
import os
import pwd
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import time
import urllib.request

UNIT = "/usr/lib/systemd/system/ovirt-imageio.service"
NOTIFY = "/run/notify"
CONTROL = "/run/ovirt-imageio/sock"
CA = "/etc/pki/ovirt-imageio/ca.pem"
TICKET = "7f2d4f8e-disk"

# prctl(2), capabilities(7), netdevice(7)
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES = {"CAP_SETGID": 6, "CAP_SETUID": 7}
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def unit() -> dict[str, str]:
    """Return the [Service] section of the unit; of its lists only names are used here."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(UNIT)
    return dict(parser["Service"])


def loopback_up() -> None:
    """Switch on the loopback device of this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


class Service:
    """The daemon, started as the unit says."""

    def __init__(self) -> None:
        self.unit = unit()
        assert self.unit["Type"] == "notify"
        assert self.unit["ExecStart"].startswith("!")
        user = pwd.getpwnam(self.unit["User"])
        self._folder("/run", self.unit["RuntimeDirectory"], self.unit["RuntimeDirectoryMode"], user)
        self._folder("/var/log", self.unit["LogsDirectory"], self.unit["LogsDirectoryMode"], user)
        self.notify = notification_socket()
        self.states: list[str] = []

    @staticmethod
    def _folder(parent: str, name: str, mode: str, user: pwd.struct_passwd) -> None:
        path = os.path.join(parent, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, int(mode, 8))
        os.chown(path, user.pw_uid, user.pw_gid)

    def _restrict(self) -> None:
        """In the child: what CapabilityBoundingSet=, NoNewPrivileges= and UMask= say."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        kept = {_CAPABILITIES[name] for name in self.unit["CapabilityBoundingSet"].split()}
        for number in range(64):
            if number not in kept:
                prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # EINVAL past the last one
        assert self.unit["NoNewPrivileges"] == "yes"
        assert prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        os.umask(int(self.unit["UMask"], 8))

    def start(self, watchdog: float) -> None:
        """Start the daemon and wait until it is ready."""
        environ = {**os.environ, "NOTIFY_SOCKET": NOTIFY, "WATCHDOG_USEC": str(int(watchdog * 1e6))}
        command = [self.unit["ExecStart"].lstrip("!")]
        self.process = subprocess.Popen(command, env=environ, preexec_fn=self._restrict)
        self.wait_for("READY=1")

    def wait_for(self, state: str) -> None:
        """Wait for a word of the daemon."""
        while not self.states or state not in self.states[-1]:
            self.states.append(self.notify.recv(4096).decode())

    def identity(self) -> dict[str, str]:
        """Return what the kernel says of the daemon's rights."""
        with open(f"/proc/{self.process.pid}/status") as f:
            status = {key: value.strip() for key, _, value in (line.partition(":") for line in f)}
        return {key: status[key] for key in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs")}

    def reload(self) -> None:
        """Send what ExecReload= sends."""
        assert self.unit["ExecReload"].split()[1] == "-HUP"
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """Stop the daemon; returns its status."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_for("STOPPING=1")
        return self.process.wait(30)


def transfer(disk: str, size: int) -> dict[str, object]:
    """Upload an image to the disk and download it, over TLS and by the client."""
    from ovirt_imageio import client

    image = os.urandom(size // 2) + bytes(size - size // 2)
    with open("/tmp/image.raw", "wb") as f:
        f.write(image)
    ticket = {"uuid": TICKET, "size": size, "ops": ["read", "write"], "timeout": 300, "url": f"file://{disk}"}
    with open("/tmp/ticket.json", "w") as f:
        json.dump(ticket, f)
    ctl("add-ticket", "/tmp/ticket.json")
    url = f"https://localhost:54322/images/{TICKET}"
    client.upload("/tmp/image.raw", url, CA)
    context = ssl.create_default_context(cafile=CA)
    with urllib.request.urlopen(url, context=context, timeout=30) as response:
        over_tls = response.read()
    client.download(url, "/tmp/copy.raw", CA, fmt="raw")
    with open("/tmp/copy.raw", "rb") as f:
        copy = f.read()
    shown = ctl("show-ticket", TICKET)
    ctl("del-ticket", TICKET)
    with open(disk, "rb") as f:
        stored = f.read()
    digests = {hashlib.sha256(data).hexdigest() for data in (image, over_tls, copy, stored)}
    return {"different contents": len(digests), "ticket": shown}


def ctl(*args: str) -> str:
    """Run ovirt-imageioctl."""
    done = subprocess.run(["ovirt-imageioctl", *args], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    return done.stdout


def mode(path: str) -> str:
    """Tell a file's owner and mode as `USER MODE`."""
    st = os.stat(path)
    return f"{pwd.getpwuid(st.st_uid).pw_name} {stat.S_IMODE(st.st_mode):o}"


def guide() -> None:
    """Run the commands of a guide in a shell of their own."""
    commands = json.load(sys.stdin)
    start = commands.index("start the service")
    shell(commands[:start])
    service = Service()
    service.start(watchdog=10)
    shell(commands[start + 1 :])
    if service.stop():
        sys.exit("the service did not end cleanly")


def shell(commands: list[str]) -> None:
    """Run commands until one fails."""
    done = subprocess.run(["/bin/sh", "-ex"], input="\n".join(commands), text=True, timeout=90)
    if done.returncode:
        sys.exit(f"a command ended with {done.returncode}")


def container(user: str, command: list[str]) -> None:
    """Run a container's command, write into the image of its ticket, and stop it."""
    who = pwd.getpwnam(user)

    def become() -> None:
        os.setgroups([])
        os.setgid(who.pw_gid)
        os.setuid(who.pw_uid)

    notify = notification_socket()
    process = subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": NOTIFY}, preexec_fn=become)
    assert "READY=1" in notify.recv(4096).decode()
    context = ssl.create_default_context(cafile="/keys/cert.pem")
    url = "https://localhost:54322/images/mine"
    request = urllib.request.Request(url, data=b"data", method="PUT")
    assert urllib.request.urlopen(request, context=context, timeout=30).status == 200
    with urllib.request.urlopen(url, context=context, timeout=30) as response:
        assert response.read(6) == b"data\0\0"
    assert json.loads(ctl("show-ticket", "mine"))["uuid"] == "mine"
    process.send_signal(signal.SIGTERM)
    sys.exit(process.wait(30))


def notification_socket() -> socket.socket:
    """Return a socket as systemd has it, that anybody on the host may write to."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(NOTIFY)
    sock.settimeout(30)
    os.chmod(NOTIFY, 0o666)
    return sock


def main() -> None:
    """Entry point."""
    loopback_up()
    if sys.argv[1] == "guide":
        guide()
    elif sys.argv[1] == "container":
        container(sys.argv[2], sys.argv[3:])
    else:
        served_disk(sys.argv[2], int(sys.argv[3]))


def served_disk(disk: str, size: int) -> None:
    """Start the service, transfer a disk, and print what was seen."""
    service = Service()
    started = time.monotonic()
    service.start(watchdog=0.2)
    seen: dict[str, object] = {"seconds to ready": time.monotonic() - started}
    seen["identity"] = service.identity()
    seen["modes"] = {path: mode(path) for path in ("/run/ovirt-imageio", CONTROL, "/var/log/ovirt-imageio")}
    seen["transfer"] = transfer(disk, size)
    service.wait_for("WATCHDOG=1")
    service.reload()
    service.wait_for("WATCHDOG=1")
    seen["status"] = service.stop()
    seen["states"] = service.states
    with open("/var/log/ovirt-imageio/daemon.log") as f:
        seen["log"] = f.read()
    seen["log mode"] = mode("/var/log/ovirt-imageio/daemon.log")
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
