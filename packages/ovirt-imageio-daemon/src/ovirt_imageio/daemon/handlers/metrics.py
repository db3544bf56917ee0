# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Numbers for Prometheus: `GET /metrics`, on a listener of its own.

Everything is read when it is asked for; serving images pays nothing. No label has the id
of a ticket: whoever knows it may use the ticket, and their number has no bound.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..auth import Tickets
from ..http.loop import Loop
from ..http.message import Request, Response
from ..http.registry import Connections
from ..http.router import Route
from ..stats import Durations, Totals
from ..transfer import STATES
from ..version import __version__

if TYPE_CHECKING:
    from prometheus_client.registry import Collector
else:
    Collector = object  # EL 9 has a version without the class: any object with `collect` will do

K = TypeVar("K", bound="tuple[str, ...]")


class Metrics(Collector):
    """The resource `/metrics`. Loop thread only.

    Args:
        loop: whose workers are counted.
        tickets: those that are there.
        connections: of clients of images.
        totals: what was done so far.
    """

    def __init__(self, loop: Loop, tickets: Tickets, *, connections: Connections, totals: Totals) -> None:
        self._loop = loop
        self._tickets = tickets
        self._connections = connections
        self._totals = totals
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def routes(self) -> list[Route]:
        """List the resources."""
        return [Route("/metrics", {"GET": self.get})]

    async def get(self, request: Request) -> Response:
        """Tell everything at once, in the text format of Prometheus."""
        return Response(200, [("Content-Type", CONTENT_TYPE_LATEST)], generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """Yield what is known now; called by the registry."""
        yield from self._daemon()
        yield from self._operations()
        yield _counters(
            "imageio_responses",
            "Responses, by service and status.",
            ("service", "status"),
            {(service, str(status)): n for (service, status), n in self._totals.requests.items()},
        )
        refused = {
            (service, str(status)): n
            for (service, status), n in self._totals.requests.items()
            if 400 <= status < 500 or status == 503
        }
        yield _counters("imageio_refusals", "Requests that were refused.", ("service", "status"), refused)
        errors = {(kind,): n for kind, n in self._totals.operations.errors.items()}
        yield _counters("imageio_errors", "Failures of storage and transfers, by kind.", ("kind",), errors)

    def _daemon(self) -> Iterator[Metric]:
        yield _gauges("imageio_info", "Always 1; the version is a label.", ("version",), {(__version__,): 1})
        yield _gauges("imageio_uptime_seconds", "Time since the daemon started.", (), {(): self._totals.uptime})
        states = self._tickets.states()
        yield _gauges(
            "imageio_transfers",
            "Tickets, by what they are up to.",
            ("state",),
            {(state,): states[state] for state in STATES},
        )
        connections, workers = self._connections, self._loop.workers
        idle = connections.idle_count
        yield _gauges(
            "imageio_connections",
            "Client connections to images.",
            ("state",),
            {("idle",): idle, ("busy",): len(connections) - idle},
        )
        yield _gauges("imageio_connections_limit", "Most of them.", (), {(): connections.limit})
        yield _gauges(
            "imageio_workers",
            "Worker threads.",
            ("state",),
            {("busy",): workers.busy, ("idle",): max(workers.threads - workers.busy, 0)},
        )
        yield _gauges("imageio_workers_limit", "Most of them.", (), {(): workers.limit})
        yield _gauges("imageio_workers_queue", "Requests that wait for one.", (), {(): workers.waiting})

    def _operations(self) -> Iterator[Metric]:
        by_kind = self._totals.operations.operations
        yield _counters(
            "imageio_operations",
            "Finished operations, by kind and result.",
            ("kind", "result"),
            {
                (kind, result): n
                for kind, stats in by_kind.items()
                for result, n in (("ok", stats.count - stats.errors), ("failed", stats.errors))
            },
        )
        sizes = {(kind,): stats.size for kind, stats in by_kind.items()}
        yield _counters("imageio_bytes", "Bytes that finished operations moved or zeroed.", ("kind",), sizes)
        histogram = HistogramMetricFamily(
            "imageio_operation_duration_seconds", "How long operations took.", labels=["kind"]
        )
        for kind, counts in self._totals.durations.counts.items():
            histogram.add_metric([kind], _buckets(counts), by_kind[kind].seconds)
        yield histogram


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Sum up counts: a bucket of Prometheus has all that took no longer than its bound."""
    result, total = [], 0
    for bound, count in zip([*map(str, Durations.BOUNDS), "+Inf"], counts):
        total += count
        result.append((bound, float(total)))
    return result


def _gauges(name: str, text: str, labels: tuple[str, ...], values: Mapping[K, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counters(name: str, text: str, labels: tuple[str, ...], values: Mapping[K, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
