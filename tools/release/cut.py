# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Release one package: version, changelog, commit, tag and artifacts.

    python tools/release.py [--no-build] PACKAGE VERSION

Everything happens in this checkout and can be looked at before it is pushed: nothing is
sent anywhere. When something does not fit, nothing is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path

from release.tree import PACKAGES, TOP, Package, ReleaseError, find, requires, run

VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")

# The first heading of a changelog, and what stands below it.
_NEWS = re.compile(r"^## (?P<version>\S+)(?P<unreleased> \(unreleased\))?[^\n]*\n(?P<text>.*?)(?=^## |\Z)", re.M | re.S)


def parse(version: str) -> tuple[int, ...]:
    """The numbers of a version.

    Raises:
        ReleaseError: It is not three numbers.
    """
    match = VERSION.fullmatch(version)
    if match is None:
        raise ReleaseError(f"{version!r} is no version: expected three numbers, as 3.1.0")
    return tuple(map(int, match.groups()))


def close_news(changelog: str, version: str, day: str) -> tuple[str, str]:
    """Give the unreleased section of a changelog its version and day.

    Returns:
        The new changelog, and what is new.

    Raises:
        ReleaseError: There is no such section, or nothing in it.
    """
    match = _NEWS.search(changelog)
    if match is None or not match["unreleased"]:
        raise ReleaseError(f"the changelog does not begin with `## {version} (unreleased)`: nothing is new")
    news = match["text"].strip()
    if not news:
        raise ReleaseError("the changelog's unreleased section is empty: say what is new for users")
    heading = f"## {version} ({day})\n\n{news}\n"
    rest = changelog[match.end() :]
    return changelog[: match.start()] + heading + ("\n" + rest if rest else ""), news


def spec_of(spec: str, version: str, entry: str) -> str:
    """Give a spec its version and a changelog entry."""
    spec = re.sub(r"^(Version: +).*$", rf"\g<1>{version}", spec, count=1, flags=re.M)
    spec = re.sub(r"^(Release: +)\S+$", r"\g<1>1%{?dist}", spec, count=1, flags=re.M)
    head, _, entries = spec.partition("%changelog\n")
    # The first release has an entry already.
    entries = re.sub(rf"\A\* [^\n]* {re.escape(version)}-1\n.*?(?=^\* |\Z)", "", entries, flags=re.M | re.S)
    return f"{head}%changelog\n{entry}" + ("\n" + entries if entries else "")


def pin_sisters(common: str, text: str) -> str:
    """Let a setup.cfg or a spec require the minor version of a version of common."""
    major, minor, _ = parse(common)
    text = re.sub(r"(ovirt-imageio-common)~=\S+", rf"\g<1>~={major}.{minor}.0", text)
    text = re.sub(r"(Requires: +ovirt-imageio-common >= )\S+", rf"\g<1>{major}.{minor}.0", text)
    return re.sub(r"(Requires: +ovirt-imageio-common < )\S+", rf"\g<1>{major}.{minor + 1}", text)


