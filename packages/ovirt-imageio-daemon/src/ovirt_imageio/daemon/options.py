# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""What the daemon can be told: every section and key, with type, default and reason.

The dataclasses below are the configuration file's reference: `describe`
lists them with all that a page of documentation needs, and `config` reads
drop-in files into them. Field order is the order of that reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ovirt_imageio.common import defaults

T = TypeVar("T", bool, int, float, str)

DEFAULT_RUN_DIR = "/run/ovirt-imageio"
MAX_PORT = 65535


@dataclass(frozen=True)
class Rule:
    """What a key means and which values it takes; kept in the field's metadata.

    Attributes:
        doc: one sentence for the reader of the reference.
        unit: "s", "bytes", "" for none. Keys in bytes also take `8m` and the like.
        reason: why the default is what it is.
        minimum, maximum: bounds of a number, inclusive; None is unbounded.
        choices: the only words accepted, for text.
        path: the text is a file name or a Unix socket address.
        live: SIGHUP applies a new value, to what begins after it.
    """

    doc: str
    unit: str = ""
    reason: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    path: bool = False
    live: bool = False


def _option(default: T, doc: str, **rule: Any) -> T:
    """Declare a key. Typed as its default, so that mypy sees the field's type."""
    field: T = dataclasses.field(default=default, metadata={"rule": Rule(doc, **rule)})
    return field


def _seconds(default: T, doc: str, reason: str = "", *, minimum: float = 1, live: bool = False) -> T:
    return _option(default, doc, unit="s", reason=reason, minimum=minimum, maximum=30 * 24 * 3600, live=live)


def _port(default: int, doc: str, reason: str = "", *, minimum: int = 0) -> int:
    return _option(default, doc, reason=reason, minimum=minimum, maximum=MAX_PORT)


@dataclass(frozen=True)
class Daemon:
    """Section `daemon`: the process as a whole."""

    poll_interval: float = _option(
        1.0,
        "Time between two rounds of housekeeping: expired tickets, changed TLS files, watchdog.",
        unit="s",
        minimum=0.01,
        maximum=60,
        reason="An expired ticket is noticed within a second at no measurable cost.",
        live=True,
    )
    max_connections: int = _option(
        defaults.MAX_CONNECTIONS,
        "Connections to the storage of one ticket; clients see it as max_readers, max_writers.",
        minimum=1,
        maximum=64,
        reason="qemu-nbd is started with --shared=8 by oVirt hosts.",
        live=True,
    )
    inactivity_timeout: int = _seconds(
        60,
        "Idle time after which a client's connection is closed, unless its ticket says otherwise.",
        "virt-v2v keeps idle connections for 30 seconds; twice that is safe.",
        live=True,
    )
    run_dir: str = _option(
        DEFAULT_RUN_DIR,
        "Folder of run time files; given to user_name before privileges are dropped.",
        path=True,
    )
    drop_privileges: bool = _option(True, "When started as root, continue as user_name and group_name.")
    user_name: str = _option("ovirtimg", "User to run as; its supplementary groups are kept.")
    group_name: str = _option("ovirtimg", "Group to run as; its members may use the control socket.")
    systemd_enable: bool = _option(
        True,
        "Tell systemd when the daemon is ready, and feed its watchdog, if systemd asked for it.",
    )
    max_workers: int = _option(
        defaults.WORKERS,
        "Threads for whatever may block: bulk bodies, file and proxy I/O, hashing.",
        minimum=1,
        maximum=4096,
        reason="Requests past it wait, then are answered 503.",
        live=True,
    )
    max_http_connections: int = _option(
        4096,
        "Client connections of all services together.",
        minimum=8,
        maximum=1 << 20,
        reason="Past it the oldest idle connection without a ticket is closed first.",
        live=True,
    )
    handshake_timeout: float = _seconds(
        10.0,
        "Time a client has for its TLS handshake.",
        minimum=0.1,
        live=True,
    )
    head_timeout: float = _seconds(
        30.0,
        "Time from the first byte of a request to the end of its head.",
        minimum=0.1,
        live=True,
    )
    body_timeout: float = _seconds(
        60.0,
        "Time a client may neither send nor take a byte of a body.",
        minimum=0.1,
        live=True,
    )
    stop_timeout: float = _seconds(
        30.0,
        "Time running requests have to finish when the daemon is stopped.",
        minimum=0,
        live=True,
    )
    inline_limit: int = _option(
        defaults.INLINE_LIMIT,
        "Largest request that is served without a worker thread.",
        unit="bytes",
        minimum=0,
        maximum=1 << 20,
        reason="Measured: up to 128 KiB a pipelined request in the loop is faster than a thread.",
    )
    splice: bool = _option(True, "Move bulk data between sockets without copying it, where the kernel can.")
    keep_memory: bool = _option(
        True,
        "Keep some MiB that encrypted bodies pass through, instead of asking the kernel for them again each time.",
        reason="Measured: the kernel needs longer to fill a page than the processor to encrypt it.",
    )
    quick_reads: bool = _option(
        True,
        "Know a request that differs from the last one of its connection in the range only, instead of parsing each.",
        reason="Measured: half of the daemon's time for 4 KiB.",
    )
    loop_nbd: bool = _option(True, "Serve small NBD requests over one shared, pipelined connection of the ticket.")


