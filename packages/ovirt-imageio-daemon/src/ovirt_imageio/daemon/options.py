# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Settings of the daemon: every section and key, with type, default and reason.

The sections below are the configuration file's reference. `describe` lists
their keys with all that a page of documentation needs, and `config` reads
drop-in files into them. Their order is the order of that reference.

No dataclasses: to load those and to make these ten took a fifth of the daemon's start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar, overload

from ovirt_imageio.common import defaults

T = TypeVar("T", bool, int, float, str)
S = TypeVar("S", bound="Section")

DEFAULT_RUN_DIR = "/run/ovirt-imageio"
MAX_PORT = 65535


class Rule(NamedTuple):
    """Meaning of a key, and the values that it takes.

    Attributes:
        doc: one sentence for the reader of the reference.
        unit: "s", "bytes", "" for none. Keys in bytes also take `8m` and the like.
        reason: why the default is what it is.
        minimum, maximum: bounds of a number, inclusive; None is unbounded.
        choices: the only words accepted, for text.
        path: the text is a file name or a Unix socket address.
        socket: it is a Unix socket address, which begins with NUL if it is abstract.
        live: SIGHUP applies a new value, to what begins after it.
    """

    doc: str
    unit: str = ""
    reason: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    path: bool = False
    socket: bool = False
    live: bool = False


class Option(Generic[T]):
    """A key of a section, as a descriptor: `section.key` is its value there, or the default.

    Args:
        default: its value unless a file sets another; its type is the key's.
        doc, rule: see `Rule`.
    """

    key: str

    def __init__(self, default: T, doc: str, **rule: Any) -> None:
        self.default: T = default
        self.rule = Rule(doc, **rule)

    def __set_name__(self, section: type[Section], key: str) -> None:
        self.key = key

    @overload
    def __get__(self, section: None, kind: type[Section]) -> Option[T]: ...

    @overload
    def __get__(self, section: Section, kind: type[Section]) -> T: ...

    def __get__(self, section: Section | None, kind: type[Section]) -> Option[T] | T:
        if section is None:
            return self
        value: T = section.given.get(self.key, self.default)
        return value

    def __set__(self, section: Section, value: T) -> NoReturn:
        raise AttributeError(f"{self.key} is configured and cannot be set")


class Section:
    """A section of the configuration: what files say of its keys. It never changes.

    Args:
        given: values by key; the others have their defaults.

    Raises:
        TypeError: there is no such key.
    """

    def __init__(self, **given: Any) -> None:
        unknown = given.keys() - {option.key for option in self.options()}
        if unknown:
            raise TypeError(f"[{type(self).__name__}] has no key {', '.join(sorted(unknown))}")
        self.given = given

    @classmethod
    def options(cls) -> list[Option[Any]]:
        """List the keys in the order of the reference."""
        return [option for option in vars(cls).values() if isinstance(option, Option)]

    def to_dict(self) -> dict[str, Any]:
        """Return the value of each key."""
        return {option.key: self.given.get(option.key, option.default) for option in self.options()}

    def replace(self: S, **changes: Any) -> S:
        """Return the section with other values of some keys."""
        return type(self)(**{**self.given, **changes})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Section) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.given.items())})"


def _seconds(default: T, doc: str, reason: str = "", *, minimum: float = 1, live: bool = False) -> Option[T]:
    return Option(default, doc, unit="s", reason=reason, minimum=minimum, maximum=30 * 24 * 3600, live=live)


def _port(default: int, doc: str, reason: str = "", *, minimum: int = 0) -> Option[int]:
    return Option(default, doc, reason=reason, minimum=minimum, maximum=MAX_PORT)


