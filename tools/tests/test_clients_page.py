# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of programs names every replay, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "reference" / "clients.md"
REPLAYS = TOP / "tools" / "clients"


def test_every_replay_is_on_the_page():
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE.read_text()))
    assert named == {path.name for path in REPLAYS.glob("test_*.py")}


def test_every_replay_names_its_source():
    for path in REPLAYS.rglob("test_*.py"):
        text = path.read_text()
        if path.parent == REPLAYS:
            assert re.search(r"Source: |`programs/`, where its source is named", text), path
    for folder in ("programs", "servers"):
        for path in (REPLAYS / folder).glob("*.py"):
            if not path.name.startswith(("test_", "__init__", "disk")):
                assert re.search(
                    r"^Sources?: |^Sources, all in the folder examples of the source distribution",
                    path.read_text(),
                    re.MULTILINE,
                ), path
