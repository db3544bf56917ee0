# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The comparison of two servers for the documentation, from the reports of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .differences import ABORTS, DIFFERENCES
from .storage import read_json

_SIGNS = {"passed": "yes", "failed": "no", "skipped": "n/a"}

_INTRODUCTION = """\
# Conformance

Each row is a rule of the [HTTP API](http-api.md) or of [tickets](tickets.md), which `tools/conformance`
checks through the sockets of a server: by TLS and by Unix socket, with images behind NBD, in files, and behind
another server, wherever that matters. *yes*: the server keeps the rule in every combination. *no*: in at least one it
does not, and the last column says how. *n/a*: the rule is about something the server does not announce.

This page is made by `make conformance-peer`; any server of the protocol can be checked by
`python -m conformance` in `tools`, see its `--help`.

Beyond these rules, `make fuzz` tries 50,000 generated requests and more: 15,000 heads, as many bodies with a length
and as many chunked ones, whole and broken, which h11 judges too; and what schemathesis makes of
[openapi.yaml](openapi.yaml), well-formed and not, for each operation. The last run tried 45,300 of the
former and 11,792 of the latter, and found nothing. `make check` tries a fixed selection of each.
"""


def write_table(path: Path, ours: Path, theirs: Path) -> list[str]:
    """Write the page.

    Args:
        path: where to.
        ours: report of this daemon.
        theirs: report of the peer.

    Returns:
        What is not as it should be: differences without an explanation, explanations
        without a difference, rules that this daemon breaks.
    """
    left, right = read_json(ours), read_json(theirs)
    faults = [f"{name}: this daemon breaks the rule: {rule['why']}" for name, rule in left.items() if _failed(rule)]
    lines = [_INTRODUCTION]
    chapters: dict[str, list[str]] = {}
    for name, rule in left.items():
        chapters.setdefault(rule["chapter"], []).append(name)
    for chapter, names in chapters.items():
        lines += [
            f"\n## {chapter.replace('{', '&#123;')}\n",
            "| rule | this daemon | 2.5.1 | difference |",
            "|---|---|---|---|",
        ]
        for name in names:
            peer = right.get(name, {"outcome": "skipped", "why": ""})
            why = DIFFERENCES.get(name, "")
            if _failed(peer) and not why:
                faults.append(f"{name}: not explained: {peer['why']}")
            if why and not _failed(peer) and why != ABORTS:  # which depends on who is faster
                faults.append(f"{name}: there is no difference to explain")
            cells = [left[name]["title"], _sign(left[name]), _sign(peer), why]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    path.write_text("\n".join(lines) + "\n")
    return faults


def _failed(rule: dict[str, Any]) -> bool:
    return bool(rule["outcome"] == "failed")


def _sign(rule: dict[str, Any]) -> str:
    return _SIGNS[rule["outcome"]]


def _cell(text: str) -> str:
    for char in "\\|*<_":
        text = text.replace(char, "\\" + char)
    return text
