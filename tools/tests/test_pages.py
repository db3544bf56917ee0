# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command and every block of code in the README, the tutorial and the guides works."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from imageio_testing import pages
from imageio_testing.pages import Block, Command, PageFailed

TOP = Path(__file__).resolve().parents[2]
# That of a host is done on one, by the tests of the packages.
GUIDES = sorted(path for path in (TOP / "docs" / "guides").glob("*.md") if path.stem != "host")
PAGES = [TOP / "docs" / "tutorial.md", *GUIDES]


@pytest.fixture
def folder():
    # Pages make sockets beside their files: the names of a test's own folder are too long.
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        yield Path(name)


@pytest.mark.system
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_works(page, folder):
    text = page.read_text()
    missing = [name for name in ("qemu-img", "qemu-nbd", "nbdkit", "curl") if name in text and not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    pages.run_page(page, folder)


def test_blocks_are_found_in_order():
    text = "text\n\n```console\n$ true\n```\n\n```python\npass\n```\n```text\ndrawing\n```\n"
    assert pages.blocks(text) == [Block("console", "$ true\n"), Block("python", "pass\n"), Block("text", "drawing\n")]


def test_command_goes_on_until_it_is_complete():
    text = "$ cat <<END\nx\nEND\nx\n$ echo 'a\nb'\n$ true\n"
    assert list(pages.commands(text)) == [
        Command("cat <<END\nx\nEND", ["x"]),
        Command("echo 'a\nb'", []),
        Command("true", []),
    ]


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a"], ["a", "b"], False),
        (["a", "..."], ["a", "b", "c"], True),
        (["...", "c"], ["a", "b"], False),
        (["size ... bytes"], ["size 12 bytes"], True),
        (["size ... bytes"], ["size 12 byte"], False),
    ],
)
def test_output_is_compared(expected, printed, same):
    assert pages.matches(expected, printed) is same


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ false\n```",
        "```console\n$ echo a\nb\n```",
        "```python\nraise SystemExit(3)\n```",
        "```python\n# part.py\ndef\n```",
        "```ini\n[remote]\nports = 3\n```",
        "```ini\n[remote]\nport = x\n```",
    ],
)
def test_wrong_block_is_noticed(text, folder):
    page = folder / "page.md"
    page.write_text(text + "\n")
    with pytest.raises(PageFailed):
        pages.run_page(page, folder)


def test_named_block_is_a_file_for_what_follows(folder):
    page = folder / "page.md"
    page.write_text("```python\n# part.py\nx = __name__\n```\n```python\nimport part\nassert part.x == 'part'\n```\n")
    assert pages.run_page(page, folder) == 2


def test_marked_block_is_left_out(folder):
    page = folder / "page.md"
    page.write_text(f"```console\n{pages.NOT_RUN}it is an example\n$ false\n```\n")
    assert pages.run_page(page, folder) == 0


def test_servers_are_waited_for_and_end_with_the_page(folder):
    page = folder / "page.md"
    server = "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen(); time.sleep(600)"
    page.write_text(f'```console\n$ python3 -c "{server}" &\n$ test -S s\n```\n')
    assert pages.run_page(page, folder) == 1
