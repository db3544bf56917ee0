# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The pictures of the bench show all of their text."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import report
from bench.rows import Row

PAGE = Path(__file__).parents[2] / "docs" / "performance"
WIDTH = 6.5  # of a letter of 13 px, on the average
UPLOAD = Row("upload", "client.upload, raw file on disk, cache=none, local socket", lambda *_: {})


def cut(picture: str) -> list[str]:
    """The texts of a picture that begin or end outside it."""
    root = ElementTree.fromstring(picture)
    room = float(root.attrib["viewBox"].split()[2])
    found = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        words, x = text.text or "", float(text.attrib["x"])
        before = {"end": 1.0, "middle": 0.5}.get(text.attrib.get("text-anchor", ""), 0.0)
        start = x - before * len(words) * WIDTH
        if start < 0 or start + len(words) * WIDTH > room:
            found.append(words)
    return found


@pytest.mark.parametrize("ratio", [0.07, 0.9, 1.24, 1.75, 10.63])
@pytest.mark.parametrize("metric", ["MiB/s", "daemon CPU s/GiB"])
def test_no_text_is_cut(ratio: float, metric: str) -> None:
    samples = {report.OURS: [{metric: 100 * ratio}], report.PEER: [{metric: 100.0}]}
    drawn = report.picture("A picture", [(UPLOAD, samples)], metric)
    assert cut(drawn) == []
    assert f"{ratio:.2f}×" in drawn


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.svg")), ids=lambda path: path.stem)
def test_pictures_of_the_page_are_not_cut(path: Path) -> None:
    assert cut(path.read_text()) == []
