# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A row of the table: a measurement, its baseline, and its goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional

from bench.servers import Implementation
from bench.setup import Setup

Sample = Dict[str, float]
Measure = Callable[[Setup, Implementation], Sample]

RATES = frozenset(["MiB/s", "requests/s", "served"])
"""Metrics that are better when larger; every other one is better when smaller."""


@dataclass(frozen=True)
class Goal:
    """A ratio that a metric has to reach, to the peer or to the row's baseline."""

    metric: str
    ratio: float
    over: str = "peer"

    @property
    def at_least(self) -> bool:
        """The metric is a rate."""
        return self.metric in RATES

    def reached(self, ratio: float) -> bool:
        """Tell if a measured ratio satisfies the goal."""
        return ratio >= self.ratio if self.at_least else ratio <= self.ratio

    def __str__(self) -> str:
        """Say the goal as the table does."""
        return f"{self.metric} {'≥' if self.at_least else '≤'} {self.ratio:g}× {self.over}"


@dataclass(frozen=True)
class Limit:
    """An absolute bound on a metric of ours, where a ratio says nothing."""

    metric: str
    value: float

    def reached(self, value: float) -> bool:
        """Tell if a measured value satisfies the bound."""
        return value >= self.value if self.metric in RATES else value <= self.value

    def __str__(self) -> str:
        """Say the bound as the table does."""
        return f"{self.metric} {'≥' if self.metric in RATES else '≤'} {self.value:g}"


@dataclass(frozen=True)
class Row:
    """One thing to measure with every implementation in turn."""

    name: str
    title: str
    measure: Measure
    goals: tuple[Goal, ...] = ()
    limits: tuple[Limit, ...] = ()
    baseline: Optional[Callable[[Setup], Sample]] = None
    baseline_name: str = "nbdcopy"


ROWS: dict[str, Row] = {}


def row(name: str, title: str, *bounds: Any, baseline: Any = None) -> Callable[[Measure], Measure]:
    """Register a measurement under a name that `make bench ROWS=…` takes."""

    def add(measure: Measure) -> Measure:
        goals = tuple(b for b in bounds if isinstance(b, Goal))
        limits = tuple(b for b in bounds if isinstance(b, Limit))
        ROWS[name] = Row(name, title, measure, goals, limits, baseline)
        return measure

    return add
