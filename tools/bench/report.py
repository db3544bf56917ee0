# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians, ratios, the table in Markdown, and pictures of it in SVG."""

from __future__ import annotations

import html
import statistics
from dataclasses import dataclass
from typing import Iterable, Mapping, Optional, Sequence

from bench.rows import RATES, Row, Sample

Samples = Mapping[str, Sequence[Sample]]
"""The samples of one row, by implementation: `3`, `2.5`, and the row's baseline."""

OURS, PEER = "3", "2.5"


@dataclass(frozen=True)
class Line:
    """One metric of one row."""

    metric: str
    values: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]

    def ratio(self, to: str) -> Optional[float]:
        """Ours divided by another implementation's value, if both are known and not zero."""
        ours, other = self.values.get(OURS), self.values.get(to)
        return ours / other if ours is not None and other else None


def summarize(samples: Samples) -> list[Line]:
    """The median and the range of every metric, in the order they were measured."""
    metrics: dict[str, None] = {}
    for rows in samples.values():
        for sample in rows:
            metrics.update(dict.fromkeys(sample))
    return [_line(metric, samples) for metric in metrics]


def _line(metric: str, samples: Samples) -> Line:
    values, spread = {}, {}
    for name, rows in samples.items():
        numbers = [s[metric] for s in rows if metric in s]
        if numbers:
            values[name] = statistics.median(numbers)
            spread[name] = min(numbers), max(numbers)
    return Line(metric, values, spread)


def verdicts(row: Row, lines: Iterable[Line]) -> list[tuple[str, str, bool]]:
    """Each goal of a row in words, what was measured, and whether that reaches it."""
    by_metric = {line.metric: line for line in lines}
    found = []
    for goal in row.goals:
        line = by_metric.get(goal.metric)
        ratio = line.ratio(PEER if goal.over == "peer" else goal.over) if line else None
        if ratio is not None:
            found.append((str(goal), f"{ratio:.2f}×", goal.reached(ratio)))
    for limit in row.limits:
        line = by_metric.get(limit.metric)
        if line and OURS in line.values:
            value = line.values[OURS]
            found.append((str(limit), number(value), limit.reached(value)))
    return found


def number(value: Optional[float]) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(results: Sequence[tuple[Row, Samples]]) -> str:
    """The whole table in Markdown."""
    out = [
        "| row | metric | 3 | 2.5 | baseline | to 2.5 | to baseline |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, samples in results:
        lines = summarize(samples)
        for i, line in enumerate(lines):
            baseline = _with_spread(line, row.baseline_name)
            cells = [
                f"{row.title} (`{row.name}`)" if i == 0 else "",
                line.metric,
                _with_spread(line, OURS),
                _with_spread(line, PEER),
                f"{baseline} {row.baseline_name}" if baseline else "",
                _times(line.ratio(PEER)),
                _times(line.ratio(row.baseline_name)),
            ]
            out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def goals_table(results: Sequence[tuple[Row, Samples]]) -> str:
    """What was to be reached, and what was, in Markdown."""
    out = ["| row | goal | reached |", "|---|---|---|"]
    for row, samples in results:
        for text, measured, ok in verdicts(row, summarize(samples)):
            out.append(f"| {row.title} | {text} | {'yes' if ok else '**no**'}, {measured} |")
    return "\n".join(out) + "\n"


def _with_spread(line: Line, name: str) -> str:
    if name not in line.values:
        return ""
    low, high = line.spread[name]
    text = number(line.values[name])
    return text if low == high else f"{text} ({number(low)} … {number(high)})"


def _times(ratio: Optional[float]) -> str:
    return "" if ratio is None else f"**{ratio:.2f}×**"


def picture(title: str, results: Sequence[tuple[Row, Samples]], metric: str) -> str:
    """Bars of our ratio to the peer for every row that has a metric, as SVG."""
    bars = []
    for row, samples in results:
        for line in summarize(samples):
            ratio = line.ratio(PEER) if line.metric == metric else None
            if ratio is not None:
                bars.append((row.title, ratio))
    return _bars(title, bars, better="right" if metric in RATES else "left")


_COLOURS = "text{font:13px system-ui,sans-serif;fill:#333}.bar{fill:#2b6cb0}.one{stroke:#c05621}"
_DARK = "@media(prefers-color-scheme:dark){text{fill:#ddd}.bar{fill:#63b3ed}.one{stroke:#f6ad55}}"


def _bars(title: str, bars: Sequence[tuple[str, float]], *, better: str) -> str:
    left, width, step = 380, 420, 26
    top = max([1.25, *(ratio for _, ratio in bars)])
    height = 62 + step * len(bars)
    one = left + width / top
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" '
            f'role="img" aria-label="{html.escape(title)}">'
        ),
        f"<style>{_COLOURS}{_DARK}</style>",
        f'<text x="10" y="20" font-weight="bold">{html.escape(title)}</text>',
        f'<text x="{one + 4:.0f}" y="38">2.5 = 1, further {better} is better</text>',
        f'<line class="one" x1="{one:.0f}" x2="{one:.0f}" y1="28" y2="{height - 8}"/>',
    ]
    for i, (name, ratio) in enumerate(bars):
        y = 46 + i * step
        length = width * ratio / top
        parts += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect class="bar" x="{left}" y="{y}" width="{length:.1f}" height="18" rx="2"/>',
            f'<text x="{left + length + 6:.0f}" y="{y + 14}">{ratio:.2f}×</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
