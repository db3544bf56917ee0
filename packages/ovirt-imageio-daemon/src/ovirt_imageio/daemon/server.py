# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The life of the daemon, in one thread, the loop's.

Its phases:

- start: as root the log, with the user's rights, TCP ports and TLS keys;
  as user Unix sockets and the loop's tasks.
- run: until stopped; SIGHUP makes it read again what may change.
- stop: new work is answered 503. Running requests have `stop_timeout` to finish, then
  they are cancelled. A second signal ends at once.
- close: sockets, workers, files, and the thread that writes the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable

from . import handover, memory, privileges, reloading
from . import log as log_setup
from .auth import Tickets
from .config import Config, ConfigError
from .errors import DeadlineExpired, Overloaded
from .handlers.checksum import Checksum
from .handlers.extents import Extents
from .handlers.images import Images
from .handlers.info import Info
from .handlers.profile import Profile
from .handlers.status import Status
from .handlers.tickets import TicketsHandler
from .http import report
from .http.loop import Loop
from .http.message import Request
from .http.registry import Connections
from .http.router import Route
from .logwriter import LogWriter
from .services import ControlService, LocalService, MetricsService, RemoteService, Service
from .stats import Totals
from .systemd import Notifier
from .tickets import Ticket
from .tls import TlsContexts, origin_problem
from .version import __version__

# The control service has a count of its own: no flood of strangers shuts the manager out.
_CONTROL_CONNECTIONS = 256
_METRICS_CONNECTIONS = 16

# Seconds for cancelled requests to end. With stop_timeout it stays below systemd's patience.
_CANCEL_TIMEOUT = 5.0

# Seconds for the answers of requests that were cancelled.
_ANSWER_TIMEOUT = 0.5

# Seconds that the log may take for a line at the end.
_LOG_TIMEOUT = 2.0

# How long a log that hangs may hold up the word that the daemon serves.
_LOG_PATIENCE = 0.5

# Seconds that a worker may take to come back after everything was cancelled.
_WORKERS_TIMEOUT = 1.0

log = logging.getLogger(__name__)


