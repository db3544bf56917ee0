# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Profile the running daemon: `POST /profile/?run=y|n` and `GET /profile/`.

With the package yappi all threads are profiled. Without it Python's own profiler
looks at the thread that matters most for latency, the loop's.
"""

from __future__ import annotations

import importlib
import json
import logging
from typing import Any, Protocol

from ..errors import HttpError
from ..http.message import Request, Response
from ..http.router import Route

log = logging.getLogger(__name__)


class _Profiler(Protocol):
    name: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def save(self, filename: str) -> None: ...


class Profile:
    """The resource `/profile/` of the control service. Loop thread only.

    Args:
        filename: where the result goes, in the format of Python's pstats.
    """

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._running: _Profiler | None = None

    def routes(self) -> list[Route]:
        """List the resources."""
        return [Route("/profile/", {"GET": self.get, "POST": self.post})]

    async def get(self, request: Request) -> Response:
        """Tell whether a profiler runs, which one, and where its result will go."""
        state = {
            "running": self._running is not None,
            "profiler": self._running.name if self._running else None,
            "filename": self._filename,
        }
        body = json.dumps(state).encode() + b"\n"
        return Response(200, [("Content-Type", "application/json")], body)

    async def post(self, request: Request) -> Response:
        """Start with `run=y`, stop and write the result with `run=n`."""
        run = request.query.get("run")
        if run == "y":
            self._start()
        elif run == "n":
            await self._stop(request)
        else:
            raise HttpError(400, f"run is {run!r}, expected y or n")
        return Response(200)

    def _start(self) -> None:
        if self._running is not None:
            raise HttpError(400, "the profiler is running already")
        profiler = _make_profiler()
        profiler.start()
        self._running = profiler
        log.info("Profiling started with %s", profiler.name)

    async def _stop(self, request: Request) -> None:
        profiler, self._running = self._running, None
        if profiler is None:
            raise HttpError(400, "the profiler is not running")
        profiler.stop()
        try:
            await request.connection.loop.worker(profiler.save, self._filename)
        except OSError as e:
            text = f"the profile cannot be written to {self._filename}: {e.strerror}"
            raise HttpError(500, text) from e
        log.info("Profile written to %s", self._filename)


def _make_profiler() -> _Profiler:
    try:
        return _Yappi(importlib.import_module("yappi"))
    except ImportError:
        return _LoopProfiler()


class _LoopProfiler:
    """Python's own profiler; it sees the thread that starts it."""

    name = "cProfile"

    def __init__(self) -> None:
        import cProfile

        self._profile = cProfile.Profile()

    def start(self) -> None:
        self._profile.enable()

    def stop(self) -> None:
        self._profile.disable()

    def save(self, filename: str) -> None:
        self._profile.dump_stats(filename)


class _Yappi:
    """The profiler of the package yappi; it sees all threads."""

    name = "yappi"

    def __init__(self, module: Any) -> None:
        self._yappi = module

    def start(self) -> None:
        self._yappi.clear_stats()
        self._yappi.set_clock_type("cpu")
        self._yappi.start()

    def stop(self) -> None:
        self._yappi.stop()

    def save(self, filename: str) -> None:
        self._yappi.get_func_stats().save(filename, type="pstat")
