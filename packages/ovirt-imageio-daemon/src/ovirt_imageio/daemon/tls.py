# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""TLS contexts of the remote service, renewed while the daemon runs."""

from __future__ import annotations

import logging
import os
import ssl
import stat
import time
import warnings
from typing import NamedTuple

from .config import Config, ConfigError

log = logging.getLogger(__name__)

# OpenSSL 3 allows TLS 1.1 only at security level 0, since it needs SHA-1
# (SSL_CTX_set_security_level(3)).
_TLS1_1_CIPHERS = "DEFAULT:@SECLEVEL=0"


# Not in Python's ssl: X509_VERIFY_PARAM_set_flags(3).
_NO_CHECK_TIME = 0x200000
_PARTIAL_CHAIN = 0x80000


class Validity(NamedTuple):
    """From when to when a certificate is valid, in seconds of the system's clock."""

    begins: float
    ends: float

    def problem(self, now: float) -> str:
        """Say why clients refuse the certificate now; nothing if its time is right."""
        if now < self.begins:
            return f"is not valid before {_date(self.begins)}"
        return f"expired at {_date(self.ends)}" if now > self.ends else ""


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def validity(context: ssl.SSLContext) -> Validity | None:
    """Return when the certificate of a server's context is valid. Takes some milliseconds.

    Python decodes only what a peer has shown in a handshake that trusts it: so there are two, in memory.

    Returns:
        None if the handshake is refused for another reason.
    """
    try:
        shown = _peer_of(context).getpeercert(binary_form=True)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.load_verify_locations(cadata=shown or b"")
        client.verify_flags = ssl.VerifyFlags(_NO_CHECK_TIME | _PARTIAL_CHAIN)
        found = _handshake(context, client).getpeercert() or {}
        return Validity(*(ssl.cert_time_to_seconds(str(found[key])) for key in ("notBefore", "notAfter")))
    except (ssl.SSLError, ValueError, KeyError) as e:
        log.debug("The validity of the certificate is not known: %s", e)
        return None


def _peer_of(context: ssl.SSLContext) -> ssl.SSLObject:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return _handshake(context, client)


def server_context(cfg: Config) -> ssl.SSLContext:
    """Build the context for new connections from the files of section tls.

    TLS 1.2 and later, or what the system's policy demands beyond that; 1.1 where
    `enable_tls1_1` says so, whatever the policy, 1.0 never. Ciphers are those of the
    system's policy. Clients are not asked for certificates.

    Raises:
        ConfigError: a file is missing, cannot be read or does not fit; or the
            TLS library forbids TLS 1.1.
    """
    for key in ("key_file", "cert_file"):
        _check_file(cfg, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    # Raised, never lowered: the policy may demand more (MinProtocol in config(5ssl)). Builds of
    # Python with defaults of their own hide it and begin with 1.2; distributions' do not.
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    _load_chain(context, cfg)
    if cfg.tls.ca_file:
        _load_ca(context, cfg)
    if cfg.tls.enable_tls1_1:
        _enable_tls1_1(context, cfg)
    return context


def origin_problem(cfg: Config) -> str:
    """Say why proxied images cannot be had by HTTPS: the certificates that verify their servers; empty if they can.

    It is no reason to refuse the start: most hosts have no such tickets.
    """
    section = "backend_http" if cfg.backend_http.ca_file else "tls"
    if not getattr(cfg, section).ca_file:
        return ""
    try:
        _check_file(cfg, "ca_file", section=section)
        _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cfg, "ca_file", section=section)
    except ConfigError as e:
        return f"{e}; tickets with an https URL will fail"
    return ""


def _check_file(cfg: Config, key: str, *, section: str = "tls") -> None:
    """Open a file once for its own error: the ssl module's does not name it."""
    path = getattr(getattr(cfg, section), key)
    if not path:
        raise cfg.error(section, key, "a PEM file, or enable = false in [tls]")
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISCHR(mode)):
            # Not opened: a FIFO would have the whole loop wait for a writer.
            raise cfg.error(section, key, "a PEM file, not a FIFO, a socket or a block device")
        with open(path, "rb") as f:  # a folder's error comes from here
            f.read(1)
    except OSError as e:
        raise cfg.error(section, key, f"a PEM file that can be read, but: {e.strerror}") from e


def _load_chain(context: ssl.SSLContext, cfg: Config) -> None:
    def no_password() -> str:
        raise cfg.error("tls", "key_file", "a private key without a password")

    try:
        context.load_cert_chain(cfg.tls.cert_file, cfg.tls.key_file, password=no_password)
    except (ssl.SSLError, OSError) as e:
        # Reads PEM certificates just as load_cert_chain does, without the key: are they at fault?
        _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cfg, "cert_file")
        if _is_untold(e):
            expected = "a complete PEM private key without a password, but none is in it"
        else:
            expected = f"a key that belongs to cert_file {cfg.tls.cert_file}, but: {_reason(e)}"
        raise cfg.error("tls", "key_file", expected) from e


def _load_ca(context: ssl.SSLContext, cfg: Config) -> None:
    _check_file(cfg, "ca_file")
    # OpenSSL completes the chain that it sends from these (SSL_CTX_set_mode(3)).
    _load_certificates(context, cfg, "ca_file")


