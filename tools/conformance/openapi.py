# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Runs schemathesis with the OpenAPI description against the daemon of this checkout.

    python -m conformance.openapi --examples 1000 --seed 1

Requests are made from docs/reference/openapi.yaml, well-formed ones and others, and every
response is held against it by all checks. Where the description allows more than schemathesis can
make use of, it is narrowed: see openapi_narrowed.py. Parts that are not tried are printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer

from .openapi_narrowed import IMAGE_SIZE, NARROWINGS, narrowed

HERE = Path(__file__).parent
DESCRIPTION = HERE.parent.parent / "docs" / "reference" / "openapi.yaml"

PARTS = ("images", "tickets")
PHASES = "examples,coverage,fuzzing,stateful"

# Operations that are not tried, and why.
EXCLUDED = {
    "removeTickets": "it would take away the tickets that other requests use; test_tickets.py tries it",
    "getTicketsMethods": "the methods that need an id are 400, not 405, without; test_tickets.py tries it",
    "runProfile": "400 while it runs already, which the description cannot tell; test_handlers_profile.py tries it",
}

# Other things that are not tried, and why.
OMITTED = {
    "methods beyond RFC 9110 and PATCH": "the contract has 501 for them, not 405; test_resources.py tries them",
    "Allow in answers to OPTIONS, by the description": "it depends on the ticket; test_options.py looks at it",
    "1.0 for 1 in documents": "an integer to JSON Schema, none to the contract; test_tickets.py tries it",
    "a uuid unlike the id in the path": "400, which the description cannot tell; test_tickets.py tries it",
}


def program() -> Path:
    """The command of the environment that runs this."""
    return Path(sys.executable).parent / "schemathesis"


def run(*, examples: int, seed: int, phases: str = PHASES, only: str | None = None) -> int:
    """Try so many examples for each operation; returns an exit status.

    Each part of the description has a daemon of its own, since one part removes tickets that the other uses. So
    both are tried at the same time.

    Args:
        examples: most requests for an operation in each phase.
        seed: of the random numbers.
        phases: of schemathesis.
        only: "images" or "tickets": only that part of the description.
    """
    omitted = {narrowing.what: narrowing.why for narrowing in NARROWINGS}
    for name, why in {**EXCLUDED, **OMITTED, **omitted}.items():
        print(f"not tried: {name}: {why}", flush=True)
    options = [f"--phases={phases}", f"--max-examples={examples}", f"--seed={seed}"]
    with ThreadPoolExecutor() as pool:
        parts = [pool.submit(_try, tag, options) for tag in PARTS if only in (None, tag)]
        status = 0
        for part in parts:
            wrote, code = part.result()
            print(wrote, flush=True)
            status = code or status
    return status


def _try(tag: str, options: Sequence[str]) -> tuple[str, int]:
    """Try a part of the description; return what schemathesis wrote, and its status."""
    with tempfile.TemporaryDirectory(prefix="openapi-") as name:
        folder = Path(name)
        image = folder / "image"
        image.write_bytes(b"x" * (IMAGE_SIZE // 2) + bytes(IMAGE_SIZE // 2))
        config = {"control": {"transport": "tcp", "port": 0}}
        with Daemon(folder, tls=False, config=config, level="WARNING") as daemon:
            control = _control_port(daemon)
            _add_tickets(control, f"file://{image}")
            command = [
                str(program()),
                f"--config-file={HERE / 'schemathesis.toml'}",
                "run",
                str(_write_narrowed(folder)),
                f"--url={daemon.url if tag == 'images' else f'http://localhost:{control}'}",
                f"--include-tag={tag}",
                *options,
                "--suppress-health-check=all",
                "--request-timeout=30",
                "--continue-on-failure",
                "--workers=1",
                "--no-color",
                *(f"--exclude-operation-id={name}" for name in EXCLUDED),
            ]
            environ = {**os.environ, "SCHEMATHESIS_HOOKS": "conformance.hooks", "PYTHONPATH": str(HERE.parent)}
            done = subprocess.run(
                command,
                cwd=folder,
                env=environ,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            return done.stdout, done.returncode


def _write_narrowed(folder: Path) -> Path:
    """Write the description that is tried; return where."""
    yaml = importlib.import_module("yaml")  # comes with schemathesis, without types
    path = folder / "openapi.json"
    path.write_text(json.dumps(narrowed(yaml.safe_load(DESCRIPTION.read_text()))))
    return path


def _add_tickets(port: int, url: str) -> None:
    """Add those that hooks.py uses."""
    with HttpPeer.tcp("localhost", port) as control:
        for name, op in (("reader", "read"), ("writer", "write")):
            ticket = {"uuid": name, "url": url, "size": IMAGE_SIZE, "ops": [op], "timeout": 3600}
            response = control.request("PUT", f"/tickets/{name}", body=json.dumps(ticket).encode())
            if response.status != 200:
                raise RuntimeError(f"ticket refused: {response.status} {response.text}")


def _control_port(daemon: Daemon) -> int:
    found = re.search(r"control on '[^']*?:(\d+)'", daemon.state)
    if found is None:
        raise RuntimeError(f"the daemon does not tell where its control service listens: {daemon.state}")
    return int(found[1])


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m conformance.openapi", description=__doc__)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", default=PHASES)
    parser.add_argument("--only", choices=PARTS, help="one part of the description")
    options = parser.parse_args(args)
    return run(examples=options.examples, seed=options.seed, phases=options.phases, only=options.only)


if __name__ == "__main__":
    sys.exit(main())
