# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The cost of very many tickets for a daemon, and the wait of other requests meanwhile.

    PYTHONPATH=tools .venv/bin/python -m bench.tickets --count 100000

A client asks for the options of the service all the time, one request after the other. A *stop* is the longest of
its waits. It is told as time on the wall, and as the processor time that the daemon's loop had meanwhile. Processor
time does not grow where other programs want the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import Sequence

from imageio_testing.daemon import Daemon

MIB = 1 << 20


def main(args: Sequence[str] | None = None) -> None:
    """Measure one daemon, and print a line for each step."""
    parser = argparse.ArgumentParser(prog="bench.tickets", description="What very many tickets cost a daemon.")
    parser.add_argument("--count", type=int, default=100_000, metavar="N", help="tickets (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10, metavar="S", help="time without work (default %(default)s)"
    )
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(prefix="tickets-") as folder:
        with Daemon(folder, tls=False, level="WARNING") as daemon:
            _measure(daemon, options.count, options.seconds)


def _measure(daemon: Daemon, count: int, seconds: float) -> None:
    empty = _memory(daemon.pid)["VmRSS"]
    with _Step(daemon, f"add {count:,}") as step:
        _add(daemon, count)
    print(f"{'memory':<20} {(step.memory['VmRSS'] - empty) / count:8,.0f} bytes a ticket")
    with _Step(daemon, "nothing"):
        time.sleep(seconds)
    with _Step(daemon, "GET /status"):
        size = _call(daemon, "GET", "/status")
    print(f"{'its answer':<20} {size / MIB:8.1f} MiB")
    with _Step(daemon, "GET, all of them"):
        _call(daemon, "GET", f"/status?limit={count}")
    with _Step(daemon, "DELETE /tickets/"):
        _call(daemon, "DELETE", "/tickets/")


def _add(daemon: Daemon, count: int) -> None:
    with contextlib.closing(_connect(daemon.control_socket)) as connection:
        for number in range(count):
            name = f"ticket-{number:08}-0000-0000-0000-000000000000"
            ticket = {"uuid": name, "size": MIB, "url": "file:///none", "timeout": 86400, "ops": ["read", "write"]}
            _request(connection, "PUT", f"/tickets/{name}", json.dumps(ticket))


class _Step:
    """Prints how long the block took, the longest stop of the loop meanwhile, and memory.

    Attributes:
        memory: of the daemon after it, as `/proc/PID/status` names it, in bytes.
    """

    def __init__(self, daemon: Daemon, name: str) -> None:
        self._daemon = daemon
        self._name = name
        self._end = threading.Event()
        self._stop = self._stop_cpu = 0.0
        self._thread = threading.Thread(target=self._ask)
        self.memory: dict[str, int] = {}

    def __enter__(self) -> _Step:
        with open(f"/proc/{self._daemon.pid}/clear_refs", "w") as file:
            file.write("5")  # proc(5): the peak of memory begins anew
        self._before = _memory(self._daemon.pid)["VmRSS"]
        self._cpu = _loop_time(self._daemon.pid)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._began
        self._end.set()
        self._thread.join()
        cpu = _loop_time(self._daemon.pid) - self._cpu
        self.memory = _memory(self._daemon.pid)
        peak = (self.memory["VmHWM"] - self._before) / MIB
        print(
            f"{self._name:<20} {seconds:8.3f} s, loop {cpu:.3f} s, longest stop {self._stop * 1e3:.1f} ms "
            f"(loop {self._stop_cpu * 1e3:.1f} ms), {peak:+.1f} MiB at most",
            flush=True,
        )

    def _ask(self) -> None:
        pid = self._daemon.pid
        with contextlib.closing(_connect(self._daemon.local_socket)) as connection:
            while not self._end.is_set():
                began, cpu = time.monotonic(), _loop_time(pid)
                _request(connection, "OPTIONS", "/images/*")
                self._stop = max(self._stop, time.monotonic() - began)
                self._stop_cpu = max(self._stop_cpu, _loop_time(pid) - cpu)
                time.sleep(0.0005)  # leave the processor to the daemon


def _connect(path: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    return connection


def _call(daemon: Daemon, method: str, path: str) -> int:
    """Make one request of the control service; return the size of the answer's body."""
    with contextlib.closing(_connect(daemon.control_socket)) as connection:
        return _request(connection, method, path)


def _request(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> int:
    connection.request(method, path, body)
    response = connection.getresponse()
    size = 0
    while piece := response.read(MIB):
        size += len(piece)
    if response.status not in (200, 204):
        raise RuntimeError(f"{method} {path}: {response.status} {response.reason}")
    return size


def _loop_time(pid: int) -> float:
    """Return the processor time of the main thread, in seconds: sched-stats.rst of the kernel."""
    with open(f"/proc/{pid}/task/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def _memory(pid: int) -> dict[str, int]:
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}


if __name__ == "__main__":
    main()
