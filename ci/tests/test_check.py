# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""ci/check.sh in a folder of its own, with tools that record instead of checking."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[1] / "check.sh"

# Leaves a file behind as failing tests do, and fails if it is told to.
TOOL = """#!/bin/sh
name=$(basename "$0")
echo "$name $*" >>"$LOG"
touch "${TMPDIR:-/tmp}/left by $name"
[ "$name" != "$FAIL" ]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "ci").mkdir()
    shutil.copy(CHECK, tmp_path / "ci")
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("ruff", "mypy", "lint-imports", "python", "tox"):
        (folder / name).write_text(TOOL)
        (folder / name).chmod(0o755)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def check(checkout: Path, *arguments: str, fail: str = "") -> tuple[int, list[str]]:
    """Return the exit status and the tools that ran, in order."""
    log = checkout / "log"
    log.write_text("")
    env = {
        # Without shellcheck, which is not the matter here.
        "PATH": f"{checkout}/no:/usr/bin:/bin",
        "LOG": str(log),
        "FAIL": fail,
        "TMPDIR": str(checkout / "tmp"),
        "HOME": os.environ.get("HOME", "/"),
    }
    done = subprocess.run([checkout / "ci" / "check.sh", *arguments], env=env, capture_output=True, text=True)
    ran = [line.split()[0] for line in log.read_text().splitlines()]
    return done.returncode, [name for name in ran if name != "shellcheck"]


def test_style_comes_before_tests(checkout: Path):
    (checkout / ".ci").mkdir()
    (checkout / ".ci" / "run").write_text("#!/bin/sh\n")
    assert check(checkout) == (0, ["ruff", "python", "mypy", "lint-imports", "python"])


@pytest.mark.parametrize("fail", ["ruff", "python"])
def test_first_kind_of_failure_ends_the_check(checkout: Path, fail: str):
    (checkout / ".ci").mkdir()
    (checkout / ".ci" / "run").write_text("#!/bin/sh\n")
    status, ran = check(checkout, fail=fail)
    assert status == 1
    assert ran[-1] == fail


@pytest.mark.parametrize("fail", ["", "tox"])
def test_nothing_is_left_in_the_temporary_folder(checkout: Path, fail: str):
    status, ran = check(checkout, "--rest", fail=fail)
    assert (status, ran) == (1 if fail else 0, ["tox"])
    assert list((checkout / "tmp").iterdir()) == []


def test_named_tests_run_alone(checkout: Path):
    assert check(checkout, "--test", "some/test.py") == (0, ["python"])
    assert "some/test.py" in (checkout / "log").read_text()
