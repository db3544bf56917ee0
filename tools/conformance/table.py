# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The comparison of two servers for the documentation, from the reports of two runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .differences import DIFFERENCES, Difference
from .storage import read_json

_SIGNS = {"passed": "yes", "failed": "no", "skipped": "n/a"}

_INTRODUCTION = """\
# Conformance

Each row is a rule of the [HTTP API](http-api.md) or of [tickets](tickets.md), which `tools/conformance`
checks through the sockets of a server. Where it matters, rules are tried by TLS and by Unix socket, with images behind
NBD, in files, and behind another server. A *yes* means that the server keeps the rule in every combination. A *no*
means that in at least one it does not, and the last column says how. An *n/a* means that the rule could not be tried,
and the last column says why.
Nothing in this table is stated without a run: what the last column says of a *no* has to be seen in its faults.

This page is made by `make conformance-peer`.

## Check a server of your own

Any server of the protocol can be checked, from a checkout on its host. `ci/bootstrap.sh` makes an environment
for the suite.

```console
$ ci/bootstrap.sh    # untested
$ cd tools
$ ../.venv/bin/python -m conformance --control /run/ovirt-imageio/sock \\
    --remote https://localhost:54322 --cafile /etc/pki/ovirt-imageio/ca.pem \\
    --local @/org/ovirt/imageio --folder /srv/conformance
```

| option | names |
|---|---|
| `--control` | where tickets are added: a Unix socket, or `http://localhost:PORT`; always needed |
| `--tcp-control` | the control service on TCP as well, where `--control` names a Unix socket |
| `--remote` | the images service by TCP, a URL with a port |
| `--cafile` | certificates, PEM, that verify it; by default those of the system |
| `--local` | the images service on a Unix socket: a path, or `@` and an abstract name |
| `--folder` | where images and the sockets of qemu-nbd are made |
| `--version-expected` | what `GET /info/` has to report; by default anything |
| `--report` | a file to write the outcome of every rule to, as JSON |

`--remote` or `--local` is needed, or both. The server must reach the folder by the same path, as the user that it is. A
daemon with a `/tmp` of its own sees nothing below the `/tmp` and `/var/tmp` of its host. Any user can open the files
made there while the suite runs. They are removed at its end, and so are the tickets. Take a server that has no other
clients: one that breaks a rule may lose the tickets of others.

Without options a daemon of the checkout is started and checked. Options that name no server, or one that cannot be
connected to, are refused before any rule is tried, by exit status 4. Else it is 0 if every rule that was tried is kept,
and 1 if not. Options of pytest are taken as well: `-n 4` tries four rules at a time, `-k test_put` a part of them.

Skipped, each with its reason at the end, are rules

- of the images service, by the way that is not named;
- of images behind another server, without `--remote`. With it the server is its own origin: tickets name its
  images by that URL, and it must trust the certificate, by `backend_http.ca_file`;
- of images, where the host lacks qemu-nbd or qemu-img;
- of the control service on TCP, where it is on a Unix socket and `--tcp-control` names none;
- of features that the server does not announce.

## Generated requests

Beyond these rules, `make fuzz` tries 50,000 generated requests and more. They are 15,000 heads, as many bodies with a
length and as many chunked ones, whole and broken, which h11 judges too. Others schemathesis makes of
[openapi.yaml](openapi.yaml), well-formed and not, for each operation. The last run tried 45,300 of the
former and 28,801 of the latter, and found nothing. `make check` tries a fixed selection of each.
"""


def write_table(path: Path, ours: Path, theirs: Path) -> list[str]:
    """Write the page.

    Args:
        path: where to.
        ours: report of this daemon.
        theirs: report of the peer.

    Returns:
        Faults: differences without an explanation, explanations that the run does not
        show, rules that this daemon breaks or that were not tried.
    """
    left, right = read_json(ours), read_json(theirs)
    faults = [f"{name}: this daemon breaks the rule: {rule['faults']}" for name, rule in left.items() if _failed(rule)]
    faults += [f"{name}: not tried with this daemon" for name in right.keys() - left.keys()]
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
            peer, difference = right.get(name), DIFFERENCES.get(name)
            faults += [f"{name}: {fault}" for fault in _untold(peer, difference)]
            signs = [_sign(left[name]), _sign(peer) if peer else "not tried"]
            cells = [left[name]["title"], *signs, _reason(peer, difference)]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    path.write_text("\n".join(lines) + "\n")
    return faults


def _untold(peer: dict[str, Any] | None, difference: Difference | None) -> list[str]:
    """Return the facts that the table lacks on a rule after this run of the peer."""
    if peer is None:
        return ["not tried with the peer"]
    if not _failed(peer):
        return ["there is no difference to explain"] if difference else []
    if difference is None:
        return [f"not explained: {peer['faults']}"]
    if not any(re.search(difference.seen, fault) for fault in peer["faults"]):
        return [f"{difference.why!r} is not seen: {peer['faults']}"]
    return []


def _reason(peer: dict[str, Any] | None, difference: Difference | None) -> str:
    if peer is not None and peer["outcome"] == "skipped":
        reason = "; ".join(peer["skipped"])
        return f"{reason[:1].upper()}{reason[1:]}."
    return difference.why if difference else ""


def _failed(rule: dict[str, Any]) -> bool:
    return bool(rule["outcome"] == "failed")


def _sign(rule: dict[str, Any]) -> str:
    return _SIGNS[rule["outcome"]]


def _cell(text: str) -> str:
    for char in "\\|*<_":
        text = text.replace(char, "\\" + char)
    return text
