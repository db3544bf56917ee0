# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The backend in the guide is written from the guide alone, and passes the suite.

Its code and its test are taken from the page as they stand there.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "write-a-backend.md"
BACKEND, TEST = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def _module(name: str, source: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"{PAGE.name}:{name}", "exec"), module.__dict__)
    return module


chunks = _module("chunks", BACKEND)
test_chunks = _module("test_chunks", TEST)

make = test_chunks.make
TestChunks = test_chunks.TestChunks


def test_flush_that_fails_breaks_the_backend(tmp_path, monkeypatch):
    backend = chunks.ChunksBackend(tmp_path, 4096, mode="r+")
    backend.write(0, b"x")

    def fail(path):
        raise OSError(5, "the disk says no")

    monkeypatch.setattr(chunks, "_sync", fail)
    with pytest.raises(OSError, match="the disk says no"):
        backend.flush()
    assert backend.broken is not None
    assert backend.unflushed


def test_chunk_of_the_wrong_size_is_an_error(tmp_path):
    backend = chunks.ChunksBackend(tmp_path, 4096)
    (tmp_path / f"{0:012x}").write_bytes(b"short")
    with pytest.raises(OSError, match="5 bytes, expected 65536"):
        backend.read_into(0, bytearray(1))
