# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians, ratios, the table in Markdown, and pictures of it in SVG."""

from __future__ import annotations

import html
import math
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
    """Return the goals, and the figures that were reached, in Markdown."""
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
_CURVES = ".l3{stroke:#2b6cb0;fill:none}.l2{stroke:#c05621;fill:none}.g{stroke:#8884}"
_DARK = "@media(prefers-color-scheme:dark){text{fill:#ddd}.bar{fill:#63b3ed}.one{stroke:#f6ad55}}"


def _bars(title: str, bars: Sequence[tuple[str, float]], *, better: str) -> str:
    left, width, step = 440, 420, 26
    top = max([1.25, *(ratio for _, ratio in bars)])
    height = 62 + step * len(bars)
    one = left + width / top
    # On the side of the line that has room: the label is longer than what the right margin leaves.
    side, anchor = (1, "start") if one < left + width / 2 else (-1, "end")
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" '
            f'role="img" aria-label="{html.escape(title)}">'
        ),
        f"<style>{_COLOURS}{_DARK}</style>",
        f'<text x="10" y="20" font-weight="bold">{html.escape(title)}</text>',
        f'<text x="{one + side * 4:.0f}" y="38" text-anchor="{anchor}">2.5 = 1, further {better} is better</text>',
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


def curve(title: str, x_name: str, unit: str, samples: Samples) -> str:
    """Our and the peer's cost over a number that grows, both axes logarithmic, as SVG."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for line in summarize(samples):
        name, _, x = line.metric.rpartition(" at ")
        if name == unit:
            for who, value in line.values.items():
                lines.setdefault(who, []).append((float(x), max(value, 1e-3)))
    return _curves(title, x_name, unit, lines) if lines else ""


def _curves(title: str, x_name: str, unit: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    left, top, width, height = 70, 34, 430, 220
    points = [point for line in lines.values() for point in line]
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys) * 1.01))

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = math.log(y / low) / math.log(high / low)
        return left + across * width, top + height * (1 - up)

    label = html.escape(title)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {top + height + 48}" '
            f'role="img" aria-label="{label}">'
        ),
        f"<style>{_COLOURS}{_CURVES}{_DARK}</style>",
        f'<text x="10" y="20" font-weight="bold">{label}, {html.escape(unit)}</text>',
    ]
    y = low
    while y <= high * 1.01:
        line = at(xs[0], y)[1]
        parts.append(f'<line class="g" x1="{left}" x2="{left + width}" y1="{line:.0f}" y2="{line:.0f}"/>')
        parts.append(f'<text x="{left - 6}" y="{line + 4:.0f}" text-anchor="end">{y:g}</text>')
        y *= 10
    for x in xs:
        parts.append(f'<text x="{at(x, low)[0]:.0f}" y="{top + height + 18}" text-anchor="middle">{_short(x)}</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">{html.escape(x_name)}</text>'
    )
    for who, line_points in lines.items():
        spots = [at(*point) for point in sorted(line_points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline class="{"l3" if who == OURS else "l2"}" stroke-width="2" points="{path}"/>')
        parts.append(f'<text x="{spots[-1][0] + 6:.0f}" y="{spots[-1][1] + 4:.0f}">{who}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 1 else f"{x:.2g}"