class Release:
    """One package, about to be released.

    Args:
        package: To release.
        version: To give it.
    """

    def __init__(self, package: Package, version: str) -> None:
        self.package = package
        self.version = version
        self.tag = f"{package.name}-{version}"
        self.day = time.strftime("%Y-%m-%d", time.gmtime(_now()))

    def check(self) -> None:
        """Make sure that it may be released.

        Raises:
            ReleaseError: It says why not.
        """
        old = self.package.version
        released = _tagged(f"{self.package.name}-{old}")
        if parse(self.version) < parse(old) or (released and self.version == old):
            raise ReleaseError(f"{self.package.name} is at {old} already: {self.version} is not newer")
        if _tagged(self.tag):
            raise ReleaseError(f"the tag {self.tag} exists")
        if changed := run("git", "status", "--porcelain").strip():
            raise ReleaseError(f"commit or remove first:\n{changed}")
        pin = requires(self.package)
        if pin and not self._tags_of_common(pin):
            raise ReleaseError(f"{self.package.name} requires ovirt-imageio-common{pin}: release that first")

    @staticmethod
    def _tags_of_common(pin: str) -> list[str]:
        minor = pin.lstrip("~=").rpartition(".")[0]
        return run("git", "tag", "--list", f"ovirt-imageio-common-{minor}.*").split()

    def write(self) -> str:
        """Write version and changelogs; returns what is new."""
        changelog = self.package.folder / "CHANGELOG.md"
        text, news = close_news(changelog.read_text(), self.version, self.day)
        changelog.write_text(text)
        self.package.version_file.write_text(self.version + "\n")
        self.package.spec.write_text(spec_of(self.package.spec.read_text(), self.version, self._entry(news)))
        if self.package.short == "common":
            for sister in PACKAGES[1:]:
                for path in (sister.folder / "setup.cfg", sister.spec):
                    path.write_text(pin_sisters(self.version, path.read_text()))
        return news

    def _entry(self, news: str) -> str:
        """Return the news in the form of a spec's changelog."""
        who = f"{run('git', 'config', 'user.name').strip()} <{run('git', 'config', 'user.email').strip()}>"
        when = time.strftime("%a %b %d %Y", time.gmtime(_now()))
        lines = [line if line.startswith(("-", " ")) or not line else f"- {line}" for line in _items(news)]
        # % begins a macro.
        body = "\n".join(line.rstrip() for line in lines if line).replace("%", "%%")
        return f"* {when} {who} - {self.version}-1\n{body}\n"

    def commit(self, news: str) -> None:
        """Record the release, with a tag that tells what is new."""
        run("git", "commit", "--quiet", "--all", "--message", f"{self.package.short}: Release {self.version}")
        message = f"{self.package.name} {self.version}\n\n{news}\n"
        run("git", "tag", "--annotate", "--cleanup=verbatim", "--message", message, self.tag)

    def build(self, out: Path) -> list[Path]:
        """Build sdist, wheel and RPMs, and the list of their digests.

        Raises:
            ReleaseError: A build failed. The commit and the tag are there: remove them to try again.
        """
        run(sys.executable, "-m", "tox", "run", "-q", "-e", "dist,rpm", "--", self.package.short)
        module, name = self.package.module, self.package.name
        patterns = (f"{module}-{self.version}*", f"rpm/{name}-{self.version}-*.rpm")
        files = sorted(file for pattern in patterns for file in out.glob(pattern))
        sums = out / f"{name}-{self.version}.sha256"
        sums.write_text("".join(f"{_sha256(file)}  {file.relative_to(out)}\n" for file in files))
        return [*files, sums]


def _now() -> float:
    return float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tagged(tag: str) -> bool:
    return bool(run("git", "tag", "--list", tag).strip())


def _items(news: str) -> list[str]:
    """Lines of a changelog, those of one paragraph below its first."""
    lines: list[str] = []
    for line in news.splitlines():
        follows = lines and lines[-1] and line and not line.startswith(("-", " ", "#"))
        lines.append(f"  {line}" if follows else line.lstrip("# "))
    return lines


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(prog="tools/release.py", description="Release one package.")
    p.add_argument("package", metavar="PACKAGE", help="common, daemon or client")
    p.add_argument("version", metavar="VERSION", help="its new version, as 3.1.0")
    p.add_argument("--no-build", action="store_true", help="leave the artifacts to a later `make dist rpm`")
    args = p.parse_args(argv)
    try:
        release = Release(find(args.package), args.version)
        release.check()
        release.commit(release.write())
        files = [] if args.no_build else release.build(TOP / "dist")
    except ReleaseError as e:
        print(f"release: {e}", file=sys.stderr)
        return 1
    print(f"{release.tag} is committed and tagged. Look at it:\n  git show {release.tag}")
    for file in files:
        print(f"  {file.relative_to(TOP)}")
    print(f"Then publish it:\n  git push origin HEAD {release.tag}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
