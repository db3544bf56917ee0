# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of rounds, kept in a file so that they can be carried out in parts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from .model import Verdict

_FAULTS = ("storage", "daemon", "proxy", "origin", "refusal", "replace")
_COLUMNS = ("rounds", *_FAULTS, "writes", "flushes", "failed", "bytes", "lost")

_HEAD = """\
# Soak

The soak tries the promises of [Durability](../design/durability.md). Clients write, zero and flush over several
connections, and tickets are replaced. Meanwhile `kill -9` ends the daemon, a proxy in front of it and the storage,
up to three times a round. At the end of each round storage is killed once more and started again. Then every byte
of the image is compared with the contents that it may have. Where a flush was acknowledged, only the written data
are right. Elsewhere each sector may hold data written since, or the data from before.

`forgetful` storage is the NBD server of the tests that loses all writes that no flush covers, as a host without
power does. When qemu-nbd and nbdkit are killed, they lose less: their writes to a file stay in the page cache of
the host. A raw image loses nothing then. A qcow2 image loses data in clusters that no table refers to yet.

`proxy-origin` is a proxy whose ticket lives on while its origin and the storage behind it are killed and brought
back. Writes that were not flushed are lost with them. `two-tickets` is one storage for two tickets that spell its
URL in two ways, each with writers and flushes of its own. Now and then the storage answers a flush with an error,
and drops all that was written since the last one.

Made by

"""


def empty() -> dict[str, Any]:
    """Return results of no rounds."""
    return {"seed": "", "next": 0, "targets": {}, "skipped": {}, "problems": []}


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


def add(results: dict[str, Any], name: str, counts: Counter[str], verdict: Verdict) -> None:
    """Add what a round found."""
    row = Counter(results["targets"].get(name, {}))
    row.update(counts)
    row.update(rounds=1, bytes=verdict.bytes, lost=verdict.lost, torn=verdict.torn, open=verdict.open)
    results["targets"][name] = dict(row)
    for problem in verdict.problems:
        results["problems"].append(f"{name}: {problem}")


def totals(results: dict[str, Any]) -> Counter[str]:
    """Sum over all targets."""
    total: Counter[str] = Counter()
    for row in results["targets"].values():
        total.update(row)
    return total


def faults(total: Counter[str]) -> int:
    """Return how often something was killed or replaced."""
    return sum(total[kind] for kind in _FAULTS)


def summary(results: dict[str, Any]) -> str:
    """Return one line."""
    total = totals(results)
    return (
        f"{total['rounds']} rounds, {faults(total)} faults injected, {total['flushes']} flushes acknowledged, "
        f"{total['bytes']} bytes compared, bytes lost: {total['lost']}"
    )


def page(results: dict[str, Any], command: str) -> str:
    """Return the page for the documentation, in Markdown."""
    total = totals(results)
    lines = [_HEAD + "```console", f"$ {command}", summary(results), "```", ""]
    lines.append("| storage | rounds | killed: storage | daemon | proxy | origin and storage | flushes refused |")
    lines[-1] += " tickets replaced | writes acknowledged | flushes acknowledged | requests failed |"
    lines[-1] += " bytes compared | bytes lost |"
    lines.append("|---" * (len(_COLUMNS) + 1) + "|")
    for name, row in [*sorted(results["targets"].items()), ("**all**", total)]:
        lines.append(f"| {name} | " + " | ".join(f"{row.get(column, 0):,}" for column in _COLUMNS) + " |")
    lines += ["", f"When they were compared, {total['open']:,} sectors had changes that no flush covered, and might"]
    lines.append(f"have held more than one content. Of a write that was not answered {total['torn']:,} sectors held")
    lines.append("the beginning, and behind it the data from before. Or they held, in a qcow2 image, zeroes in")
    lines.append("place of such a write. There qemu zeroes a range first where a write ends in a cluster that")
    lines.append("reads as zeroes.")
    if results["skipped"]:
        skipped = ", ".join(f"{name} ({why})" for name, why in results["skipped"].items())
        lines += ["", f"Not run: {skipped}."]
    return "\n".join(lines) + "\n"
