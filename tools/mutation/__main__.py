# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Break the NBD protocol and the extents in small ways, and look which the tests notice.

Each mutant is a process forked from this one, which has pytest loaded but none of our modules.
The mutant loads the broken module in place of the real one and runs the tests of that module.
One that they let pass is run with wider tests. A survivor has to be explained in
docs/design/mutation.md.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import hypothesis
import pytest

from .mutants import Mutant, mutants

TOP = Path(__file__).resolve().parents[2]
COMMON = "packages/ovirt-imageio-common"
EXPLAINED = TOP / "docs" / "design" / "mutation.md"
NAME = "ovirt_imageio.common."

# Loaded once, by the process that all mutants are forked from: what pytest loads by itself, less
# what these tests have no use for. That is most of the time of a short run.
_PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")
_OURS = ("ovirt_imageio", "imageio_testing", "packages", "conftest")

KILLED, SURVIVED, STUCK = "killed", "survived", "stuck"

# A test that a mutant keeps from ending; the whole selections take a tenth of it.
_PATIENCE = 60.0


class Module(NamedTuple):
    """A module to break.

    Attributes:
        name: Its name below `ovirt_imageio.common`.
        tests: Its own tests, below the tests of common.
        wider: Run if its own let a mutant pass.
    """

    name: str
    tests: tuple[str, ...]
    wider: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Of the source."""
        return TOP / COMMON / "src/ovirt_imageio/common" / (self.name.replace(".", "/") + ".py")


# Left to the wider tests, for it takes longer than all the others.
_LONG = "not a_million"

_NBD = ("nbd",)
MODULES = [
    Module("extents", ("test_extents.py",), ("nbd/test_extents.py",)),
    Module("nbd.extents", ("nbd/test_extents.py",), _NBD),
    Module("nbd.uri", ("nbd/test_uri.py",), _NBD),
    Module("nbd.wire", ("nbd/test_wire.py", "nbd/test_handshake.py"), _NBD),
    Module("nbd.replies", ("nbd/test_replies.py",), _NBD),
    Module("nbd.handshake", ("nbd/test_handshake.py",), _NBD),
    Module("nbd.connecting", ("nbd/test_connecting.py",), _NBD),
    Module("nbd.client", ("nbd/test_client.py",), _NBD),
    Module("nbd.pipeline", ("nbd/test_pipeline.py", "nbd/test_client.py"), _NBD),
]


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a syntax tree in place of a file."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(self._tree, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: Module, tree: ast.Module) -> None:
        self._name = NAME + module.name
        self._loader = _Loader(self._name, str(module.path), tree)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._loader.path, loader=self._loader)


def preload() -> None:
    """Load what the tests need, and forget what is ours: a child loads that with its mutant."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        _pytest("--collect-only", "-qq", str(TOP / COMMON / "tests" / "nbd"))
    for name in list(sys.modules):
        if name.partition(".")[0] in _OURS:
            del sys.modules[name]
    # Objects that exist now are never garbage: the collector of a child need not touch their pages.
    gc.collect()
    gc.freeze()


def _pytest(*options: str) -> int:
    plugins = [option for plugin in _PLUGINS for option in ("-p", plugin)]
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    config = ["--rootdir", str(TOP), "-c", str(TOP / "pyproject.toml")]
    return int(pytest.main([*config, *plugins, *quiet, *options]))


