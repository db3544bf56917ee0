# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Advice on a TLS connection that could not be made, by the reason that OpenSSL gives. Pure.

Sources: X509_STORE_CTX_get_error(3), x509_vfy.h of OpenSSL 3; Python 3.13, What's New, "ssl".
"""

from __future__ import annotations

_AUTHORITY = "give the certificate of its authority by --cafile"
_EXPIRED = "it must be renewed, or the clock of this machine is wrong"
_NOT_YET = "it will be valid later, or the clock of this machine is wrong"
_OTHER_NAME = "use a host name that stands in the certificate"
_WEAK = "its key or signature is too weak for this machine: it must be made anew"
_NO_AUTHORITY = "a certificate that should be of an authority is not: see what --cafile has, and what the server sends"
_STRICT = "it breaks RFC 5280, on which Python 3.13 and newer insist: it must be made anew"

_BY_CODE = {
    **dict.fromkeys((2, 18, 19, 20, 21), _AUTHORITY),
    9: _NOT_YET,
    10: _EXPIRED,
    **dict.fromkeys((24, 79), _NO_AUTHORITY),
    **dict.fromkeys((62, 63, 64), _OTHER_NAME),
    **dict.fromkeys((66, 67, 68), _WEAK),
    **dict.fromkeys(range(80, 95), _STRICT),
}

_NO_TLS = "does the server speak TLS at this port? If not, its URL begins with http:"
_NO_VERSION = "both ends know no version of TLS or cipher in common"

_BY_REASON = {
    **dict.fromkeys(("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST"), _NO_TLS),
    **dict.fromkeys(("UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "TLSV1_ALERT_PROTOCOL_VERSION"), _NO_VERSION),
    **dict.fromkeys(("SSLV3_ALERT_HANDSHAKE_FAILURE", "NO_SHARED_CIPHER"), _NO_VERSION),
}


def advice(verify_code: int, verify_message: str = "") -> str:
    """Say what helps against a certificate that was not accepted; empty if nothing is known to.

    Args:
        verify_code: Number of the reason.
        verify_message: Its words: of a wrong name, versions of OpenSSL have other numbers.
    """
    if "is not valid for" in verify_message:
        return _OTHER_NAME
    return _BY_CODE.get(verify_code, "")


def advice_without_tls(reason: str) -> str:
    """Say what helps where no TLS could be spoken; empty if nothing is known to.

    Args:
        reason: `reason` of the `ssl.SSLError`.
    """
    return _BY_REASON.get(reason, "")