class Daemon(Section):
    """Section `daemon`: the process as a whole."""

    poll_interval = Option(
        1.0,
        "Time between two rounds of housekeeping: expired tickets, changed TLS files, watchdog.",
        unit="s",
        minimum=0.01,
        maximum=60,
        reason="An expired ticket is noticed within a second at no measurable cost.",
        live=True,
    )
    max_connections = Option(
        defaults.MAX_CONNECTIONS,
        "Connections to the storage of one ticket; clients see it as max_readers, max_writers.",
        minimum=1,
        maximum=64,
        reason="qemu-nbd is started with --shared=8 by oVirt hosts.",
        live=True,
    )
    inactivity_timeout = _seconds(
        60,
        "Idle time after which a client's connection is closed, unless its ticket says otherwise.",
        "virt-v2v keeps idle connections for 30 seconds; twice that is safe.",
        live=True,
    )
    run_dir = Option(
        DEFAULT_RUN_DIR,
        "Folder of run time files; given to user_name before privileges are dropped.",
        path=True,
    )
    drop_privileges = Option(True, "When started as root, continue as user_name and group_name.")
    user_name = Option("ovirtimg", "User to run as; its supplementary groups are kept.")
    group_name = Option("ovirtimg", "Group to run as; its members may use the control socket.")
    systemd_enable = Option(
        True,
        "Tell systemd when the daemon is ready, and feed its watchdog, if systemd asked for it.",
    )
    max_workers = Option(
        defaults.WORKERS,
        "Threads for whatever may block: bulk bodies, file and proxy I/O, hashing.",
        minimum=1,
        maximum=4096,
        reason="Requests past it wait, then are answered 503.",
        live=True,
    )
    max_http_connections = Option(
        4096,
        "Client connections of all services together.",
        minimum=8,
        maximum=1 << 20,
        reason="Past it the oldest idle connection without a ticket is closed first.",
        live=True,
    )
    handshake_timeout = _seconds(
        10.0,
        "Time a client has for its TLS handshake.",
        minimum=0.1,
        live=True,
    )
    head_timeout = _seconds(
        30.0,
        "Time from the first byte of a request to the end of its head.",
        minimum=0.1,
        live=True,
    )
    body_timeout = _seconds(
        60.0,
        "Time a client may neither send nor take a byte of a body; the inactivity_timeout of its ticket, where that is "
        "longer than the daemon's and than this.",
        minimum=0.1,
        live=True,
    )
    stop_timeout = _seconds(
        30.0,
        "Time running requests have to finish when the daemon is stopped.",
        minimum=0,
        live=True,
    )
    inline_limit = Option(
        defaults.INLINE_LIMIT,
        "Largest request that is served without a worker thread.",
        unit="bytes",
        minimum=0,
        maximum=1 << 20,
        reason="Measured: up to 128 KiB a pipelined request in the loop is faster than a thread.",
    )
    splice = Option(True, "Move bulk data between sockets without copying it, where the kernel can.")
    keep_memory = Option(
        True,
        "Keep some MiB that encrypted bodies pass through, instead of asking the kernel for them again each time.",
        reason="Measured: the kernel needs longer to fill a page than the processor to encrypt it.",
    )
    quick_reads = Option(
        True,
        "Know a request that differs from the last one of its connection in the range only, instead of parsing each.",
        reason="Measured: half of the daemon's time for 4 KiB.",
    )
    loop_nbd = Option(True, "Serve small NBD requests over one shared, pipelined connection of the ticket.")


class Tls(Section):
    """Section `tls`: the remote service's encryption."""

    enable = Option(True, "Serve HTTPS on the remote service; otherwise plain HTTP.")
    key_file = Option("", "Private key, PEM.", path=True)
    cert_file = Option("", "Certificate and its chain, PEM.", path=True)
    ca_file = Option(
        "",
        "CA certificates that complete the chain sent to clients; empty for none.",
        path=True,
    )
    enable_tls1_1 = Option(
        False,
        "Also accept TLS 1.1, even where the system's policy demands more. "
        "Insecure; for clients that know nothing newer.",
    )
    reload = Option(
        True,
        "Read key and certificate again when their files change, and on SIGHUP.",
        reason="Certificates are renewed without ending a transfer.",
    )


