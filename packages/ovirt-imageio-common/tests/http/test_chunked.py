# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovirt_imageio.common.http.chunked import BadChunks, ChunkedDecoder, LongTrailers


def decode(data: bytes) -> bytes:
    decoder = ChunkedDecoder()
    payload, rest = decoder.decode(data)
    assert decoder.done
    assert rest == b""
    return payload


def test_chunks_extensions_and_trailers() -> None:
    data = b"5;a=b\r\nhello\r\n00A ; x\r\n, world!!!\r\n0\r\nDigest: x\r\nB:\r\n\r\n"
    assert decode(data) == b"hello, world!!!"


def test_empty_body() -> None:
    assert decode(b"0\r\n\r\n") == b""


def test_what_follows_is_left() -> None:
    decoder = ChunkedDecoder()
    assert decoder.decode(b"1\r\nx\r\n0\r\n\r\nGET /") == (b"x", b"GET /")


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50)), st.data())
def test_any_split_gives_the_same_payload(chunks: list[bytes], data: st.DataObject) -> None:
    body = b"".join(b"%X\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    decoder, payload, rest = ChunkedDecoder(), b"", b""
    while body:
        count = data.draw(st.integers(1, len(body)))
        part, rest = decoder.decode(rest + body[:count])
        payload, body = payload + part, body[count:]
    assert (payload, rest, decoder.done) == (b"".join(chunks), b"", True)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\nx",
        b"0x1\r\nx",
        b"1_0\r\nx",
        b" 1\r\nx",
        b"1 1\r\nx",
        b"1\nx\r\n",
        b"1;\x00\r\nx",
        b"1\r\nxy\r\n",
        b"1\r\nx\n",
        b"1\r\nx\rx",
        b"\n",
        b"f" * 16 + b"\r\n",
        b"1;" + b"x" * 5000,
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(BadChunks):
        ChunkedDecoder().decode(data)


def test_trailers_are_bounded() -> None:
    with pytest.raises(LongTrailers):
        ChunkedDecoder().decode(b"0\r\n" + b"a: bbbbbbbbbb\r\n" * 10000)
