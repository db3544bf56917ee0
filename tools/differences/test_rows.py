# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Each row of the page has a run, or a reason to have none."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .page import HELD, UNTRIED, rows

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))


@pytest.fixture(scope="module", autouse=True)
def _imported():
    for module in MODULES:
        importlib.import_module(f"differences.{module}")


def test_page_has_each_row_once():
    names = rows()
    assert len(names) > 100
    assert sorted(names) == sorted(set(names))


def test_row_has_a_run_or_a_reason():
    missing = [name for name in rows() if name not in HELD and name not in UNTRIED]
    assert missing == [], missing


def test_run_is_of_a_row():
    assert sorted((HELD | UNTRIED.keys()) - set(rows())) == []


def test_reason_is_of_a_row_without_a_run():
    assert sorted(HELD & UNTRIED.keys()) == []
    assert all(UNTRIED.values())
