# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict of a type checker on programs that use the client: those of the documentation, and wrong ones."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imageio_testing import pages
from ovirt_imageio.common.backends.base import Reader, Writer

pytest.importorskip("mypy", reason="mypy is not installed: see ci/requirements-lint.txt")

TOP = Path(__file__).resolve().parents[2]
EXAMPLES = TOP / "packages" / "ovirt-imageio-client" / "examples"
PAGES = [
    TOP / "README.md",
    *sorted((TOP / "packages").glob("*/README.md")),
    *sorted(path for path in (TOP / "docs").rglob("*.md") if path.parent.name != "design"),
]
SOURCES = [TOP / "packages" / f"ovirt-imageio-{name}" / "src" for name in ("common", "daemon", "client")]

CONFIG = f"""
[mypy]
strict = true
python_version = 3.9
namespace_packages = true
explicit_package_bases = true
follow_imports = silent
cache_dir = {TOP}/.cache/mypy-pages

[mypy-ovirtsdk4.*]
ignore_missing_imports = true

# As in pyproject.toml: pytest uses it.
[mypy-packaging.*]
follow_imports = skip
"""


@pytest.fixture
def mypy(tmp_path):
    """Check programs, name to text; return the errors, FILE:LINE: TEXT."""

    def run(programs):
        config = tmp_path / "mypy.ini"
        config.write_text(CONFIG)
        folder = tmp_path / "programs"
        folder.mkdir()
        for name, text in programs.items():
            (folder / name).write_text(text)
        path = os.pathsep.join(map(str, [folder, *SOURCES, TOP / "tools"]))
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", str(config), "--no-error-summary", *sorted(programs)],
            cwd=folder,
            env={**os.environ, "MYPYPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode in (0, 1), done.stdout
        return done.stdout.splitlines()

    return run


def programs_of(page):
    """The programs of a page; one that the page gives no name is called after the page."""
    named = re.compile(r"# (\w+\.py)\n")
    for number, block in enumerate(pages.blocks(page.read_text(encoding="utf-8"))):
        if block.language == "python":
            name = named.match(block.text)
            place = page.relative_to(TOP).with_suffix("")
            yield name[1] if name else re.sub(r"\W", "_", f"{place}_{number}") + ".py", block.text


def test_programs_of_the_documentation_are_typed(mypy):
    programs = {name: text for page in PAGES for name, text in programs_of(page)}
    assert len(programs) > 10
    programs.update((path.name, path.read_text(encoding="utf-8")) for path in EXAMPLES.glob("*.py"))
    assert mypy(programs) == []


WRONG = """
from ovirt_imageio import client
from ovirt_imageio.client import downlaod
client.uplaod("disk", "url", None)
client.upload("disk", "url", None, verfy=True)
client.download("url", "disk", None, fmt=2)
with client.ImageioClient("url") as c:
    c.raed(0, bytearray(1))
    print([extent.hole for extent in c.extents()])
    print([extent.dirty for extent in c.extents()])
    print([extent.dirty for extent in c.extents("dirty")])
    print([extent.hole for extent in c.extents("dirty")])
print([extent.hole for extent in client.extents("disk")])
print([extent.dirty for extent in client.extents("disk")])
print([extent.dirty for extent in client.extents("disk", bitmap="b")])
print([extent.hole for extent in client.extents("disk", None, "b")])
kind: type[client.DirtyExtent] = client.ZeroExtent
"""


def test_misspelt_names_and_wrong_kinds_are_errors(mypy):
    lines = {int(error.split(":")[1]) for error in mypy({"wrong.py": WRONG}) if " error: " in error}
    right = {2, 7, 9, 11, 13, 15}
    assert lines == set(range(2, len(WRONG.splitlines()) + 1)) - right


STREAMS = """
import io
import mmap
import sys
from typing import BinaryIO

from ovirt_imageio import client

def copy(source: BinaryIO, target: BinaryIO, url: str) -> None:
    with client.ImageioClient(url) as c, open("file", "r+b") as f:
        c.read_from(source, 0, 4096)
        c.write_to(target, 0, 4096)
        c.read_from(sys.stdin.buffer, 0, 4096)
        c.write_to(sys.stdout.buffer, 0, 4096)
        c.read_from(f, 0, 4096)
        c.write_to(f, 0, 4096)
        c.read_from(io.BytesIO(b"x"), 0, 1)
        c.write_to(io.BytesIO(), 0, 1)
        c.read(0, mmap.mmap(-1, 4096))
"""


def test_streams_of_the_standard_library_are_taken(mypy):
    assert mypy({"streams.py": STREAMS}) == []


@pytest.mark.parametrize("method", [Reader.readinto, Writer.write])
def test_streams_need_no_name_of_their_parameter(method):
    """Files have no such name: pyright takes none of them then, though mypy does."""
    _, parameter = inspect.signature(method).parameters.values()
    assert parameter.kind is inspect.Parameter.POSITIONAL_ONLY
