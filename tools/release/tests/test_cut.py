# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""tools/release.py in a repository of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from release import cut, tree

# 2026-12-24
NOW = "1798070400"


class Checkout:
    """Files that the tool reads and writes, committed."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for pattern in ("tools/release.py", "tools/release/*.py", "packages/*/*.*", "packages/**/VERSION"):
            for source in tree.TOP.glob(pattern):
                if source.is_file():
                    target = top / source.relative_to(tree.TOP)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, target)
        for name in ("common", "daemon", "client"):
            self.news(name, "3.0.0", "First release.\nOf three.")
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "A Maintainer")
        self.git("config", "user.email", "maintainer@example.org")
        self.commit()

    def git(self, *args: str) -> str:
        return subprocess.run(["git", *args], cwd=self.top, check=True, stdout=subprocess.PIPE, text=True).stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Work")

    def path(self, name: str, file: str) -> Path:
        return self.top / "packages" / f"ovirt-imageio-{name}" / file

    def news(self, name: str, version: str, text: str) -> None:
        """Write what is new above what was."""
        path = self.path(name, "CHANGELOG.md")
        title, _, old = path.read_text().partition("\n\n")
        old = "" if "(unreleased)" in old else "\n" + old
        path.write_text(f"{title}\n\n## {version} (unreleased)\n\n{text}\n{old}")

    def release(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.top / "tools/release.py"), "--no-build", *args],
            env={**os.environ, "SOURCE_DATE_EPOCH": NOW, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def test_release_writes_commits_and_tags(checkout: Checkout):
    done = checkout.release("common", "3.0.0")
    assert done.returncode == 0, done.stderr
    assert "git push origin HEAD ovirt-imageio-common-3.0.0" in done.stdout
    assert "## 3.0.0 (2026-12-24)\n\nFirst release.\n" in checkout.path("common", "CHANGELOG.md").read_text()
    spec = checkout.path("common", "ovirt-imageio-common.spec").read_text()
    entry = "* Thu Dec 24 2026 A Maintainer <maintainer@example.org> - 3.0.0-1\n- First release.\n  Of three.\n"
    assert spec.endswith(f"%changelog\n{entry}")
    assert checkout.git("log", "-1", "--format=%s").strip() == "common: Release 3.0.0"
    shown = checkout.git("tag", "-l", "--format=%(contents)", "ovirt-imageio-common-3.0.0")
    assert shown.strip() == "ovirt-imageio-common 3.0.0\n\nFirst release.\nOf three."
    assert checkout.git("status", "--porcelain") == ""


def test_next_release_keeps_the_changelog_of_the_first(checkout: Checkout):
    assert checkout.release("common", "3.0.0").returncode == 0
    checkout.news("common", "3.0.1", "- Faster by 10%.\n- And quieter.")
    checkout.commit()
    done = checkout.release("common", "3.0.1")
    assert done.returncode == 0, done.stderr
    headings = re.findall("^## .*", checkout.path("common", "CHANGELOG.md").read_text(), re.M)
    assert headings == ["## 3.0.1 (2026-12-24)", "## 3.0.0 (2026-12-24)"]
    assert checkout.path("common", "src/ovirt_imageio/common/VERSION").read_text() == "3.0.1\n"
    spec = checkout.path("common", "ovirt-imageio-common.spec").read_text()
    assert "Version:        3.0.1\n" in spec
    first, second = spec.split("%changelog\n")[1].split("\n\n")
    assert first.splitlines()[1:] == ["- Faster by 10%%.", "- And quieter."]
    assert "3.0.0-1\n" in second


def test_new_minor_of_common_moves_the_sisters_along(checkout: Checkout):
    assert checkout.release("common", "3.1.0").returncode == 0
    for name in ("daemon", "client"):
        assert "ovirt-imageio-common~=3.1.0\n" in checkout.path(name, "setup.cfg").read_text()
        spec = checkout.path(name, f"ovirt-imageio-{name}.spec").read_text()
        assert "ovirt-imageio-common >= 3.1.0\n" in spec
        assert "ovirt-imageio-common < 3.2\n" in spec
    assert checkout.release("daemon", "3.0.0").returncode == 0


def _dirty(checkout: Checkout) -> None:
    checkout.path("common", "README.md").write_text("changed")


def _no_news(checkout: Checkout) -> None:
    path = checkout.path("common", "CHANGELOG.md")
    path.write_text(path.read_text().replace(" (unreleased)", ""))
    checkout.commit()


def _empty_news(checkout: Checkout) -> None:
    checkout.path("common", "CHANGELOG.md").write_text("# Changes\n\n## 3.0.0 (unreleased)\n")
    checkout.commit()


def _released(checkout: Checkout) -> None:
    assert checkout.release("common", "3.0.0").returncode == 0


def _nothing(checkout: Checkout) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "args", "says"),
    [
        (_dirty, ("common", "3.0.0"), "commit or remove first"),
        (_no_news, ("common", "3.0.0"), "nothing is new"),
        (_empty_news, ("common", "3.0.0"), "say what is new"),
        (_released, ("common", "3.0.0"), "is at 3.0.0 already"),
        (_released, ("common", "2.9.0"), "is at 3.0.0 already"),
        (_nothing, ("common", "3.1"), "is no version"),
        (_nothing, ("engine", "3.1.0"), "no package is called"),
        (_nothing, ("daemon", "3.0.0"), "requires ovirt-imageio-common~=3.0.0: release that first"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_what_does_not_fit_changes_nothing(checkout: Checkout, before, args, says):
    before(checkout)
    state = checkout.git("log", "--format=%H") + checkout.git("diff")
    done = checkout.release(*args)
    assert done.returncode == 1
    assert says in done.stderr
    assert checkout.git("log", "--format=%H") + checkout.git("diff") == state


def test_news_of_later_sections_stay():
    text, news = cut.close_news("# T\n\n## 2 (unreleased)\n\nB\n\n## 1 (day)\n\nA\n", "2.0.0", "today")
    assert text == "# T\n\n## 2.0.0 (today)\n\nB\n\n## 1 (day)\n\nA\n"
    assert news == "B"
