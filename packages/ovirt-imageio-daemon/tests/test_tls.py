# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import datetime
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import IO

import pytest

from imageio_testing.pki import Pki, make_pki
from ovirt_imageio.daemon import tls
from ovirt_imageio.daemon.config import Config, ConfigError
from ovirt_imageio.daemon.options import Tls

NO_KEY = r"\[tls\] key_file = .*: expected a complete PEM private key without a password, but none is in it"

# Revokes nothing; some authority's, whose key is gone.
REVOCATIONS = b"""\
-----BEGIN X509 CRL-----
MIGmME0CAQEwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBdBcNMjYxMTI5MTUwMDM1
WhgPMjEyNjExMDUxNTAwMzVaoA4wDDAKBgNVHRQEAwIBATAKBggqhkjOPQQDAgNJ
ADBGAiEAtq+SYeVvJx9wREphjQDfKnprDXSBgWnWUAdB+xquFmkCIQDbuT8FZ9K9
8iraR8l75Jsv4MGSITPcyThvW/1pOaG2YA==
-----END X509 CRL-----
"""


@pytest.fixture(name="pki")
def own_pki(pki: Pki, tmp_path: Path) -> Pki:
    """Files that a test may change."""
    shutil.copytree(os.path.dirname(pki.ca_file), tmp_path / "pki")
    return Pki(*(str(tmp_path / "pki" / name) for name in ("ca.pem", "cert.pem", "key.pem")))


def config(pki: Pki, **changes: object) -> Config:
    values: dict[str, object] = {"key_file": pki.key_file, "cert_file": pki.cert_file, **changes}
    return Config(tls=Tls(**values))  # type: ignore[arg-type]


def client(pki: Pki | None = None) -> ssl.SSLContext:
    """A client that would speak any version, at security level 0."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.check_hostname = False
    if pki:
        context.load_verify_locations(pki.ca_file)
    else:
        context.verify_mode = ssl.CERT_NONE
    return context


def shake_hands(server: ssl.SSLContext, peer: ssl.SSLContext) -> tuple[str, bytes]:
    """Return the version agreed upon and the server's certificate, DER."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        peer.wrap_bio(to_client, to_server),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1].version() or "", ends[1].getpeercert(binary_form=True) or b""


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_current_versions_are_spoken(pki: Pki, version: str) -> None:
    peer = client(pki)
    peer.minimum_version = peer.maximum_version = ssl.TLSVersion[version]
    agreed, _ = shake_hands(tls.server_context(config(pki)), peer)
    assert agreed == version.replace("_", ".")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_versions_are_refused_by_the_server(pki: Pki, version: str) -> None:
    peer = client()
    peer.minimum_version = peer.maximum_version = ssl.TLSVersion[version]
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol|version"):
        shake_hands(tls.server_context(config(pki)), peer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls1_1_is_spoken_where_enabled_but_1_0_never(pki: Pki) -> None:
    context = tls.server_context(config(pki, enable_tls1_1=True))
    peer = client()
    peer.minimum_version = peer.maximum_version = ssl.TLSVersion.TLSv1_1
    assert shake_hands(context, peer)[0] == "TLSv1.1"
    peer = client()
    peer.minimum_version = peer.maximum_version = ssl.TLSVersion.TLSv1
    with pytest.raises(ssl.SSLError):
        shake_hands(context, peer)


def policy(minimum: ssl.TLSVersion) -> types.SimpleNamespace:
    """The module ssl as on a system whose policy sets a minimum version."""

    class Context(ssl.SSLContext):
        def __new__(cls, protocol: int) -> Context:
            context = super().__new__(cls, protocol)
            context.minimum_version = minimum
            return context

    return types.SimpleNamespace(**{**vars(ssl), "SSLContext": Context})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("minimum", "expected"),
    [
        ("MINIMUM_SUPPORTED", "TLSv1_2"),
        ("TLSv1", "TLSv1_2"),
        ("TLSv1_2", "TLSv1_2"),
        ("TLSv1_3", "TLSv1_3"),
    ],
)
def test_minimum_of_the_system_is_raised_and_never_lowered(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, minimum: str, expected: str
) -> None:
    monkeypatch.setattr(tls, "ssl", policy(ssl.TLSVersion[minimum]))
    assert tls.server_context(config(pki)).minimum_version == ssl.TLSVersion[expected]


@pytest.mark.parametrize("minimum", ["MINIMUM_SUPPORTED", "TLSv1_3"])
def test_tls1_1_is_the_minimum_where_enabled_whatever_the_system_says(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, minimum: str
) -> None:
    monkeypatch.setattr(tls, "ssl", policy(ssl.TLSVersion[minimum]))
    context = tls.server_context(config(pki, enable_tls1_1=True))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_1