@dataclass(frozen=True)
class Tls:
    """Section `tls`: the remote service's encryption."""

    enable: bool = _option(True, "Serve HTTPS on the remote service; otherwise plain HTTP.")
    key_file: str = _option("", "Private key, PEM.", path=True)
    cert_file: str = _option("", "Certificate and its chain, PEM.", path=True)
    ca_file: str = _option(
        "",
        "CA certificates that complete the chain sent to clients; empty for none.",
        path=True,
    )
    enable_tls1_1: bool = _option(False, "Also accept TLS 1.1. Insecure; for clients that know nothing newer.")
    reload: bool = _option(
        True,
        "Read key and certificate again when their files change, and on SIGHUP.",
        reason="Certificates are renewed without ending a transfer.",
    )


@dataclass(frozen=True)
class BackendFile:
    """Section `backend_file`."""

    buffer_size: int = _option(
        8 << 20,
        "Kept for ovirt-imageio 2.x; buffers are now sized by what was measured.",
        unit="bytes",
        minimum=4096,
    )


@dataclass(frozen=True)
class BackendNbd:
    """Section `backend_nbd`."""

    buffer_size: int = _option(
        8 << 20,
        "Kept for ovirt-imageio 2.x; buffers are now sized by what was measured.",
        unit="bytes",
        minimum=4096,
    )
    large_read: bool = _option(
        True,
        "Read 8 MiB at once before 32 MiB or more are moved through a Unix socket: qemu-nbd keeps its memory then.",
        reason="Measured: qemu-nbd then needs half of its processor time.",
    )


@dataclass(frozen=True)
class BackendHttp:
    """Section `backend_http`: the daemon as a proxy."""

    buffer_size: int = _option(
        8 << 20,
        "Kept for ovirt-imageio 2.x; buffers are now sized by what was measured.",
        unit="bytes",
        minimum=4096,
    )
    ca_file: str = _option(
        "",
        "CA certificates that verify the origin server; empty for the system's.",
        path=True,
        live=True,
    )


@dataclass(frozen=True)
class Remote:
    """Section `remote`: HTTPS for clients on other hosts."""

    host: str = _option("::", "Address to listen on; :: and an empty value are all interfaces, IPv4 and IPv6.")
    port: int = _port(54322, "TCP port; 0 takes any free one.", "oVirt engine and firewalld know it.")


@dataclass(frozen=True)
class Local:
    """Section `local`: HTTP on a Unix socket for clients on this host."""

    enable: bool = _option(True, "Serve clients on this host over a Unix socket, without encryption.")
    socket: str = _option(
        "\0/org/ovirt/imageio",
        r"Path, or abstract address written with a leading \u0000; empty takes any free one.",
        path=True,
    )


@dataclass(frozen=True)
class Control:
    """Section `control`: the host's manager adds and removes tickets here."""

    enable: bool = _option(True, "Serve tickets. Without it only --ticket can add one.")
    transport: str = _option("unix", "Where to listen.", choices=("unix", "tcp"))
    socket: str = _option(
        DEFAULT_RUN_DIR + "/sock",
        "Path of the Unix socket, mode 0660; used with transport unix.",
        path=True,
    )
    port: int = _port(
        -1,
        "TCP port on localhost, 0 takes any free one; used and required with transport tcp.",
        "ovirt-engine uses 54324.",
        minimum=-1,
    )
    prefer_ipv4: bool = _option(True, "With transport tcp listen on 127.0.0.1, otherwise on ::1.")
    remove_timeout: int = _seconds(
        60,
        "Time a DELETE waits for running operations of the ticket; 0 answers at once.",
        minimum=0,
        live=True,
    )


@dataclass(frozen=True)
class Profile:
    """Section `profile`."""

    filename: str = _option(DEFAULT_RUN_DIR + "/profile", "Where stop-profile writes what was measured.", path=True)


@dataclass(frozen=True)
class Metrics:
    """Section `metrics`: a listener of its own for Prometheus."""

    enable: bool = _option(False, "Serve /metrics. Needs the Python package prometheus_client.")
    host: str = _option("127.0.0.1", "Address to listen on; empty is all interfaces.")
    port: int = _port(54325, "TCP port; 0 takes any free one.", "The first free one after imageio's own ports.")


class OptionInfo(NamedTuple):
    """One key, as documentation shows it. `type` is bool, int, float or str."""

    section: str
    key: str
    type: str
    default: bool | int | float | str
    rule: Rule


SECTIONS: dict[str, type[Any]] = {
    "daemon": Daemon,
    "tls": Tls,
    "backend_file": BackendFile,
    "backend_nbd": BackendNbd,
    "backend_http": BackendHttp,
    "remote": Remote,
    "local": Local,
    "control": Control,
    "profile": Profile,
    "metrics": Metrics,
}


def describe(section: str | None = None) -> Iterator[OptionInfo]:
    """List keys in reference order, of one section or of all.

    Raises:
        KeyError: there is no such section.
    """
    names = SECTIONS if section is None else [section]
    for name in names:
        for field in dataclasses.fields(SECTIONS[name]):
            rule = field.metadata["rule"]
            default: Any = field.default
            yield OptionInfo(name, field.name, type(default).__name__, default, rule)
