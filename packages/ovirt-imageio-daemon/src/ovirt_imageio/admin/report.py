# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The answers of `GET /status` as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ovirt_imageio.common.errors import shown
from ovirt_imageio.common.units import format_size

_COLUMNS = ("TICKET", "STATE", "CONNECTIONS", "IDLE", "SIZE", "MOVED", "RATE", "DOES")


def transfers(documents: Sequence[dict[str, Any]], *, total: int = 0) -> list[str]:
    """Return a table of transfers: a line each after the heading, and one for its last error.

    Args:
        documents: Those that the daemon told of.
        total: How many there are; 0 if these are all.
    """
    rows = [_row(document) for document in documents]
    widths = [max(len(row[i]) for row in (_COLUMNS, *rows)) for i in range(len(_COLUMNS))]
    lines = [_line(_COLUMNS, widths)]
    for document, row in zip(documents, rows):
        lines.append(_line(row, widths))
        error = document.get("last_error")
        if error is not None:
            lines.append(f"  last error, {error['age']} s ago: {error['text']}")
    if total > len(documents):
        lines.append(f"and {total - len(documents)} more, see --limit")
    return lines


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()


def _row(document: dict[str, Any]) -> tuple[str, ...]:
    name = _name(document)
    return (
        name if name.isprintable() else shown(name),
        document["state"],
        str(document["connections"]),
        f"{document['idle_time']} s",
        format_size(document["size"]),
        format_size(document["transferred"]) if "transferred" in document else "-",
        f"{format_size(document['rate'])}/s" if document["rate"] else "-",
        ", ".join(_operation(op) for op in document["operations"]) or document["reason"],
    )


def _name(document: dict[str, Any]) -> str:
    """Return what a manager called the transfer, else the ticket's id, which other commands take."""
    name: str = document.get("transfer_id", "")
    return document["uuid"] if not name or name.startswith("(ticket/") else name


def _operation(op: dict[str, Any]) -> str:
    """Write a running operation: `read 1.00 GiB at 0 (53%, 2.1 s)`."""
    share = f"{op['done'] * 100 // op['length']}%, " if op["length"] else ""
    return f"{op['kind']} {format_size(op['length'])} at {op['offset']} ({share}{op['age']:.1f} s)"


def daemon(status: dict[str, Any]) -> list[str]:
    """Return the state of the daemon, one fact a line."""
    connections, workers = status["connections"], status["workers"]
    states = {state: count for state, count in status["tickets"].items() if count and state != "total"}
    facts = [
        ("version", status["version"]),
        ("state", "stopping" if status["stopping"] else "serving"),
        ("uptime", f"{status['uptime']} s"),
        *((name, _address(address)) for name, address in status["services"].items()),
        ("connections", f"{connections['open']} of {connections['limit']}, {connections['idle']} idle"),
        ("workers", _workers(workers)),
        ("transfers", _counts(states.items())),
        *((f"requests {name}", _counts(counts.items())) for name, counts in status["requests"].items()),
    ]
    width = max(len(name) for name, _ in facts)
    return [f"{name.ljust(width)}  {text}" for name, text in facts]


def _workers(workers: dict[str, Any]) -> str:
    busy = f"{workers['busy']} of {workers['limit']} busy"
    return f"{busy}, {workers['threads']} threads, {workers['waiting']} requests waiting"


def _address(address: str) -> str:
    """Write an abstract address as ss(8) does, with @ in place of NUL."""
    return "@" + address[1:] if address.startswith("\0") else address


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts) or "none"
