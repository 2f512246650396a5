"""Which addresses of images may be fetched: a strict reading of the text, and the networks that are out of bounds.

Data that nobody vouches for must not make this machine ask something of a network that only this machine can reach.
So an address is read by narrow rules, and what two programs could read in two ways (other spellings of a number, a user
name, a backslash, letters that look like others) is refused instead of interpreted. The host's numbers are judged where
the connection is made, see ``fetching``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from vlsi_cli.engine.data.records import BadRecord

Number = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Characters of an address at most; longer ones are data or mischief.
LONGEST = 4096
_PORTS = {"http": 80, "https": 443}
_WHOLE = re.compile(r"(?P<scheme>https?)://(?P<place>[^/?#]*)(?P<rest>[^#]*)(?:#.*)?", re.IGNORECASE)
_PLACE = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
#: What stays as it is in a path and a query; all else becomes percent-encoded UTF-8, as a browser would send it.
_KEPT = "!$%&'()*+,-./:;=?@[]_~"

# The special-purpose registries of IANA (RFC 6890 and its updates), written out: what the standard library calls
# global differs between patch versions of Python.
_CLOSED_V4 = [
    ipaddress.IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # at Azure, answered by the host of the virtual machine
    )
]
#: All of IPv6 but global unicast is closed (loopback, mapped and NAT64 forms, private, link-local, multicast), and of
#: global unicast what embeds an IPv4 number (Teredo, 6to4) or is set aside.
_OPEN_V6 = ipaddress.IPv6Network("2000::/3")
_CLOSED_V6 = [
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
#: Networks of an organization's own, which a host named in ``private_hosts`` may be in.
_PRIVATE = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
]
#: Where clouds hand out a machine's credentials, inside of these.
_METADATA = {ipaddress.ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")}


@dataclass(frozen=True, slots=True)
class Address:
    """An address that was read: what is asked of whom.

    Attributes:
        scheme: ``http`` or ``https``.
        host: in lower case; a number of IPv6 without brackets.
        port: given, or the scheme's.
        target: path and query, percent-encoded.
        private: whether the host may be in a private network, because it was named so.
    """

    scheme: str
    host: str
    port: int
    target: str
    private: bool = False

    @property
    def place(self) -> str:
        """Host, and the port where it is not the scheme's: what the ``Host`` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}{self.target}"


@dataclass(frozen=True)
class HostRules:
    """Which hosts may be asked.

    An entry is a name (or a number of IPv4), ``*.name`` for the names below it, or either with ``:port``.

    Attributes:
        hosts: the only ones; None for any.
        private_hosts: names, without ``*``, that may lead into a private network.
    """

    hosts: Sequence[str] | None = None
    private_hosts: Sequence[str] = field(default=())

    def is_private(self, host: str, port: int) -> bool:
        """Whether a host was named in ``private_hosts``."""
        return any(_fits(entry, host, port) for entry in self.private_hosts)

    def allows(self, host: str, port: int) -> bool:
        """Whether a host may be asked at a port: one that was named, or any at the ports of http and https."""
        if self.is_private(host, port):
            return True
        if self.hosts is None:
            return port in _PORTS.values()
        return any(_fits(entry, host, port) for entry in self.hosts)


def _fits(entry: str, host: str, port: int) -> bool:
    name, _, given = entry.lower().partition(":")
    if port not in ([int(given)] if given else _PORTS.values()):
        return False
    return host.endswith(name[1:]) and len(host) >= len(name) if name.startswith("*.") else host == name


def read_address(text: str, rules: HostRules) -> Address:
    """Read an address.

    Raises:
        BadRecord: ``image-address``: another scheme, an odd spelling, or a host or port that may not be asked.
    """

    def refuse(why: str) -> BadRecord:
        return BadRecord("image-address", f"{shown(text)}: {why}")

    if len(text) > LONGEST:
        raise refuse(f"{len(text):,} characters")
    if _CONTROL.search(text) or text != text.strip():
        raise refuse("a control character, or space around it")
    if "\\" in text:
        raise refuse("a backslash")
    if (whole := _WHOLE.fullmatch(text)) is None:
        raise refuse("not http or https")
    scheme, place = whole["scheme"].lower(), whole["place"]
    if "@" in place:
        raise refuse("a user name in the address")
    if not place.isascii():
        raise refuse("a host in other letters than ASCII; write it as xn--")
    if (parts := _PLACE.fullmatch(place)) is None:
        raise refuse("a host that cannot be read")
    host = parts["host"].lower()
    port = int(parts["port"]) if parts["port"] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise refuse(f"port {port}")
    host = _plain_host(host, refuse)
    if not rules.allows(host, port):
        named = f"{host}:{port}" if port not in _PORTS.values() else host
        raise refuse(f"{named} is not among the hosts that may be asked")
    try:
        target = quote(whole["rest"], safe=_KEPT)
    except UnicodeEncodeError:
        raise refuse("half of a surrogate pair") from None
    target = target if target.startswith("/") else f"/{target}"
    address = Address(scheme, host, port, target, rules.is_private(host, port))
    if (number := as_number(host)) is not None and not is_open(number, private=address.private):
        raise refuse("not a public address")
    return address


def _plain_host(host: str, refuse: Callable[[str], BadRecord]) -> str:
    """A host that can be read in one way only."""
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise refuse("a host that cannot be read") from None
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:  # refuses fewer than four parts, octal and hexadecimal ones
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise refuse("a number in an odd spelling") from None
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise refuse("a host that cannot be read")
    return host


def as_number(host: str) -> Number | None:
    """The host's number where it is written as one."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_open(number: Number, *, private: bool) -> bool:
    """Whether a connection to a number may be made.

    Args:
        private: the host was named in ``private_hosts``, so that a private number (RFC 1918, RFC 6598, RFC 4193) will
            do as well. Loopback, link-local, multicast and all the others never will.
    """
    if private and number not in _METADATA and any(number in network for network in _PRIVATE):
        return True
    if isinstance(number, ipaddress.IPv4Address):
        return not any(number in network for network in _CLOSED_V4)
    return number in _OPEN_V6 and not any(number in network for network in _CLOSED_V6)


def shown(text: str) -> str:
    """An address for messages: without user name, query and fragment, which may hold secrets, and not too long."""
    head, mark, _ = re.sub(r"//[^/?#]*@", "//", text).partition("?")
    head = head.partition("#")[0]
    return f"{head[:160]}{'...' if len(head) > 160 else ''}{'?...' if mark else ''}"