def test_policy_in_the_file_of_openssl_is_kept(pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "openssl.cnf").write_text(
        "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nMinProtocol = TLSv1.3\n"
    )
    code = (
        "import ssl, sys\n"
        "from ovirt_imageio.daemon import tls\n"
        "from ovirt_imageio.daemon.config import Config\n"
        "from ovirt_imageio.daemon.options import Tls\n"
        "cfg = Config(tls=Tls(cert_file=sys.argv[1], key_file=sys.argv[2]))\n"
        "policy = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).minimum_version\n"
        "print(tls.server_context(cfg).minimum_version - policy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pki.cert_file, pki.key_file],
        env={**os.environ, "OPENSSL_CONF": str(tmp_path / "openssl.cnf")},
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == b"0\n"


def test_start_fails_naming_the_key_where_the_library_forbids_tls1_1(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    # At the default security level OpenSSL 3 refuses the digests of TLS 1.1.
    monkeypatch.setattr(tls, "_TLS1_1_CIPHERS", "DEFAULT:@SECLEVEL=2")
    with pytest.raises(ConfigError, match=r"\[tls\] enable_tls1_1 = true: .*refuses TLS 1\.1"):
        tls.server_context(config(pki, enable_tls1_1=True))


def test_plain_bytes_end_the_handshake(pki: Pki) -> None:
    incoming = ssl.MemoryBIO()
    incoming.write(b"GET / HTTP/1.1\r\n\r\n")
    end = tls.server_context(config(pki)).wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
        end.do_handshake()


# Errors that name the file and the reason.


@pytest.mark.parametrize("key", ["key_file", "cert_file", "ca_file"])
def test_missing_file_is_named(pki: Pki, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[tls\] {key} = /no/such\.pem: .*No such file"):
        tls.server_context(config(pki, **{key: "/no/such.pem"}))


@pytest.mark.parametrize("key", ["key_file", "cert_file", "ca_file"])
def test_fifo_is_refused_and_never_opened(pki: Pki, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def open_other(path: str, mode: str) -> IO[bytes]:
        assert path != fifo, "it would wait for a writer"
        return open(path, mode)  # type: ignore[return-value]

    monkeypatch.setattr(tls, "open", open_other, raising=False)
    with pytest.raises(ConfigError, match=rf"\[tls\] {key} = {fifo}: expected a PEM file, not a FIFO"):
        tls.server_context(config(pki, **{key: fifo}))


def test_folder_is_named(pki: Pki, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"\[tls\] key_file = {tmp_path}: .*Is a directory"):
        tls.server_context(config(pki, key_file=str(tmp_path)))


@pytest.mark.parametrize("key", ["key_file", "cert_file"])
def test_key_and_certificate_are_required(pki: Pki, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[tls\] {key} = \(empty\): .*enable = false"):
        tls.server_context(config(pki, **{key: ""}))


def test_key_of_another_certificate_is_refused(pki: Pki, tmp_path: Path) -> None:
    other = make_pki(tmp_path)
    with pytest.raises(ConfigError, match=r"\[tls\] key_file = .*key values mismatch"):
        tls.server_context(config(pki, key_file=other.key_file))


@pytest.mark.parametrize("key", ["key_file", "cert_file", "ca_file"])
def test_file_that_is_not_pem_is_named(pki: Pki, tmp_path: Path, key: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=rf"\[tls\] {key} = {bad}"):
        tls.server_context(config(pki, **{key: str(bad)}))


@pytest.mark.parametrize("content", ["empty", "garbage", "cut off", "damaged", "certificate", "public key"])
def test_key_file_without_a_key_says_so(pki: Pki, content: str) -> None:
    key = Path(pki.key_file).read_bytes()
    public = subprocess.run(["openssl", "pkey", "-pubout", "-in", pki.key_file], capture_output=True, check=True)
    contents = {
        "empty": b"",
        "garbage": bytes(range(256)),
        "cut off": key[: len(key) // 2],
        "damaged": key.replace(b"KEY-----\nM", b"KEY-----\n!", 1),
        "certificate": Path(pki.cert_file).read_bytes(),
        "public key": public.stdout,
    }
    Path(pki.key_file).write_bytes(contents[content])
    with pytest.raises(ConfigError, match=NO_KEY):
        tls.server_context(config(pki))


@pytest.mark.parametrize("key", ["cert_file", "ca_file"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("empty", ": no certificate or crl found"),
        ("key", ": no certificate or crl found"),
        ("cut off", ": one in it is cut off or damaged"),
        ("second cut off", ": one in it is cut off or damaged"),
        ("revocations", " none is in it"),
    ],
)
def test_file_without_a_complete_certificate_says_so(
    pki: Pki, tmp_path: Path, key: str, content: str, reason: str
) -> None:
    cert = Path(pki.cert_file).read_bytes()
    half = cert[: cert.index(b"-----END") // 2]
    contents = {
        "empty": b"",
        "key": Path(pki.key_file).read_bytes(),
        "cut off": half,
        "second cut off": cert + half,
        "revocations": REVOCATIONS,
    }
    bad = tmp_path / "bad.pem"
    bad.write_bytes(contents[content])
    with pytest.raises(ConfigError, match=rf"\[tls\] {key} = {bad}: expected complete PEM certificates, but{reason}$"):
        tls.server_context(config(pki, **{key: str(bad)}))


def test_encrypted_key_is_refused_without_a_prompt(pki: Pki, tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", pki.key_file, "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(locked)], check=True)
    with pytest.raises(ConfigError, match="a private key without a password"):
        tls.server_context(config(pki, key_file=str(locked)))


# Renewal.


def replace(pki: Pki, tmp_path: Path) -> None:
    """Renew the server's files in place, as a certificate manager does."""
    (tmp_path / "new").mkdir()
    new = make_pki(tmp_path / "new")
    os.replace(new.key_file, pki.key_file)
    os.replace(new.cert_file, pki.cert_file)


def test_new_files_serve_new_connections(pki: Pki, tmp_path: Path) -> None:
    contexts = tls.TlsContexts(config(pki))
    before = contexts.current
    _, old = shake_hands(before, client())
    assert not contexts.refresh()
    replace(pki, tmp_path)
    assert contexts.refresh()
    assert shake_hands(contexts.current, client())[1] != old
    assert shake_hands(before, client())[1] == old


def test_broken_new_file_is_refused_logged_once_and_the_old_one_kept(
    pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    contexts = tls.TlsContexts(config(pki))
    before = contexts.current
    Path(pki.key_file).write_text("nonsense, longer than a moment's notice\n")
    with caplog.at_level(logging.ERROR):
        assert not contexts.refresh()
        assert not contexts.refresh()
    assert contexts.current is before
    assert len(caplog.records) == 1
    assert pki.key_file in caplog.text
    assert re.search(NO_KEY, caplog.text)


def test_files_mended_after_a_refusal_are_taken(pki: Pki, tmp_path: Path) -> None:
    contexts = tls.TlsContexts(config(pki))
    Path(pki.key_file).unlink()
    assert not contexts.refresh()
    replace(pki, tmp_path)
    assert contexts.refresh()


def test_files_out_of_sight_without_privileges_are_not_changed(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contexts = tls.TlsContexts(config(pki))
    with monkeypatch.context() as patch:
        patch.setattr(tls, "_stat", lambda name: None)
        contexts.privileges_dropped()
        assert not contexts.refresh()
    assert caplog.text == ""
    assert contexts.refresh(), "files that came into sight were not loaded"


def test_file_changed_while_privileges_were_dropped_is_loaded(pki: Pki, tmp_path: Path) -> None:
    contexts = tls.TlsContexts(config(pki))
    replace(pki, tmp_path)
    contexts.privileges_dropped()
    assert contexts.refresh()


# Validity.

Y2K = datetime.datetime(2000, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
BC = datetime.datetime(1999, 1, 1, tzinfo=datetime.timezone.utc)


def test_validity_is_that_of_the_certificate_in_use(tmp_path: Path) -> None:
    context = tls.server_context(config(make_pki(tmp_path, not_before=BC, not_after=Y2K)))
    assert tls.validity(context) == (BC.timestamp(), Y2K.timestamp())


@pytest.mark.parametrize("enable_tls1_1", [False, True])
def test_validity_is_known_whatever_the_versions(pki: Pki, enable_tls1_1: bool) -> None:
    validity = tls.validity(tls.server_context(config(pki, enable_tls1_1=enable_tls1_1)))
    assert validity is not None
    assert validity.begins < time.time() < validity.ends


def test_time_at_which_clients_refuse_a_certificate_is_told() -> None:
    validity = tls.Validity(BC.timestamp(), Y2K.timestamp())
    assert validity.problem(BC.timestamp()) == ""
    assert validity.problem(Y2K.timestamp()) == ""
    assert validity.problem(BC.timestamp() - 1) == "is not valid before 1999-01-01 00:00:00 UTC"
    assert validity.problem(Y2K.timestamp() + 1) == "expired at 2000-02-03 04:05:06 UTC"


def test_expired_certificate_is_warned_about_once_and_again_when_renewed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contexts = tls.TlsContexts(config(make_pki(tmp_path, not_before=BC, not_after=Y2K)))
    assert contexts.must_look
    contexts.look()
    assert not contexts.must_look
    for _ in range(3):
        contexts.tell_validity(time.time())
    text = f"The certificate {tmp_path}/cert.pem expired at 2000-02-03 04:05:06 UTC: clients refuse it"
    assert caplog.messages == [text]
    make_pki(tmp_path)
    assert contexts.refresh(force=True)
    assert contexts.must_look
    contexts.look()
    contexts.tell_validity(time.time())
    assert caplog.messages == [text]
    contexts.tell_validity(2**36)  # it expires while it is in use
    assert "expired at 3000-01-01" in caplog.messages[-1]


def test_force_loads_unchanged_files(pki: Pki) -> None:
    contexts = tls.TlsContexts(config(pki))
    before = contexts.current
    assert contexts.refresh(force=True)
    assert contexts.current is not before


def test_files_that_could_not_be_loaded_again_are_listed(pki: Pki) -> None:
    contexts = tls.TlsContexts(config(pki))
    assert contexts.unreadable() == []
    Path(pki.key_file).unlink()
    assert contexts.unreadable() == [pki.key_file]
