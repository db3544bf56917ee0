# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which bitmap dirty extents mean, where an export has none, one, or several."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imageio_testing.httppeer import Response
from imageio_testing.nbdpeer import Image, serve
from imageio_testing.serving import Service

SIZE = 1 << 20
HALF = SIZE // 2
FIRST = "qemu:dirty-bitmap:monday"
SECOND = "qemu:dirty-bitmap:since tuesday"
STATUS = {
    "base:allocation": [(SIZE, 0)],
    FIRST: [(HALF, 1), (HALF, 0)],
    SECOND: [(HALF, 0), (HALF, 1)],
}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as service:
        yield service


def dirty(service: Service, *bitmaps: str, **keys: Any) -> Response:
    """Ask for the dirty extents of an export with these bitmaps."""
    status = {name: runs for name, runs in STATUS.items() if name in ("base:allocation", *bitmaps)}
    with serve(Image(bytearray(SIZE), status=status)) as peer:
        path = service.add_ticket(url=peer.address.uri(), size=SIZE, dirty=True, **keys)
        with service.client() as client:
            answer = client.request("GET", f"{path}/extents?context=dirty")
        service.manage("DELETE", "/tickets/t")
        return answer


def changed(answer: Response) -> list[tuple[int, int]]:
    return [(extent["start"], extent["length"]) for extent in answer.json() if extent["dirty"]]


def test_only_bitmap_needs_no_name(service: Service) -> None:
    assert changed(dirty(service, FIRST)) == [(0, HALF)]


@pytest.mark.parametrize(("bitmap", "expected"), [("monday", 0), ("since tuesday", HALF)])
def test_ticket_names_one_of_several(service: Service, bitmap: str, expected: int) -> None:
    assert changed(dirty(service, FIRST, SECOND, bitmap=bitmap)) == [(expected, HALF)]


def test_several_are_named_to_the_client_and_in_the_log(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        answer = dirty(service, FIRST, SECOND)
    words = "it has several bitmaps, name one of monday, since tuesday"
    assert (answer.status, answer.text) == (404, f"the storage has no dirty extents: {words}\n")
    assert words in caplog.text


@pytest.mark.parametrize(
    ("bitmaps", "keys", "words"),
    [
        ((), {}, "it has no bitmap"),
        ((FIRST,), {"bitmap": "friday"}, "it has no bitmap 'friday'"),
        ((), {"bitmap": "friday"}, "it has no bitmap 'friday'"),
    ],
)
def test_missing_bitmap_is_told(service: Service, bitmaps: tuple[str, ...], keys: dict[str, Any], words: str) -> None:
    answer = dirty(service, *bitmaps, **keys)
    assert (answer.status, answer.text) == (404, f"the storage has no dirty extents: {words}\n")


def test_bitmap_of_a_ticket_that_wants_no_dirty_extents_has_no_effect(service: Service) -> None:
    with serve(Image(bytearray(SIZE), status=STATUS)) as peer:
        path = service.add_ticket(url=peer.address.uri(), size=SIZE, bitmap="friday")
        with service.client() as client:
            assert client.request("GET", f"{path}/extents").status == 200
            answer = client.request("GET", f"{path}/extents?context=dirty")
            assert (answer.status, answer.text) == (404, "the ticket does not allow dirty extents\n")
        service.manage("DELETE", "/tickets/t")


def test_bitmap_is_shown(service: Service) -> None:
    service.add_ticket(url="file:///none", size=SIZE, bitmap="monday")
    assert service.show()["bitmap"] == "monday"