def fork(module: Module, mutant: Optional[Mutant], tests: Sequence[str]) -> int:
    """Run tests with a mutant, or with the module as it is, in a child; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        hypothesis.settings.register_profile(
            "mutation", max_examples=60, deadline=None, derandomize=True, database=None
        )
        hypothesis.settings.load_profile("mutation")
        tree = mutant.tree() if mutant else ast.parse(module.path.read_text())
        sys.meta_path.insert(0, _Finder(module, tree))
        paths = [str(TOP / COMMON / "tests" / test) for test in tests]
        chosen = ["-k", _LONG] if tests == module.tests else []
        status = _pytest("-x", "-q", "-m", "not slow", "--timeout=20", *chosen, *paths)
    finally:
        os._exit(status)


def outcomes(module: Module, todo: Sequence[Mutant], tests: Sequence[str], jobs: int) -> Iterator[tuple[Mutant, str]]:
    """Yield what became of each mutant, `jobs` of them at a time."""
    waiting = collections.deque(todo)
    running: dict[int, tuple[Mutant, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.popleft()
            running[fork(module, mutant, tests)] = mutant, time.monotonic()
        time.sleep(0.02)
        for pid, (mutant, started) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            late = time.monotonic() - started > _PATIENCE
            if not done and not late:
                continue
            if not done:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del running[pid]
            yield mutant, STUCK if not done else SURVIVED if status == 0 else KILLED


def explanations() -> dict[tuple[str, str, str], str]:
    """Return the explained survivors of the page: module, code and change, and why."""
    if not EXPLAINED.exists():
        return {}
    pattern = re.compile(r"^\| `([^`]+)` \| `(.+?)` \| `([^`]+)` \| (.+) \|$", re.MULTILINE)
    return {
        (name, code.replace("\\|", "|"), what.replace("\\|", "|")): why
        for name, code, what, why in pattern.findall(EXPLAINED.read_text())
    }


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    p.add_argument("modules", nargs="*", choices=[[], *(module.name for module in MODULES)], metavar="MODULE")
    p.add_argument("--count", type=int, help="only so many mutants of each module, by chance")
    p.add_argument("--seed", type=int, default=1, help="of that chance")
    p.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="mutants at a time")
    p.add_argument("--seconds", type=float, default=3600.0, help="begin no module after so many")
    p.add_argument("--results", type=Path, help="file for the results, in JSON")
    p.add_argument("--again", type=Path, help="only what survived in these results")
    return p.parse_args(argv)


def examine(module: Module, args: argparse.Namespace) -> dict[str, Any]:
    """Break a module in every way and return what became of the mutants.

    Raises:
        SystemExit: Its tests fail without a mutant.
    """
    _, status = os.waitpid(fork(module, None, (*module.tests, *module.wider)), 0)
    if status:
        raise SystemExit(f"the tests of {module.name} fail without a mutant")
    todo = list(mutants(module.path.read_text()))
    if args.again:
        survived = {(code, what) for _, code, what in json.loads(args.again.read_text())[module.name]["survivors"]}
        todo = [mutant for mutant in todo if (mutant.code, mutant.what) in survived]
    if args.count is not None and args.count < len(todo):
        todo = sorted(random.Random(args.seed).sample(todo, args.count), key=lambda mutant: mutant.line)
    counts = collections.Counter({"mutants": len(todo)})
    passed = []
    for mutant, outcome in outcomes(module, todo, module.tests, args.jobs):
        counts[outcome] += outcome != SURVIVED
        if outcome == SURVIVED:
            passed.append(mutant)
    survivors = []
    for mutant, outcome in outcomes(module, passed, module.wider, args.jobs):
        counts[outcome] += 1
        if outcome == SURVIVED:
            survivors.append(mutant)
            print(f"{module.path.name}:{mutant.line}: {mutant.what}: {mutant.code}", flush=True)
    print(f"{module.name}: {dict(counts)}", flush=True)
    return {**counts, "survivors": [(mutant.line, mutant.code, mutant.what) for mutant in survivors]}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; 1 if a survivor is not explained."""
    args = arguments(argv)
    preload()
    until = time.monotonic() + args.seconds
    known = explanations()
    results: dict[str, Any] = {}
    unexplained = 0
    for module in MODULES:
        if args.modules and module.name not in args.modules:
            continue
        if time.monotonic() > until:
            print(f"{module.name}: no time left")
            continue
        found = results[module.name] = examine(module, args)
        unexplained += sum((module.name, code, what) not in known for _, code, what in found["survivors"])
        if args.results:
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{unexplained} survivors are not explained in {EXPLAINED.relative_to(TOP)}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