def _load_certificates(context: ssl.SSLContext, cfg: Config, key: str, *, section: str = "tls") -> None:
    """Trust the certificates of a file; raise if they are not what the key expects."""
    try:
        context.load_verify_locations(getattr(getattr(cfg, section), key))
    except (ssl.SSLError, OSError) as e:
        # A file that is not PEM at all has a reason, "no certificate or crl found".
        reason = "one in it is cut off or damaged" if _is_untold(e) else _reason(e)
        raise cfg.error(section, key, f"complete PEM certificates, but: {reason}") from e
    if not context.cert_store_stats()["x509"]:
        raise cfg.error(section, key, "complete PEM certificates, but none is in it")


def _is_untold(error: OSError) -> bool:
    """Tell whether all that OpenSSL says is that its PEM routines failed."""
    return "pem lib" in _reason(error).lower()


def _reason(error: OSError) -> str:
    """Put OpenSSL's reason into words: `KEY_VALUES_MISMATCH` → `key values mismatch`."""
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else (error.strerror or str(error))


def _enable_tls1_1(context: ssl.SSLContext, cfg: Config) -> None:
    """Allow TLS 1.1 and prove by a handshake that the library goes along."""
    try:
        _allow_tls1_1(context)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        _allow_tls1_1(client, only=True)
        _handshake(context, client)
    except (ssl.SSLError, ValueError) as e:
        expected = f"false, for this system's TLS library refuses TLS 1.1: {_tls_error(e)}"
        raise cfg.error("tls", "enable_tls1_1", expected) from e


def _tls_error(error: Exception) -> str:
    return _reason(error) if isinstance(error, ssl.SSLError) else str(error)


def _allow_tls1_1(context: ssl.SSLContext, *, only: bool = False) -> None:
    context.set_ciphers(_TLS1_1_CIPHERS)
    with warnings.catch_warnings():
        # Python calls TLS 1.1 deprecated; the operator has asked for it by name.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        if only:
            context.maximum_version = ssl.TLSVersion.TLSv1_1


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Shake hands in memory; return the client's end. Raises ssl.SSLError if either side refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    ]
    for _ in range(4):  # flights of a full TLS 1.1 handshake
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1]


class TlsContexts:
    """The context for new connections, read again when its files change.

    A connection keeps the context that it began with. Belongs to one thread.

    Attributes:
        current: The context.
        must_look: It is not known yet when its certificate is valid: see `look`.
    """

    def __init__(self, cfg: Config) -> None:
        """Load the files. Raises `ConfigError` as `server_context` does."""
        self._cfg = cfg
        self._seen = self._signature()
        self.current = server_context(cfg)
        self.must_look = True
        self._validity: Validity | None = None
        self._told = ""

    def refresh(self, *, force: bool = False) -> bool:
        """Load changed files; keep the old context if they are broken, and log why.

        Args:
            force: load them even if nothing seems changed, as on SIGHUP.

        Returns:
            Whether a new context is in use.
        """
        signature = self._signature()
        if signature == self._seen and not force:
            return False
        # Remembered before the attempt: a broken file is reported once, not each second.
        self._seen = signature
        try:
            self.current = server_context(self._cfg)
        except ConfigError as e:
            log.error("New TLS files refused, the old ones stay in use: %s", e)
            return False
        log.info("TLS files loaded again: %s", ", ".join(self._files()))
        self.must_look, self._validity, self._told = True, None, ""
        return True

    def look(self) -> None:
        """Find out when the certificate in use is valid. Takes some milliseconds, in any thread."""
        context = self.current
        found = validity(context)
        if context is self.current:  # not renewed meanwhile
            self._validity, self.must_look = found, False

    def tell_validity(self, now: float) -> None:
        """Warn once of a certificate that clients refuse for its time; to be called every second or so.

        Args:
            now: Seconds of the system's clock.
        """
        problem = self._validity.problem(now) if self._validity is not None else ""
        if problem and problem != self._told:
            log.warning("The certificate %s %s: clients refuse it", self._cfg.tls.cert_file, problem)
        self._told = problem

    def privileges_dropped(self) -> None:
        """Take files that the process, as it is now, cannot see for unchanged.

        A file that was changed since it was loaded is still seen to differ.
        """
        now = self._signature()
        self._seen = [None if current is None else seen for seen, current in zip(self._seen, now)]

    def unreadable(self) -> list[str]:
        """List the files that the process, as it is now, could not load again."""
        return [name for name in self._files() if not os.access(name, os.R_OK)]

    def _files(self) -> list[str]:
        tls = self._cfg.tls
        return [name for name in (tls.key_file, tls.cert_file, tls.ca_file) if name]

    def _signature(self) -> list[tuple[int, int, int] | None]:
        """Return what tells a changed file from the one loaded, by three stat(2) calls."""
        return [_stat(name) for name in self._files()]


def _stat(name: str) -> tuple[int, int, int] | None:
    try:
        st = os.stat(name)
    except OSError:
        return None
    return st.st_ino, st.st_size, st.st_mtime_ns
