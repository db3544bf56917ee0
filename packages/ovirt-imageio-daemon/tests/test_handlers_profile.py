# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import importlib
import pstats
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.handlers.profile import Profile
from ovirt_imageio.daemon.http.message import Request, Response


@pytest.fixture(autouse=True)
def without_yappi(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", no_module)


class InlineLoop:
    """Runs a worker's call on the spot."""

    async def worker(self, call: Any, *args: Any) -> Any:
        return call(*args)


def request(**query: str) -> Request:
    connection = SimpleNamespace(loop=InlineLoop())
    return cast(Request, SimpleNamespace(query=query, connection=connection))


def run(coroutine: Any) -> Response:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as e:
        return cast(Response, e.value)
    raise AssertionError("it waits")


def test_profile_of_what_ran_between_start_and_stop_is_written(tmp_path: Path) -> None:
    def profiled_function() -> int:
        return sum(range(10))

    profile = Profile(str(tmp_path / "profile"))
    run(profile.post(request(run="y")))
    assert b'"running": true' in cast(bytes, run(profile.get(request())).body)
    profiled_function()
    run(profile.post(request(run="n")))
    assert b'"running": false' in cast(bytes, run(profile.get(request())).body)
    stats = pstats.Stats(str(tmp_path / "profile"))
    functions = {name for _, _, name in stats.stats}  # type: ignore[attr-defined]
    assert "profiled_function" in functions


def test_run_must_be_y_or_n(tmp_path: Path) -> None:
    profile = Profile(str(tmp_path / "profile"))
    for query in ({}, {"run": ""}, {"run": "yes"}):
        with pytest.raises(HttpError, match=r"400.*expected y or n"):
            run(profile.post(request(**query)))


def test_stop_without_start_and_second_start_are_refused(tmp_path: Path) -> None:
    profile = Profile(str(tmp_path / "profile"))
    with pytest.raises(HttpError, match=r"400.*not running"):
        run(profile.post(request(run="n")))
    run(profile.post(request(run="y")))
    with pytest.raises(HttpError, match=r"400.*running already"):
        run(profile.post(request(run="y")))
    run(profile.post(request(run="n")))


def test_file_that_cannot_be_written_is_named_and_the_profiler_stops(tmp_path: Path) -> None:
    profile = Profile(str(tmp_path / "no" / "profile"))
    run(profile.post(request(run="y")))
    with pytest.raises(HttpError, match=r"500.*no/profile: No such file"):
        run(profile.post(request(run="n")))
    assert b'"running": false' in cast(bytes, run(profile.get(request())).body)