class Server:
    """All services of one daemon, in the thread that calls `start` and `run`.

    Args:
        cfg: the configuration.
        notifier: whom to tell about readiness.
        ticket: one to begin with, without the control service.
        load_config: reads the configuration again on `reload`.

    Attributes:
        remote, local, control, metrics: the services; None if disabled.
        totals: what was done so far.
    """

    def __init__(
        self,
        cfg: Config,
        *,
        notifier: Notifier,
        ticket: Ticket | None = None,
        load_config: Callable[[], Config] | None = None,
    ) -> None:
        self.cfg = cfg
        self.totals = Totals()
        self.remote = RemoteService(cfg)
        self.local = LocalService(cfg) if cfg.local.enable else None
        self.control = ControlService(cfg) if cfg.control.enable else None
        self.metrics = MetricsService(cfg) if cfg.metrics.enable else None
        self._notifier = notifier
        self._ticket = ticket
        self._load_config = load_config
        self._loop = Loop(cfg.daemon.max_workers)
        self._connections = Connections(self._loop, cfg.daemon.max_http_connections)
        self._room = cfg.daemon.max_http_connections  # connections that the limit of open files allows
        self._stops = 0
        self._log: LogWriter | None = None
        self.tickets = Tickets(self._loop, cfg, totals=self.totals)

    # Starting.

    def start(self) -> None:
        """Take addresses, drop privileges and prepare to serve; `run` serves.

        Raises:
            ConfigError: something configured cannot be had; one line says what.
        """
        started = time.monotonic()
        if self.cfg.daemon.keep_memory:
            memory.keep()
        handover.open_log(self.cfg)
        limit = privileges.raise_file_limit()
        self._room = privileges.room_for_connections(limit)
        self.remote.bind()
        if self.control and self.control.is_tcp:
            self.control.bind()
        if self.metrics:
            self.metrics.bind()
        if privileges.needs_drop(self.cfg):
            self._drop_privileges()
        else:
            self.remote.load_tls()
        self._write_log()
        self._log_start(limit)
        self._limit_connections()
        if self.local:
            self.local.bind()
        if self.control and not self.control.is_tcp:
            self.control.bind()
        self._start_services()
        self._loop.spawn(self._announce(started), name="announce")
        self._loop.spawn(self._keep_house(), name="housekeeping")
        if self._notifier.watchdog_interval is not None:
            self._loop.spawn(self._feed_watchdog(self._notifier.watchdog_interval), name="watchdog")

    def _drop_privileges(self) -> None:
        """Become the unprivileged user; keys are read by whichever user may."""
        try:
            self.remote.load_tls()
        except ConfigError as e:
            if not isinstance(e.__cause__, PermissionError):
                raise
            # A root without capabilities, as in the unit, may be shut out where a group is not.
            privileges.drop(self.cfg)
            self.remote.load_tls()
        else:
            privileges.drop(self.cfg)
            if self.remote.contexts:
                self.remote.contexts.privileges_dropped()

    def _write_log(self) -> None:
        """Begin to write the log, in a thread of its own."""
        loggers = log_setup.loggers(self.cfg)
        handlers = [handler for logger in loggers for handler in logger.handlers]
        self._log = LogWriter(loggers)
        handover.check_rotation(handlers)

    def _start_services(self) -> None:
        images = [
            *Images(self.tickets, self.cfg, unix_socket=self._local_address).routes(),
            *Extents(self.tickets).routes(),
            *Checksum(self.tickets).routes(),
        ]
        self._start(self.remote, [*images, *Info().routes()], self._connections)
        if self.local:
            self._start(self.local, images, self._connections)
        if self.control:
            routes = [
                *TicketsHandler(self.tickets).routes(),
                *Profile(self.cfg.profile.filename).routes(),
                *self._status().routes(),
            ]
            self._start(self.control, routes, Connections(self._loop, _CONTROL_CONNECTIONS))
        if self.metrics:
            self._start(self.metrics, self._metrics_routes(), Connections(self._loop, _METRICS_CONNECTIONS))

    def _metrics_routes(self) -> list[Route]:
        try:
            from .handlers.metrics import Metrics
        except ImportError as e:
            expected = f"false, or the Python package prometheus_client installed ({e})"
            raise self.cfg.error("metrics", "enable", expected) from e
        return Metrics(self._loop, self.tickets, connections=self._connections, totals=self.totals).routes()

    def _status(self) -> Status:
        return Status(
            self._loop,
            self.tickets,
            connections=self._connections,
            totals=self.totals,
            services={service.name: service.address for service in self._services()},
            stopping=lambda: self._stops > 0,
        )

    def _local_address(self) -> str | None:
        """Where clients of this host may come without encryption; None if they may not."""
        return self.local.address if self.local else None

    def _start(self, service: Service, routes: list[Route], connections: Connections) -> None:
        service.start(self._loop, routes, connections=connections, observer=self._observe)

    def _observe(self, request: Request, status: int, seconds: float) -> None:
        self.totals.response(request.service, status)
        report.served(request, status, seconds)

    def _log_start(self, file_limit: int) -> None:
        log.info(
            "Starting ovirt-imageio %s (host=%s pid=%d uid=%d gid=%d groups=%s files=%d)",
            __version__,
            socket.gethostname(),
            os.getpid(),
            os.getuid(),
            os.getgid(),
            ",".join(map(str, os.getgroups())),
            file_limit,
        )
        log.info("Configuration read from %s", ", ".join(self.cfg.files) or "defaults")
        for warning in self.cfg.warnings:
            log.warning("%s", warning)
        problem = origin_problem(self.cfg)
        if problem:
            log.warning("%s", problem)
        if self.remote.contexts and self.cfg.tls.reload:
            for name in self.remote.contexts.unreadable():
                log.warning(
                    "%s cannot be read without privileges: renew it by restarting the service",
                    name,
                )

    async def _announce(self, started: float) -> None:
        """Say that the daemon serves, as the first thing that the running loop does."""
        if self._ticket is not None:
            await self.tickets.add(self._ticket)
        where = [f"{service.name} on {service.address!r}" for service in self._services()]
        log.info("Ready in %.3f s: %s", time.monotonic() - started, ", ".join(where))
        if self._log is not None:
            self._log.catch_up(_LOG_PATIENCE)
        self._notifier.ready("Serving " + ", ".join(where))

    def _services(self) -> list[Service]:
        services: list[Service | None] = [self.remote, self.local, self.control, self.metrics]
        return [service for service in services if service]

    # Running.

    def run(self) -> None:
        """Serve until `stop` is called."""
        self._loop.run()

    async def _keep_house(self) -> None:
        tidier = memory.Tidier()
        while True:
            await self._loop.sleep(self.cfg.daemon.poll_interval)
            tidier.look(len(self._connections))
            await self.tickets.sweep()
            for service in self._services():
                service.tell_left_out(self._loop.now)
            if self.remote.contexts:
                await self._look_after_tls(self.remote.contexts)

    async def _look_after_tls(self, contexts: TlsContexts) -> None:
        if self.cfg.tls.reload:
            contexts.refresh()
        if contexts.must_look:
            # Without a worker, or a descriptor for a module of Python: the next time, then.
            with contextlib.suppress(Overloaded, OSError):
                await self._loop.worker(contexts.look)
        contexts.tell_validity(time.time())

    async def _feed_watchdog(self, interval: float) -> None:
        while True:
            self._notifier.alive()
            await self._loop.sleep(interval)

    def reload(self) -> None:
        """Read again what may change: TLS files, log levels, limits. Any thread, signal handlers too."""
        self._loop.call_soon_threadsafe(self._reload)

    def _reload(self) -> None:
        if self.remote.contexts and self.cfg.tls.reload:
            self.remote.contexts.refresh(force=True)
        if self._load_config is None:
            return
        try:
            new = self._load_config()
            levels = log_setup.apply_levels(new)
        except ConfigError as e:
            log.error("New configuration refused, the old one stays in use: %s", e)
            return
        found = reloading.changes(self.cfg, new)
        for warning in new.warnings:
            if warning not in self.cfg.warnings:
                log.warning("%s", warning)
        for change in found:
            if not change.live:
                log.warning("Needs a restart of the service to apply: %s", change)
        self._configure(reloading.merged(self.cfg, new)._replace(warnings=new.warnings))
        applied = [*levels, *(str(change) for change in found if change.live)]
        log.info("Configuration read again: %s", ", ".join(applied) or "nothing changed")

    def _configure(self, cfg: Config) -> None:
        """Use a configuration from now on, where its keys are looked at again."""
        self.cfg = self.tickets.cfg = cfg
        for service in self._services():
            service.cfg = cfg
        self._loop.workers.limit = cfg.daemon.max_workers
        self._limit_connections()

    def _limit_connections(self) -> None:
        wanted = self.cfg.daemon.max_http_connections
        self._connections.limit = min(wanted, self._room)
        if self._room < wanted:
            log.warning(
                "Client connections are limited to %d: max_http_connections needs a higher limit of open files",
                self._room,
            )

    # Stopping.

    def stop(self, reason: str) -> bool:
        """Begin to stop, or end at once when stopping already. Any thread, signal handlers too.

        Args:
            reason: for the log, like the name of a signal.

        Returns:
            Whether this was the first call.
        """
        self._stops += 1
        if self._stops == 1:
            self._loop.call_soon_threadsafe(self._begin_stop, reason)
            return True
        self._loop.stop()
        return False

    def _begin_stop(self, reason: str) -> None:
        self._loop.spawn(self._stop(reason), name="stop")

    async def _stop(self, reason: str) -> None:
        timeout = self.cfg.daemon.stop_timeout
        self._notifier.stopping()
        for service in self._services():
            service.refuse_new_work()
        self._connections.close_idle()
        log.info("%s received: running requests, %d, have %g s to finish", reason, self._running, timeout)
        if not await self._finished(timeout):
            log.warning("Requests that did not finish in time, %d, are cancelled", self._running)
        await self._drop_tickets()
        await self._finished(_ANSWER_TIMEOUT)
        self._connections.abort()
        for service in self._services():
            service.tell_left_out()
        log.info("Stopped: %s", self.totals.summary())
        self._loop.stop()

    @property
    def _running(self) -> int:
        """Requests that are served now, by remote and local."""
        return len(self._connections) - self._connections.idle_count

    async def _finished(self, timeout: float) -> bool:
        """Wait until no request runs; False if that takes too long."""
        until = self._loop.now + timeout
        while self._running:
            if not await self._connections.change(until - self._loop.now):
                return False
        return True

    async def _drop_tickets(self) -> None:
        """Cancel what still runs and release storage, without waiting for what hangs."""
        token = self._loop.token()
        task = self._loop.spawn(self.tickets.close(), name="drop tickets")
        task.on_done(lambda _: self._loop.resume(token))
        try:
            await self._loop.suspend(token, _CANCEL_TIMEOUT)
        except DeadlineExpired:
            log.warning("Storage was not released in %g seconds", _CANCEL_TIMEOUT)

    def close(self) -> bool:
        """Give everything back. After `run`, or after a `start` that failed.

        Returns:
            False if the log hangs: whoever looks after it, like the interpreter at its end, hangs as well.
        """
        for service in self._services():
            service.close()
        self._loop.close(_WORKERS_TIMEOUT)
        return self._log is None or self._log.close(_LOG_TIMEOUT)
