# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A word of the HTTP API stands in the code, in openapi.yaml, in the reference, and, if 2.5.1 lacks it, in a changelog.

The words are read from the sources: keys of documents, parameters of queries, features.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovirt_imageio.common import imagesapi

TOP = Path(__file__).resolve().parents[2]
DAEMON = TOP / "packages" / "ovirt-imageio-daemon" / "src" / "ovirt_imageio" / "daemon"
REFERENCE = TOP / "docs" / "reference"
OPENAPI = (REFERENCE / "openapi.yaml").read_text()
PAGES = {
    "document": ("tickets.md", "http-api.md"),
    "query": ("http-api.md",),
    "feature": ("http-api.md",),
}
CHANGELOGS = "".join(path.read_text() for path in TOP.glob("packages/*/CHANGELOG.md"))

# The words of 2.5.1: they are in no changelog of ours.
OLD = {
    "document": {
        "uuid", "size", "ops", "timeout", "url", "transfer_id", "filename", "sparse", "dirty", "inactivity_timeout",
        "op", "offset", "flush",
    },
    "query": {"flush", "close", "context", "algorithm", "block_size", "run"},
    "feature": {"checksum", "extents", "flush", "zero"},
}  # fmt: skip


def words_of(source: str) -> Iterator[tuple[str, str]]:
    """Yield kind and word of each text that is looked up in a document or a query."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        kinds = [_kind(argument) for argument in node.args]
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            kinds = [_kind(node.func.value), *kinds]
        words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        kind = next((kind for kind in kinds if kind), "")
        if kind and words:
            yield kind, words[0]


def _kind(node: ast.expr) -> str:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name if name in ("document", "query") else ""


def words() -> list[tuple[str, str]]:
    found = {word for path in DAEMON.rglob("*.py") for word in words_of(path.read_text())}
    features = {("feature", word) for word in (*imagesapi.READ_FEATURES, *imagesapi.WRITE_FEATURES)}
    return sorted(found | features)


def test_words_are_found_in_sources():
    source = 'params.text(document, "uuid"); request.query.get("run"); f(query, "a", default=0); print("no", other)'
    assert sorted(words_of(source)) == [("document", "uuid"), ("query", "a"), ("query", "run")]
    found = set(words())
    assert {("document", "uuid"), ("document", "op"), ("query", "flush"), ("feature", "zero")} <= found


@pytest.mark.parametrize(("kind", "word"), words())
def test_word_is_written_everywhere(kind: str, word: str):
    assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", OPENAPI), f"{kind} {word!r} is not in openapi.yaml"
    pages = "".join((REFERENCE / name).read_text() for name in PAGES[kind])
    pattern = rf"[`\"?&]{re.escape(word)}[`\"=]"
    assert re.search(pattern, pages), f"{kind} {word!r} is not in {' or '.join(PAGES[kind])}"
    if word not in OLD[kind]:
        assert re.search(rf"[`?&\"]{re.escape(word)}\b", CHANGELOGS), f"{kind} {word!r} is in no CHANGELOG.md"
