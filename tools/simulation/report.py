# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of seeds, kept in a file so that they can be run in parts, and the page made of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .bugs import BUGS
from .seeds import Outcome

_HEAD = Path(__file__).with_name("page.md")

FAULTS = {
    "killed": "processes killed by kill -9",
    "power loss": "losses of power at the client",
    "Control-C": "Control-C",
    "server: outage": "outages of the server",
    "server: crash": "losses of power at the server",
    "server: refused": "connections refused",
    "server: idle": "idle connections closed",
    "server: before": "connections broken before a request",
    "server: midway": "connections broken within a body",
    "server: after": "connections broken after a request was carried out",
    "server: silent": "answers that never came",
    "server: late": "requests carried out after the client had given up",
    "server: busy": "answers 503",
    "server: early": "answers 503 within a body",
    "server: failed": "answers 500",
    "server: garbage": "answers with another range",
    "server: damaged_put": "bytes stored wrong",
    "server: damaged_get": "bytes delivered wrong",
    "disk: read": "reads that failed",
    "disk: write": "writes that failed",
    "disk: sync": "syncs that failed",
    "disk: short": "writes cut short",
}


def empty() -> dict[str, Any]:
    """Return results of no seeds."""
    return {
        "first": None,
        "next": None,
        "seeds": 0,
        "seconds": 0.0,
        "simulated": 0.0,
        "digest": "",
        "counts": {},
        "stories": {},
        "broken": {},
    }


def load(path: Path) -> dict[str, Any]:
    """Read results, or begin anew."""
    if not path.exists():
        return empty()
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def save(path: Path, results: dict[str, Any]) -> None:
    """Write results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def summed(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the sum of some seeds."""
    results = empty()
    counts: Counter[str] = Counter()
    stories: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
        stories[outcome.story] += 1
        results["simulated"] += outcome.seconds
        results["digest"] = together(results["digest"], outcome.digest)
        if outcome.broken:
            results["broken"][str(outcome.seed)] = list(outcome.broken)
    results.update(seeds=len(outcomes), counts=dict(counts), stories=dict(stories))
    return results


def add(results: dict[str, Any], more: dict[str, Any]) -> None:
    """Add the sum of further seeds."""
    for name in ("seeds", "seconds", "simulated"):
        results[name] += more[name]
    results["digest"] = together(results["digest"], more["digest"])
    for name in ("counts", "stories"):
        total = Counter(results[name])
        total.update(more[name])
        results[name] = dict(total)
    results["broken"].update(more["broken"])


def together(one: str, other: str) -> str:
    """Return the digest of two parts, whichever comes first."""
    return f"{int(one or '0', 16) ^ int(other or '0', 16):032x}"


def summary(results: dict[str, Any]) -> str:
    """Return one line."""
    counts = Counter(results["counts"])
    faults = sum(counts[name] for name in FAULTS)
    return (
        f"{results['seeds']:,} seeds, {counts['runs']:,} runs, {counts['steps']:,} steps, {faults:,} faults, "
        f"{results['simulated'] / 3600:,.0f} simulated hours, digest {results['digest'][:12]}, "
        f"broken promises: {len(results['broken'])}"
    )


def speed(results: dict[str, Any]) -> int:
    """Return how many seeds one core runs in an hour."""
    per_hour: float = results["seeds"] * 3600 / max(results["seconds"], 1e-6)
    return int(round(per_hour, -3 if per_hour > 10_000 else 0))


def page(results: dict[str, Any], command: str, note: str = "") -> str:
    """Return the page for the documentation, in Markdown."""
    counts = Counter(results["counts"])
    lines = [_HEAD.read_text(encoding="utf-8").rstrip(), ""]
    lines += ["## The last long run", "", "```console", f"$ {command}", summary(results), "```", ""]
    lines += [f"One core ran {speed(results):,} seeds an hour. {note}".rstrip(), ""]
    for seed, broken in results["broken"].items():
        lines += [f"**seed {seed}**: {'; '.join(broken)}", ""]
    lines += ["| story | seeds |", "|---|---|"]
    lines += [f"| {name} | {number:,} |" for name, number in sorted(results["stories"].items())]
    lines += ["", "| runs | |", "|---|---|"]
    lines += [f"| {name} | {counts[name]:,} |" for name in ("succeeded", "failed", "killed")]
    lines += ["", "| what went wrong | times |", "|---|---|"]
    lines += [f"| {text} | {counts[name]:,} |" for name, text in FAULTS.items() if counts[name]]
    if results.get("bugs"):
        lines += ["", *_bugs(results["bugs"])]
    return "\n".join(lines) + "\n"


def _bugs(found: dict[str, Any]) -> list[str]:
    """Return the table of planted bugs."""
    lines = ["## Planted bugs", ""]
    lines.append("Each is planted alone, and seeds are run from 1 on until one finds it.")
    lines += ["", "| bug | seeds needed | of 500 seeds find it | what is broken then |", "|---|---|---|---|"]
    for bug in BUGS:
        row = found.get(bug.name)
        if row is not None:
            said = "`{}`".format(row["said"].replace("|", "\\|")) if row["said"] else ""
            lines.append(f"| {bug.what} | {row['first'] or 'not found'} | {row['share']} | {said} |")
    return lines