class BackendFile(Section):
    """Section `backend_file`."""

    buffer_size = Option(
        8 << 20,
        "Kept for ovirt-imageio 2.x; buffers are now sized by what was measured.",
        unit="bytes",
        minimum=4096,
    )


class BackendNbd(Section):
    """Section `backend_nbd`."""

    buffer_size = Option(
        8 << 20,
        "Kept for ovirt-imageio 2.x; buffers are now sized by what was measured.",
        unit="bytes",
        minimum=4096,
    )
    timeout = _seconds(
        900,
        "Time that storage may take for one request; 0 for no limit. Removing a ticket ends the wait at once.",
        "A discard on slow NFS took more than a minute.",
        minimum=0,
        live=True,
    )
    large_read = Option(
        True,
        "Read 8 MiB at once before 32 MiB or more are moved through a Unix socket: qemu-nbd keeps its memory then.",
        reason="Measured: qemu-nbd then needs half of its processor time.",
    )


class BackendHttp(Section):
    """Section `backend_http`: the daemon as a proxy."""

    buffer_size = Option(
        8 << 20,
        "Kept for ovirt-imageio 2.x; buffers are now sized by what was measured.",
        unit="bytes",
        minimum=4096,
    )
    ca_file = Option(
        "",
        "CA certificates that verify the origin server; empty for those of [tls], or else the system's.",
        path=True,
        live=True,
    )


class Remote(Section):
    """Section `remote`: HTTPS for clients on other hosts."""

    host = Option("::", "Address to listen on; :: and an empty value are all interfaces, IPv4 and IPv6.")
    port = _port(54322, "TCP port; 0 takes any free one.", "oVirt engine and firewalld know it.")


class Local(Section):
    """Section `local`: HTTP on a Unix socket for clients on this host."""

    enable = Option(True, "Serve clients on this host over a Unix socket, without encryption.")
    socket = Option(
        "\0/org/ovirt/imageio",
        r"Path, or abstract address written with a leading \u0000; empty takes any free one.",
        path=True,
        socket=True,
    )


class Control(Section):
    """Section `control`: the host's manager adds and removes tickets here."""

    enable = Option(True, "Serve tickets. Without it only --ticket can add one.")
    transport = Option("unix", "Where to listen.", choices=("unix", "tcp"))
    socket = Option(
        DEFAULT_RUN_DIR + "/sock",
        "Path of the Unix socket, mode 0660; used with transport unix. "
        "An abstract address is refused: anybody may connect to it.",
        path=True,
        socket=True,
    )
    port = _port(
        -1,
        "TCP port on localhost, 0 takes any free one; used and required with transport tcp.",
        "ovirt-engine uses 54324.",
        minimum=-1,
    )
    prefer_ipv4 = Option(True, "With transport tcp listen on 127.0.0.1, otherwise on ::1.")
    remove_timeout = _seconds(
        60,
        "Time a DELETE waits for running operations of the ticket; 0 answers at once.",
        minimum=0,
        live=True,
    )


class Profile(Section):
    """Section `profile`."""

    filename = Option(DEFAULT_RUN_DIR + "/profile", "Where stop-profile writes what was measured.", path=True)


class Metrics(Section):
    """Section `metrics`: a listener of its own for Prometheus."""

    enable = Option(False, "Serve /metrics. Needs the Python package prometheus_client.")
    host = Option("127.0.0.1", "Address to listen on; empty is all interfaces.")
    port = _port(54325, "TCP port; 0 takes any free one.", "The first free one after imageio's own ports.")


class OptionInfo(NamedTuple):
    """One key, as documentation shows it. `type` is bool, int, float or str."""

    section: str
    key: str
    type: str
    default: bool | int | float | str
    rule: Rule


SECTIONS: dict[str, type[Section]] = {
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
        for option in SECTIONS[name].options():
            yield OptionInfo(name, option.key, type(option.default).__name__, option.default, option.rule)
