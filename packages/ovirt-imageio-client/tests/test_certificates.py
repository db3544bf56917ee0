# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates that are not accepted, each with its own words; --cafile is named where it helps."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from imageio_testing.imageserver import Image, ScriptedServer
from ovirt_imageio.client import cli
from ovirt_imageio.client.certificates import advice, advice_without_tls

NOW = datetime.datetime.now(datetime.timezone.utc)
YEAR = datetime.timedelta(days=365)

AUTHORITY = "(give the certificate of its authority by --cafile)"
NAME = "(use a host name that stands in the certificate)"
EXPIRED = "(it must be renewed, or the clock of this machine is wrong)"
NOT_YET = "(it will be valid later, or the clock of this machine is wrong)"
STRICT = "(it breaks RFC 5280, on which Python 3.13 and newer insist: it must be made anew)"


@pytest.fixture
def trial(tmp_path, capsys):
    """The words of `ovirt-img` about a server with a certificate: the last line of its errors."""
    (tmp_path / "disk").write_bytes(b"x" * 4096)

    def try_it(certificate, authority):
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        with ScriptedServer(Image(bytearray(4096)), context=context) as server:
            assert cli.main(["upload", "--cafile", str(tmp_path / "ca.pem"), str(tmp_path / "disk"), server.url]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    return try_it


def test_certificate_of_another_authority(trial):
    said = trial(trustme.CA().issue_cert("127.0.0.1"), trustme.CA())
    assert "unable to get local issuer certificate" in said
    assert said.endswith(AUTHORITY)


def test_certificate_that_expired(trial):
    ca = trustme.CA()
    said = trial(ca.issue_cert("127.0.0.1", not_before=NOW - 2 * YEAR, not_after=NOW - YEAR), ca)
    assert "certificate has expired" in said
    assert said.endswith(EXPIRED)


def test_certificate_that_is_not_yet_valid(trial):
    ca = trustme.CA()
    said = trial(ca.issue_cert("127.0.0.1", not_before=NOW + YEAR, not_after=NOW + 2 * YEAR), ca)
    assert "not yet valid" in said
    assert said.endswith(NOT_YET)


@pytest.mark.parametrize("name", ["host.example", "10.0.0.1"])
def test_certificate_of_another_name(trial, name):
    ca = trustme.CA()
    said = trial(ca.issue_cert(name), ca)
    assert "127.0.0.1" in said
    assert said.endswith(NAME)


class Old:
    """An authority and a server as made by old programs: without what RFC 5280 wants."""

    def __init__(self):
        key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
        authority = self._signed(name, key, key, x509.BasicConstraints(ca=True, path_length=None))
        server_key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = self._signed(subject, server_key, key, names, issuer=name)
        pem = serialization.Encoding.PEM
        self.cert_pem = trustme.Blob(authority.public_bytes(pem))
        self._chain = certificate.public_bytes(pem) + server_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @staticmethod
    def _signed(subject, key, signer, extension, issuer=None):
        builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer or subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW - YEAR).not_valid_after(NOW + YEAR)
        return builder.add_extension(extension, critical=False).sign(signer, hashes.SHA256())

    def configure_cert(self, context):
        with trustme.Blob(self._chain).tempfile() as path:
            context.load_cert_chain(path)


def test_certificate_that_python_3_13_no_longer_takes(trial, monkeypatch):
    make = ssl.create_default_context

    def strict(**options):
        context = make(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    old = Old()
    said = trial(old, old)
    assert "was not accepted" in said
    assert said.endswith(STRICT)


def test_server_without_tls(tmp_path, capsys):
    (tmp_path / "disk").write_bytes(b"x" * 4096)

    def answer_in_plain(sock, number):
        with sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with ScriptedServer(lambda got: None) as server:
        server._serve = answer_in_plain
        url = server.url.replace("http:", "https:")
        assert cli.main(["upload", str(tmp_path / "disk"), url]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("(does the server speak TLS at this port? If not, its URL begins with http:)")


def test_missing_file_of_certificates_gets_no_hint(tmp_path, capsys):
    (tmp_path / "disk").write_bytes(b"x" * 4096)
    url = "https://127.0.0.1:1/images/x"
    assert cli.main(["upload", "--cafile", str(tmp_path / "none.pem"), str(tmp_path / "disk"), url]) == 1
    assert "none.pem" in capsys.readouterr().err.splitlines()[-1]
    assert os.path.exists(tmp_path / "disk")


@pytest.mark.parametrize("code", [0, 1, 23, 1000])
def test_reason_that_nothing_is_known_to_help_against_gets_no_hint(code):
    assert advice(code) == ""


def test_names_are_told_by_the_words_too():
    assert advice(0, "Hostname mismatch, certificate is not valid for 'x'.") == NAME[1:-1]


def test_alerts_that_mean_no_common_version():
    assert "no version of TLS" in advice_without_tls("TLSV1_ALERT_PROTOCOL_VERSION")
    assert advice_without_tls("SOMETHING") == ""
