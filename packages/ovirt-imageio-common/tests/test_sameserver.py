# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from ovirt_imageio.common import sameserver
from ovirt_imageio.common.sameserver import Key

SECRET = bytes(range(32))
RANDOM = bytes(range(16))
NONCE = bytes(range(16, 32))


def test_server_proves_that_it_gave_the_key():
    key = sameserver.make_key(SECRET, RANDOM)
    challenge = sameserver.make_challenge(key, NONCE)
    assert sameserver.holds(key, challenge, sameserver.answer(SECRET, challenge))


def test_keys_are_as_rfc_2104_makes_them():
    # Made by openssl dgst -sha256 -mac HMAC -macopt hexkey:000102…1f.
    key = sameserver.make_key(SECRET, RANDOM)
    assert key.id == "000102030405060708090a0b0c0d0e0f"
    assert key.key == "cf4d362bbdd1b1ca4f53b9d0a78a29a4676bfad08bff4c998261d81d1dc6cb7a"


def test_another_server_proves_nothing():
    key = sameserver.make_key(SECRET, RANDOM)
    challenge = sameserver.make_challenge(key, NONCE)
    assert not sameserver.holds(key, challenge, sameserver.answer(b"another secret!!", challenge))


def test_holder_of_another_key_proves_nothing():
    key = sameserver.make_key(SECRET, RANDOM)
    other = sameserver.make_key(SECRET, NONCE)
    challenge = sameserver.make_challenge(key, NONCE)
    forged = sameserver.answer(bytes.fromhex(other.key), challenge)
    assert not sameserver.holds(key, challenge, forged)


def test_proof_of_another_challenge_is_worth_nothing():
    key = sameserver.make_key(SECRET, RANDOM)
    first, second = (sameserver.make_challenge(key, n) for n in (NONCE, RANDOM))
    assert not sameserver.holds(key, second, sameserver.answer(SECRET, first))


@pytest.mark.parametrize("proof", ["", "é", "0" * 64, "x" * 4096])
def test_text_is_no_proof(proof: str):
    key = sameserver.make_key(SECRET, RANDOM)
    assert not sameserver.holds(key, sameserver.make_challenge(key, NONCE), proof)


@pytest.mark.parametrize(
    "challenge",
    ["", "a", "0" * 32, "0" * 32 + "  " + "0" * 31, "0" * 32 + " " + "G" * 32, "0" * 32 + " " + "0" * 32 + "\n"],
)
def test_malformed_challenge_is_refused(challenge: str):
    with pytest.raises(ValueError, match="hexadecimal"):
        sameserver.answer(SECRET, challenge)


def test_parse_key_takes_a_key():
    assert sameserver.parse_key({"id": "0" * 32, "key": "1" * 64, "more": 1}) == Key("0" * 32, "1" * 64)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"id": "0" * 32},
        {"id": 1, "key": "1" * 64},
        {"id": "0" * 32, "key": "1" * 63},
        {"id": "\n", "key": ""},
    ],
)
def test_parse_key_refuses_other_documents(document: object):
    with pytest.raises(ValueError, match="unix_socket_proof"):
        sameserver.parse_key(document)
